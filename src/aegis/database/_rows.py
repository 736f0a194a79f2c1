"""
Rows into what the caller asked for: a dataclass, a msgspec.Struct, a dict.

Columns are matched with fields once per statement and type; each row then costs one call of the type.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, TypeAlias

import msgspec

from aegis.errors import RowShapeError

Build: TypeAlias = Callable[[Any], Any]  # a record into an object
_SHAPES_MAX = 1024  # distinct pairs of a type and its columns remembered


def fields_of(kind: type) -> dict[str, bool]:
    """Field name to whether it must be given, in the order of the constructor."""
    if dataclasses.is_dataclass(kind):
        none = dataclasses.MISSING
        return {f.name: f.default is none and f.default_factory is none for f in dataclasses.fields(kind) if f.init}
    if issubclass(kind, msgspec.Struct):
        return {f.name: f.required for f in msgspec.structs.fields(kind)}
    raise TypeError(f"{kind.__name__} is neither a dataclass, a msgspec.Struct nor dict")


def typed(records: Sequence[Any], kind: Any) -> list[Any]:
    """Each record as `kind`; a misfit names what is missing and what is extra."""
    if kind is dict:
        return [dict(record) for record in records]
    if not records:
        fields_of(kind)  # a type that can never fit is told without rows, too
        return []
    return list(map(_builder(kind, tuple(records[0].keys())), records))


@lru_cache(maxsize=_SHAPES_MAX)
def _builder(kind: type, columns: tuple[str, ...]) -> Build:
    """How to build `kind` from a record with these columns, by position where that is possible."""
    fields = fields_of(kind)
    twice = {name for name in columns if columns.count(name) > 1}  # a join of two tables: which one is meant?
    missing = [name for name, required in fields.items() if required and name not in columns]
    extra = [name for name in columns if name not in fields or name in twice]
    if missing or extra:
        raise RowShapeError(kind.__name__, missing, extra)
    given = [name for name in fields if name in columns]
    order = [columns.index(name) for name in given]
    parameters = list(inspect.signature(kind).parameters.values())[: len(given)]
    if [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] != given:
        return lambda record: kind(**dict(record))
    if order == list(range(len(columns))):
        return lambda record: kind(*record)
    pick = itemgetter(*order) if len(order) > 1 else tuple  # one column is always in order
    return lambda record: kind(*pick(record))
