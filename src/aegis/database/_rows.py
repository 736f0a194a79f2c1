"""Rows into dataclasses and structs by column name, and rows of any kind into tuples for COPY."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from aegis.errors import RowShapeError


def _fields(kind: type) -> dict[str, bool]:
    """Field name to whether it must be given."""
    if dataclasses.is_dataclass(kind):
        none = dataclasses.MISSING
        return {f.name: f.default is none and f.default_factory is none for f in dataclasses.fields(kind) if f.init}
    if issubclass(kind, msgspec.Struct):
        return {f.name: f.required for f in msgspec.structs.fields(kind)}
    raise TypeError(f"type={kind.__name__} is neither a dataclass, a msgspec.Struct nor dict")


def typed(records: Sequence[Any], kind: Any) -> list[Any]:
    """Each record as `kind`; columns are checked once, and a misfit names what is missing and what is extra."""
    if kind is dict:
        return [dict(record) for record in records]
    fields = _fields(kind)
    if not records:
        return []
    columns = list(records[0].keys())
    missing = [name for name, required in fields.items() if required and name not in columns]
    extra = [name for name in columns if name not in fields]
    if missing or extra:
        raise RowShapeError(kind.__name__, missing, extra)
    return [kind(**dict(record)) for record in records]


def tuples(rows: Iterable[Any], columns: Sequence[str] | None) -> tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]:
    """The columns and a lazy stream of tuples in their order. No rows and no `columns`: no columns."""
    stream = iter(rows)
    first = next(stream, None)
    if first is None:
        return tuple(columns or ()), iter(())
    stream = chain((first,), stream)
    if isinstance(first, Mapping):
        names = tuple(columns or first)
        return names, (_from_mapping(row, names) for row in stream)
    if isinstance(first, tuple | list):
        if columns is None:
            raise TypeError("rows are tuples, so columns= must name them in order")
        return tuple(columns), (tuple(row) for row in stream)
    names = tuple(columns or _fields(type(first)))
    return names, (tuple(getattr(row, name) for name in names) for row in stream)


def _from_mapping(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    if len(row) != len(names) or any(name not in row for name in names):
        missing = [name for name in names if name not in row]
        raise RowShapeError("the first row", missing, [name for name in row if name not in names])
    return tuple(row[name] for name in names)
