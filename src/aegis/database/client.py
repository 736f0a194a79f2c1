"""
`Database`: queries, transactions, bulk writes and migrations over one pool.

A pooled query is one statement on the wire: no BEGIN, no reset. An interrupted statement (cancelled, timed out) costs
its connection, never the slot.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from aegis.backoff import Backoff
from aegis.config import DatabaseConfig
from aegis.database import bulk
from aegis.database import migrate as migrations
from aegis.database._driver import Conn, translated
from aegis.database._rows import typed
from aegis.database.pool import Pool, PoolStats
from aegis.errors import CommitOutcomeUnknownError, DatabaseError, DatabaseLostError, QueryError

T = TypeVar("T")
Isolation = Literal["read committed", "repeatable read", "serializable"]
_RETRIED = frozenset({"40001", "40P01"})  # serialization failure, deadlock: the server rolled back
_BACKOFF = Backoff(base_s=0.02, cap_s=1.0)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a query was answered; `problem` says why not."""

    ok: bool
    latency_s: float
    problem: str
    pool: PoolStats


class Queries(ABC):
    """The query methods that a `Database` and a `Transaction` share."""

    _address: str

    @abstractmethod
    def _conn(self) -> AbstractAsyncContextManager[Conn]:
        """A connection for one call."""

    @overload
    async def fetch(self, sql: str, *args: Any) -> list[Any]: ...
    @overload
    async def fetch(self, sql: str, *args: Any, type: type[T]) -> list[T]: ...
    async def fetch(self, sql: str, *args: Any, type: Any = None) -> list[Any]:  # noqa: A002 - the contract's name
        """All rows: records (by name or position), or `type` (a dataclass, a msgspec.Struct, dict)."""
        async with self._conn() as conn:
            records = await conn.fetch(sql, *args)
        return list(records) if type is None else typed(records, type)

    @overload
    async def fetch_one(self, sql: str, *args: Any) -> Any | None: ...
    @overload
    async def fetch_one(self, sql: str, *args: Any, type: type[T]) -> T | None: ...
    async def fetch_one(self, sql: str, *args: Any, type: Any = None) -> Any:  # noqa: A002 - the contract's name
        """The first row, or None."""
        async with self._conn() as conn:
            record = await conn.fetchrow(sql, *args)
        return record if record is None or type is None else typed([record], type)[0]

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        async with self._conn() as conn:
            return await conn.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        """Run it; returns the server's tag, such as `UPDATE 3`."""
        async with self._conn() as conn:
            return str(await conn.execute(sql, *args))


class Transaction(Queries):
    """One transaction on one connection; ends with the block that gave it."""

    def __init__(self, conn: Conn, address: str) -> None:
        self._connection, self._address = conn, address

    @asynccontextmanager
    async def _conn(self) -> AsyncIterator[Conn]:
        with translated(self._connection, self._address):
            yield self._connection

    async def upsert(
        self, table: str, rows: Iterable[Any], key: Sequence[str], *, columns: Sequence[str] | None = None
    ) -> bulk.UpsertResult:
        """Insert or update by `key`; see `Database.upsert`."""
        async with self._conn() as conn:
            return await bulk.upsert(conn, table, rows, key, columns)


class Database(Queries):
    """PostgreSQL for one process. `async with Database(config.database) as db`; share it between all tasks."""

    def __init__(self, config: DatabaseConfig) -> None:
        self._pool = Pool(config)
        self._address = self._pool.address

    def __repr__(self) -> str:
        return f"<Database {self._pool!r}>"

    async def __aenter__(self) -> Self:
        await self._pool.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def _conn(self) -> AsyncIterator[Conn]:
        async with self._borrowed() as conn:
            with translated(conn, self._address):
                yield conn

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[Conn]:
        """A connection whose block may raise the caller's own errors, which are not translated."""
        lease = await self._pool.acquire()
        broken = True  # until proven otherwise: cancelled or timed out in a statement
        try:
            yield lease.conn
            broken = False
        except Exception:
            broken = False  # no statement was interrupted; release sees a closed connection or an open transaction
            raise
        finally:
            self._pool.release(lease, broken=broken)

    @asynccontextmanager
    async def transaction(
        self, *, isolation: Isolation = "read committed", readonly: bool = False, deferrable: bool = False
    ) -> AsyncIterator[Transaction]:
        """
        Commit when the block ends, roll back when it raises.

        Raises:
            CommitOutcomeUnknownError: the connection was lost during COMMIT.
        """
        modes = f"{isolation}{' read only' if readonly else ''}{' deferrable' if deferrable else ''}"
        async with self._borrowed() as conn:
            with translated(conn, self._address):
                await conn.execute(f"begin isolation level {modes}")
            try:
                yield Transaction(conn, self._address)
            except Exception:
                if not conn.is_closed():
                    with translated(conn, self._address):
                        await conn.execute("rollback")
                raise
            await self._commit(conn)

    async def _commit(self, conn: Conn) -> None:
        try:
            with translated(conn, self._address):
                tag = await conn.execute("commit")
        except DatabaseLostError as exc:
            raise CommitOutcomeUnknownError(exc.address, exc.cause) from exc
        if tag != "COMMIT":  # the block swallowed a failed statement; the server rolled back without an error
            raise QueryError("25P02", "a statement of the transaction had failed, so it was rolled back")

    async def run_tx(
        self, fn: Callable[[Transaction], Awaitable[T]], *, isolation: Isolation = "serializable", retries: int = 10
    ) -> T:
        """Run `fn(tx)` and commit; all of it again after 40001 or 40P01, never after an unknown COMMIT."""
        for attempt in range(1, retries + 1):
            try:
                async with self.transaction(isolation=isolation) as tx:
                    return await fn(tx)
            except QueryError as exc:
                if exc.sqlstate not in _RETRIED:
                    raise
            await asyncio.sleep(_BACKOFF.delay_s(attempt))
        async with self.transaction(isolation=isolation) as tx:
            return await fn(tx)

    async def upsert(
        self, table: str, rows: Iterable[Any], key: Sequence[str], *, columns: Sequence[str] | None = None
    ) -> bulk.UpsertResult:
        """
        Insert or update `rows` by `key` (which needs a unique index), in one transaction, through binary COPY.

        Rows are mappings, dataclasses, structs, or tuples with `columns`. Of duplicates the last wins and counts once.
        """
        async with self.transaction() as tx:
            return await tx.upsert(table, rows, key, columns=columns)

    async def migrate(self, path: str | Path = migrations.MIGRATIONS, *, lock_timeout_s: float = 60.0) -> list[str]:
        """Apply the pending files of a directory; returns their names. Safe from many processes at once."""
        async with self._conn() as conn:
            return await migrations.migrate(conn, path, lock_timeout_s)

    async def migration_status(self, path: str | Path = migrations.MIGRATIONS) -> list[migrations.Migration]:
        """Every file and whether it is applied."""
        async with self._conn() as conn:
            return await migrations.status(conn, path)

    async def ping(self) -> float:
        """Seconds of one round trip, waiting for a connection included."""
        started = time.perf_counter()
        await self.fetch_value("select 1")
        return time.perf_counter() - started

    async def health(self) -> Health:
        """For probes: never raises a DatabaseError."""
        try:
            return Health(ok=True, latency_s=await self.ping(), problem="", pool=self.stats())
        except DatabaseError as exc:
            return Health(ok=False, latency_s=0.0, problem=str(exc), pool=self.stats())

    def stats(self) -> PoolStats:
        """Counters and sizes of the pool."""
        return self._pool.stats()
