"""The query methods that a `Database` and a `Transaction` share; each says how it comes by a connection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar, overload

from aegis.database import bulk
from aegis.database._driver import Conn, checked
from aegis.database._feed import Feed, Rows
from aegis.database._rows import typed
from aegis.database._table import describe
from aegis.database.stream import Cursor, Format, Sink, Stream, Write, copy_out, sink_of

T = TypeVar("T")
_BULK_TIMEOUT_S = 600.0
_LEAST_S = 0.001  # less would be 0 to the server, which is no bound
_BATCH_ROWS = 500  # of a cursor: some tens of kilobytes for usual rows


class Queries(ABC):
    """What a `Database` and a `Transaction` can be asked."""

    @abstractmethod
    async def _call(self, method: str, sql: str, args: Sequence[Any]) -> Any:
        """One statement on a connection."""

    @abstractmethod
    def _conn(self, sql: str = "") -> AbstractAsyncContextManager[Conn]:
        """A connection for a few statements; the driver's errors come out as ours."""

    @abstractmethod
    def _tx_conn(self, sql: str = "", source: Feed | Sink | None = None) -> AbstractAsyncContextManager[Conn]:
        """The same inside a transaction: a new one, or the one that this is. What `source` raised is the caller's."""

    @overload
    async def fetch(self, sql: str, *args: Any) -> list[Any]: ...
    @overload
    async def fetch(self, sql: str, *args: Any, type: type[T]) -> list[T]: ...
    async def fetch(self, sql: str, *args: Any, type: Any = None) -> list[Any]:  # noqa: A002 - the contract's name
        """
        All rows: records (by name or position), or `type` (a dataclass, a msgspec.Struct, dict).

        Raises:
            RowShapeError: the columns are not the fields of `type`; both sides are named.
        """
        records: list[Any] = await self._call("fetch", sql, args)
        return records if type is None else typed(records, type)

    @overload
    async def fetch_one(self, sql: str, *args: Any) -> Any | None: ...
    @overload
    async def fetch_one(self, sql: str, *args: Any, type: type[T]) -> T | None: ...
    async def fetch_one(self, sql: str, *args: Any, type: Any = None) -> Any:  # noqa: A002 - the contract's name
        """The first row, or None."""
        record = await self._call("fetchrow", sql, args)
        return record if record is None or type is None else typed([record], type)[0]

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        return await self._call("fetchval", sql, args)

    async def execute(self, sql: str, *args: Any) -> str:
        """Run it; returns the server's tag, such as `UPDATE 3`."""
        return str(await self._call("execute", sql, args))

    @overload
    def iterate(self, sql: str, *args: Any, batch: int = ...) -> Stream[Any]: ...
    @overload
    def iterate(self, sql: str, *args: Any, type: type[T], batch: int = ...) -> Stream[T]: ...
    def iterate(
        self,
        sql: str,
        *args: Any,
        type: Any = None,  # noqa: A002 - the contract's name
        batch: int = _BATCH_ROWS,
    ) -> Stream[Any]:
        """
        The rows of a query one by one, `batch` at a time over the wire; memory is one batch.

        `async for row in db.iterate("select ..."): ...` All rows are of one moment. A consumer that is silent for
        DB_IDLE_IN_TRANSACTION_TIMEOUT between two batches loses the connection.
        """
        if batch < 1:
            raise ValueError(f"batch={batch} is below 1")
        return Stream(self._rows(sql, args, type, batch))

    async def _rows(self, sql: str, args: Sequence[Any], kind: Any, batch: int) -> AsyncGenerator[Any, None]:
        async with self._tx_conn(sql) as conn:
            cursor = Cursor(conn, sql, args, batch)
            while records := await cursor.next():
                for row in records if kind is None else typed(records, kind):
                    yield row
            await cursor.close()

    async def upsert(
        self,
        table: str,
        rows: Rows,
        key: str | Sequence[str],
        *,
        columns: Sequence[str] | None = None,
        timeout: float = _BULK_TIMEOUT_S,
    ) -> bulk.UpsertResult:
        """
        Insert or update `rows` by `key` (columns with a unique index), all or nothing, through binary COPY.

        Rows come from any iterable or async iterable, read lazily: mappings, records, dataclasses, structs, or tuples
        with `columns`, which also picks columns out of wider rows. Of duplicates the last wins and counts once; a row
        with a NULL in its key is always new, unless the index is NULLS NOT DISTINCT. Rows that would not change are
        not touched. Columns that the server computes are left out. `table` may be `schema.table`. `timeout` bounds
        each statement, in seconds; reading the rows is part of one. Up to 200 rows are one usual statement, which ends
        at DB_STATEMENT_TIMEOUT.

        Raises:
            RowShapeError: a row that does not fit, or a column that the table does not have.
            QueryError: a value that does not fit its column, with the row's number, or what the server refuses.
        """
        key = (key,) if isinstance(key, str) else key
        checked("timeout", timeout, _LEAST_S)
        if not key:
            raise ValueError(f"{table}: upsert needs the columns of a key")
        feed = await Feed.open(rows, columns)
        few = await feed.few(bulk.FEW)
        if few is not None and not few:
            return bulk.UpsertResult(0, 0, 0)
        if few is not None:
            async with self._conn() as conn:
                target = await describe(conn, table, feed.columns, key)
                result = await bulk.upsert_few(conn, target, few) if bulk.fits_few(target) else None
            if result is not None:
                return result
        async with self._tx_conn(source=feed) as conn:
            target = await describe(conn, table, feed.columns, key)
            return await bulk.upsert_many(conn, target, feed, timeout)

    async def copy_in(
        self, table: str, rows: Rows, *, columns: Sequence[str] | None = None, timeout: float = _BULK_TIMEOUT_S
    ) -> int:
        """Append `rows` (given as for `upsert`) through binary COPY, all or nothing; returns how many."""
        checked("timeout", timeout, _LEAST_S)
        feed = await Feed.open(rows, columns)
        if not feed.columns:
            return 0
        async with self._tx_conn(source=feed) as conn:
            target = await describe(conn, table, feed.columns)
            return await bulk.copy_in(conn, target, feed, timeout)

    async def copy_out(
        self,
        sql: str,
        *args: Any,
        to: str | Path | Write,
        format: Format = "csv",  # noqa: A002 - COPY's own word
        timeout: float = _BULK_TIMEOUT_S,
    ) -> int:
        """
        The rows of a query as CSV with a header, as COPY's text or binary format, without holding them; how many.

        `to` is the path of a file, which appears under its name when it is complete, or an async function that is
        given pieces of bytes; what it raises ends the copy and comes through.
        """
        checked("timeout", timeout, _LEAST_S)
        async with sink_of(to) as sink, self._tx_conn(sql, sink) as conn:
            return await copy_out(conn, sql, args, sink, format=format, timeout=timeout)
