"""
`Database`: queries, transactions, bulk writes and migrations over one pool.

A pooled query is one statement on the wire: no BEGIN, no reset. An interrupted statement (cancelled, timed out) costs
its connection, never the slot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, get_args
from weakref import WeakSet

from pydantic import SecretStr

from aegis.backoff import Backoff
from aegis.config import DatabaseConfig, parse_postgres_url
from aegis.database import migrate as migrations
from aegis.database._driver import Conn, checked
from aegis.database._feed import Feed
from aegis.database._lease import Lease, PoolStats
from aegis.database._session import Trace, trace_of
from aegis.database._site import stack
from aegis.database.claim import Claim, claiming
from aegis.database.listen import Listener
from aegis.database.pool import Pool
from aegis.database.queries import Queries
from aegis.database.stream import Sink
from aegis.database.transaction import Isolation, Transaction
from aegis.errors import ClosedError, DatabaseError, DirectConnectionError, QueryError

T = TypeVar("T")
_RETRIED = frozenset({"40001", "40P01"})  # serialization failure, deadlock: the server rolled back
_BACKOFF = Backoff(base_s=0.02, cap_s=1.0)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a query was answered; `problem` says why not."""

    ok: bool
    latency_s: float
    problem: str
    pool: PoolStats


class Database(Queries):
    """PostgreSQL for one process. `async with Database(config.database) as db`; share it between all tasks."""

    def __init__(self, config: DatabaseConfig) -> None:
        self._pool = Pool(config)
        self._replica: Database | None = None
        self._listeners: WeakSet[Listener] = WeakSet()
        if config.replica_url is not None:
            self._replica = Database(_of_replica(config, config.replica_url))

    def __repr__(self) -> str:
        return f"<Database {self._pool!r}>"

    @property
    def replica(self) -> Database:
        """For reads that may be a little old: the pool of DATABASE_REPLICA_URL, or this one where none is set."""
        return self._replica or self

    async def __aenter__(self) -> Self:
        await self._pool.open()
        if self._replica is not None:
            await self._replica._pool.open(verify=False)  # noqa: SLF001 - a replica that is away must not stop the start
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self._close()
        finally:
            if self._replica is not None:
                await self._replica._close()  # noqa: SLF001 - our own class

    async def _close(self) -> None:
        """The pool takes its first step first, so whoever is about to listen finds it closed."""
        await asyncio.gather(self._pool.close(), *(listener.close("Database") for listener in self._listeners))

    async def _call(self, method: str, sql: str, args: Sequence[Any]) -> Any:
        pool, trace = self._pool, trace_of(sql)
        lease = pool.take() or await pool.acquire()
        try:
            lease.trace = trace
            result = await getattr(lease.conn, method)(sql, *args)
            pool.confirmed(lease)
            return result
        except BaseException as exc:
            mine = pool.failed(lease, exc)
            if mine is exc:
                raise
            raise mine from exc
        finally:
            pool.release(lease)

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[Lease]:
        """A connection for a block, with the whole stack of the borrower for a leak report."""
        lease = self._pool.take() or await self._pool.acquire()
        try:
            lease.site = stack()
            yield lease
        finally:
            self._pool.release(lease)

    @asynccontextmanager
    async def _conn(self, sql: str = "") -> AsyncIterator[Conn]:
        trace = trace_of(sql)
        async with self._lease() as lease:
            lease.trace = trace
            with self._pool.errors_of(lease):
                yield lease.conn
                self._pool.confirmed(lease)

    @asynccontextmanager
    async def _tx_conn(self, sql: str = "", source: Feed | Sink | None = None) -> AsyncIterator[Conn]:
        async with self.transaction() as tx, tx._tx_conn(sql, source) as conn:  # noqa: SLF001 - the same method
            yield conn

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[Conn]:
        """
        The asyncpg connection itself, for what is not offered here. Its session is reset when the block ends.

        Errors are asyncpg's own. Codecs that you set on it stay on it.
        """
        async with self._lease() as lease:
            lease.trace = Trace.RESET
            try:
                yield lease.conn
            except BaseException as exc:
                self._pool.failed(lease, exc)
                raise

    @asynccontextmanager
    async def transaction(
        self, *, isolation: Isolation = "read committed", readonly: bool = False, deferrable: bool = False
    ) -> AsyncIterator[Transaction]:
        """
        Commit when the block ends, roll back when it raises.

        Raises:
            CommitOutcomeUnknownError: the connection was lost during COMMIT.
        """
        if isolation not in get_args(Isolation):
            raise ValueError(f"isolation={isolation!r} is none of {', '.join(get_args(Isolation))}")
        modes = f"{isolation}{' read only' if readonly else ''}{' deferrable' if deferrable else ''}"
        async with self._lease() as lease:
            lease.readonly = readonly
            async with Transaction(self._pool, lease).block(modes) as tx:
                yield tx

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

    @asynccontextmanager
    async def claim(
        self,
        table: str,
        limit: int = 1,
        *,
        where: str = "",
        args: Sequence[Any] = (),
        order_by: str | Sequence[str] = (),
        keep: bool = False,
        type: Any = None,  # noqa: A002 - as in fetch
    ) -> AsyncIterator[Claim[Any]]:
        """
        Up to `limit` rows as work that nobody else gets meanwhile, in this process or another.

        When the block ends well the rows are deleted, together with whatever you did in `claim.tx`; when it raises, or
        the process dies, everything is undone and the rows are free for others. `keep=True` leaves them to you: change
        them in `claim.tx`. `where` is SQL that may use $1... of `args`. No rows: nothing is there to do now.
        """
        order = (order_by,) if isinstance(order_by, str) else order_by
        sql = claiming(table, where, order, len(args) + 1, keep=keep)
        async with self.transaction() as tx:
            yield Claim(await tx.fetch(sql, *args, limit, type=type), tx)

    def listen(self, *channels: str, capacity: int = 10_000) -> Listener:
        """
        The notifications of `channels`, on a connection of its own that comes back by itself.

        `async with db.listen("quotes") as notes: async for note in notes` gives `Notification`, and `MaybeMissed` after
        a reconnect or when more than `capacity` events wait.

        Raises:
            DatabaseUnavailableError: on entering, the server is away; later absences end by themselves.
            DirectConnectionError: there is a pgbouncer in between, through which nothing would ever come.
        """
        self._needs_direct("listen")
        if not self._pool.is_open:
            raise ClosedError("Database")
        listener = Listener(self._pool, channels, capacity)
        self._listeners.add(listener)
        return listener

    def _needs_direct(self, what: str) -> None:
        if self._pool.config.pgbouncer:
            raise DirectConnectionError(what)

    async def migrate(
        self,
        path: str | Path = migrations.MIGRATIONS,
        *,
        lock_timeout_s: float = 60.0,
        on_file: migrations.OnFile | None = None,
    ) -> list[str]:
        """
        Apply the pending files of a directory; returns their names. Safe from many processes at once.

        `on_file` is told each name before its file is applied, to show progress.

        Raises:
            MigrationError: a file was edited, comes too late, or failed; it is named. Files before it stay applied.
        """
        self._needs_direct("migrate")
        checked("lock_timeout_s", lock_timeout_s)
        async with self._lease() as lease:
            lease.trace = Trace.RESET
            with self._pool.errors_of(lease):
                return await migrations.migrate(lease.conn, path, lock_timeout_s, on_file)

    async def migration_status(self, path: str | Path = migrations.MIGRATIONS) -> list[migrations.Migration]:
        """Every file of the directory, and every applied one that is not there, with what is wrong with it."""
        async with self._conn() as conn:
            return await migrations.status(conn, path)

    async def ping(self) -> float:
        """Seconds of one round trip, waiting for a connection included."""
        started = time.perf_counter()
        await self.fetch_value("select 1")
        return time.perf_counter() - started

    async def health(self, timeout: float = 2.0) -> Health:
        """For probes: an answer within `timeout` seconds, whatever the server does; never a DatabaseError."""
        checked("timeout", timeout)
        problem = f"no answer within {timeout:g} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                try:
                    return Health(ok=True, latency_s=await self.ping(), problem="", pool=self.stats())
                except DatabaseError as exc:
                    problem = str(exc)
        return Health(ok=False, latency_s=0.0, problem=problem, pool=self.stats())

    def stats(self) -> PoolStats:
        """Counters and sizes of the pool."""
        return self._pool.stats()


def _of_replica(config: DatabaseConfig, url: SecretStr) -> DatabaseConfig:
    """The same bounds at the replica's address. Not validated again: the parts of the primary do not hold for it."""
    attrs = parse_postgres_url(url.get_secret_value()).options.get("target_session_attrs", "prefer-standby")
    changes = {"url": url, "replica_url": None, "target_session_attrs": attrs, "min_conns": 0}
    return config.model_copy(update=changes)
