"""
Rows on their way to the server: mappings, records, tuples, dataclasses or structs, from any iterable, as tuples.

Lazy, so a million rows need the memory of a thousand. It counts, so that an error can name the row, and it remembers
what the caller's own iterable raised, so that this is never mistaken for an error of the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias

from aegis.database._rows import fields_of
from aegis.errors import RowShapeError

Rows: TypeAlias = Iterable[Any] | AsyncIterable[Any]
Row: TypeAlias = tuple[Any, ...]
Chunks: TypeAlias = AsyncIterator[list[Any]]
_TURN = 500  # rows after which a plain iterable lets the other tasks run


class Feed:
    """The rows of one call. `columns` is empty when there are no rows and the caller named none."""

    def __init__(self, columns: tuple[str, ...], pick: Callable[[Any], Row], ahead: list[Any], chunks: Chunks) -> None:
        self.columns, self.count = columns, 0  #: how many rows have been taken out
        self.failure: BaseException | None = None  #: what the caller's iterable raised
        self._pick, self._ahead, self._chunks = pick, ahead, chunks

    @classmethod
    async def open(cls, rows: Rows, columns: Sequence[str] | None) -> Feed:
        """Look at the first row to learn the columns; `columns` overrules, and is needed for tuples."""
        chunks = _single(rows) if isinstance(rows, AsyncIterable) else _in_turns(rows)
        ahead: list[Any] = await anext(chunks, [])
        if not ahead:
            return cls(tuple(columns or ()), tuple, [], chunks)
        names, pick = _picker(ahead[0], columns)
        if len(set(names)) != len(names):
            raise ValueError(f"a column stands twice in {list(names)}")
        return cls(names, pick, ahead, chunks)

    async def few(self, count: int) -> list[Row] | None:
        """All rows, where they are at most `count`; else None, and nothing is lost."""
        while len(self._ahead) <= count:
            chunk = await self._next()
            if not chunk:
                picked = [self._picked(row) for row in self._ahead]
                self.count = 0  # they may be taken out once more, by `rows`
                return picked
            self._ahead += chunk
        return None

    async def rows(self, *, numbered: bool = False) -> AsyncIterator[Row]:
        """The rows in their order; `numbered` appends each one's number, from 1."""
        chunk, self._ahead = self._ahead, []
        while chunk:
            for row in chunk:
                picked = self._picked(row)
                yield (*picked, self.count) if numbered else picked
            chunk = await self._next()

    async def _next(self) -> list[Any]:
        try:
            return await anext(self._chunks, [])
        except BaseException as exc:
            self.failure = exc
            raise

    def _picked(self, row: Any) -> Row:
        self.count += 1
        try:
            picked = self._pick(row)
        except (LookupError, AttributeError, TypeError) as exc:
            self.failure = self._misfit(row)
            raise self.failure from exc
        if len(picked) != len(self.columns):
            self.failure = self._misfit(row)
            raise self.failure
        return picked

    def _misfit(self, row: Any) -> RowShapeError:
        names = list(row.keys()) if hasattr(row, "keys") else []
        missing = [name for name in self.columns if name not in names and not hasattr(row, name)]
        return RowShapeError(f"row {self.count}", missing, [name for name in names if name not in self.columns])


async def _single(rows: AsyncIterable[Any]) -> Chunks:
    """Each row as it comes: the next one may take its time."""
    async for row in rows:
        yield [row]


async def _in_turns(rows: Iterable[Any]) -> Chunks:
    """A plain iterable in pieces, with a turn for the other tasks after each."""
    source = iter(rows)
    while chunk := list(islice(source, _TURN)):
        yield chunk
        await asyncio.sleep(0)


def _picker(first: Any, columns: Sequence[str] | None) -> tuple[tuple[str, ...], Callable[[Any], Row]]:
    """The columns, and how to take their values out of a row like this one."""
    if isinstance(first, Mapping) or hasattr(first, "keys"):  # a record of the driver's is no Mapping
        names = tuple(columns or first.keys())
        pick = _tuple_of(itemgetter, names)
        # Columns that the caller named are picked from rows that have more; else a row with more is a mistake.
        return names, pick if columns else lambda row: pick(row) if len(row) == len(names) else ()
    if isinstance(first, tuple | list):
        columns = columns or getattr(first, "_fields", None)  # a named tuple knows them
        if columns is None:
            raise TypeError("rows are tuples, so columns= must name them in order")
        return tuple(columns), tuple
    names = tuple(columns or fields_of(type(first)))
    return names, _tuple_of(attrgetter, names)


def _tuple_of(getter: Callable[..., Callable[[Any], Any]], names: tuple[str, ...]) -> Callable[[Any], Row]:
    if len(names) == 1:  # then these getters give the value itself
        one = getter(names[0])
        return lambda row: (one(row),)
    return getter(*names)
