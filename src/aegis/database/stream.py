"""
Many rows from the server without holding them: a cursor's rows one by one, and COPY to a file or a function.

The cursor is declared in SQL inside a transaction and read in batches, so memory is one batch, whatever the table's
size. Rejected: fetching all (the memory of the whole answer), LIMIT and OFFSET (each page reads all pages before it).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeAlias, TypeVar

from aegis.database._driver import Conn, milliseconds

T = TypeVar("T")
Write: TypeAlias = Callable[[bytes], Awaitable[object]]
Format: TypeAlias = Literal["csv", "text", "binary"]
_SLACK_S = 2.0  # the server ends a statement; the driver does when even that does not arrive
_serial = count()  # two streams in one transaction need two cursors


class Stream(Generic[T]):
    """
    Rows as they arrive: `async for row in db.iterate(...)`.

    It holds a connection until its rows are used up. Where you may leave the loop early, say so, and the connection is
    free at once: `async with db.iterate(...) as rows: async for row in rows: ...`
    """

    def __init__(self, rows: AsyncGenerator[T, None]) -> None:
        self._rows = rows

    def __aiter__(self) -> AsyncIterator[T]:
        return self._rows

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._rows.aclose()


class Cursor:
    """A cursor inside the caller's transaction, which closes it."""

    def __init__(self, conn: Conn, sql: str, args: Sequence[Any], batch: int) -> None:
        self._conn, self._sql, self._args, self._batch = conn, sql, args, batch
        self._name = f"aegis_cursor_{next(_serial)}"
        self._fetch: Any = None
        self._over = False

    async def next(self) -> list[Any]:
        """The next records; none: it is used up."""
        if self._fetch is None:  # prepared outside the driver's cache: these names never come again
            declare = await self._conn.prepare(f"declare {self._name} no scroll cursor for {self._sql}")
            await declare.fetch(*self._args)
            self._fetch = await self._conn.prepare(f"fetch forward {self._batch} from {self._name}")
        if self._over:
            return []
        records: list[Any] = await self._fetch.fetch()
        self._over = len(records) < self._batch
        return records

    async def close(self) -> None:
        """Before the end of the transaction; after a failure the transaction does it."""
        await self._conn.execute(f"close {self._name}")


class Sink:
    """Where COPY writes; remembers what the caller's side raised, so that it is not taken for an error of ours."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self.failure: BaseException | None = None

    async def __call__(self, data: bytes) -> None:
        """One piece, of some kilobytes."""
        try:
            await self._write(data)
        except BaseException as exc:
            self.failure = exc
            raise


@asynccontextmanager
async def sink_of(to: str | Path | Write) -> AsyncIterator[Sink]:
    """A sink into a function, or into a file that appears under its name only when it is complete."""
    if callable(to):
        yield Sink(to)
        return
    path = Path(to)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    file = await asyncio.to_thread(part.open, "wb")
    try:
        try:
            yield Sink(lambda data: asyncio.to_thread(file.write, data))
        finally:
            await asyncio.to_thread(file.close)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


async def copy_out(
    conn: Conn,
    sql: str,
    args: Sequence[Any],
    sink: Sink,
    *,
    format: Format,  # noqa: A002 - COPY's own word
    timeout: float,
) -> int:
    """The rows of a query, as CSV (with a header), text or binary; inside the caller's transaction."""
    before = await conn.fetchval("select current_setting('statement_timeout')")
    await conn.execute(f"set local statement_timeout = {milliseconds(timeout)}")
    header = {"header": True} if format == "csv" else {}
    tag = await conn.copy_from_query(sql, *args, output=sink, format=format, timeout=timeout + _SLACK_S, **header)
    await conn.execute(f"set local statement_timeout = '{before}'")
    return int(tag.removeprefix("COPY "))
