"""
A transaction: one lease from BEGIN to COMMIT.

It knows what became of it: a statement that failed and was swallowed, or was interrupted, is told at COMMIT instead of
being lost, and after its block the object refuses to work.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

from aegis.database._driver import Conn, sqlstate_of
from aegis.database._feed import Feed
from aegis.database._lease import Lease
from aegis.database._session import trace_of
from aegis.database.pool import Pool
from aegis.database.queries import Queries
from aegis.database.stream import Sink
from aegis.errors import ClosedError, CommitOutcomeUnknownError, DatabaseLostError, QueryError

Isolation: TypeAlias = Literal["read committed", "repeatable read", "serializable"]
_FAILED = "25P02"  # in_failed_sql_transaction


class Transaction(Queries):
    """One transaction on one connection; ends with the block that gave it. For one task at a time."""

    def __init__(self, pool: Pool, lease: Lease) -> None:
        self._pool = pool
        self._held: Lease | None = lease
        self._failure: QueryError | None = None  # since the last success: the reason, where the server rolls back
        self._depth = 0

    def __repr__(self) -> str:
        state = "ended" if self._held is None else "open"
        return f"<Transaction {state}, {self._depth} savepoints>"

    @property
    def _lease(self) -> Lease:
        if self._held is None:
            raise ClosedError("Transaction")
        if self._held.broken:
            raise QueryError(_FAILED, "a statement of this transaction was interrupted, so it will be rolled back")
        return self._held

    async def _call(self, method: str, sql: str, args: Sequence[Any]) -> Any:
        lease = self._lease
        lease.trace = max(lease.trace, trace_of(sql))
        try:
            result = await getattr(lease.conn, method)(sql, *args)
        except BaseException as exc:
            mine = self._pool.failed(lease, exc)
            self._note(mine, exc)
            if mine is exc:
                raise
            raise mine from exc
        self._failure = None
        return result

    def _note(self, mine: BaseException, cause: BaseException | None) -> None:
        """Remember what the server refused, not what came of that (25P02); for want of it, what was never sent."""
        refused = sqlstate_of(cause) not in {"", _FAILED}
        if isinstance(mine, QueryError) and (refused or self._failure is None):
            self._failure = mine

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A savepoint: when the block raises, only what it did is undone. It is never repeated by itself."""
        self._depth += 1
        name = f"aegis_{self._depth}"
        undo = f"rollback to savepoint {name}; release savepoint {name}"
        try:
            await self.execute(f"savepoint {name}")
            try:
                yield self
            except Exception:
                if not self._lease_is_gone():
                    await self.execute(undo)
                raise
            try:
                await self.execute(f"release savepoint {name}")
            except QueryError as exc:
                if exc.sqlstate != _FAILED:
                    raise
                failure = self._failure or exc  # swallowed inside the block; only this savepoint is lost
                await self.execute(undo)
                raise QueryError(failure.sqlstate, f"the savepoint was rolled back: {failure.message}") from failure
        finally:
            self._depth -= 1

    @asynccontextmanager
    async def block(self, modes: str) -> AsyncIterator[Transaction]:
        """BEGIN, the block, COMMIT or ROLLBACK. The lease stays the caller's to release."""
        lease = self._lease
        try:
            await self.execute(f"begin isolation level {modes}")
            try:
                yield self
            except (Exception, GeneratorExit):
                await self._roll_back()
                raise
            except BaseException:  # cancelled: awaiting a ROLLBACK would delay it, so the connection pays
                lease.broken = True
                raise
            await self._commit()
        finally:
            self._held = None

    async def _roll_back(self) -> None:
        if self._lease_is_gone():
            return
        try:
            await self.execute("rollback")
        except DatabaseLostError:
            return  # then the server rolls back; the error of the block says more

    async def _commit(self) -> None:
        if self._lease.conn.is_closed():  # before COMMIT was sent, so nothing was stored
            raise DatabaseLostError(self._pool.address, "it ended before COMMIT, so the transaction was rolled back")
        failure = self._failure
        try:
            tag = await self.execute("commit")
        except DatabaseLostError as exc:
            raise CommitOutcomeUnknownError(exc.address, exc.cause) from exc
        if tag == "COMMIT":
            self._pool.confirmed(self._lease)
            return
        # The block swallowed a failed statement; the server rolled back and calls that success.
        failure = failure or QueryError(_FAILED, "a statement had failed")
        raise QueryError(failure.sqlstate, f"the transaction was rolled back: {failure.message}") from failure

    def _lease_is_gone(self) -> bool:
        return self._held is None or self._held.broken or self._held.conn.is_closed()

    @asynccontextmanager
    async def _tx_conn(self, sql: str = "", source: Feed | Sink | None = None) -> AsyncIterator[Conn]:
        lease = self._lease
        lease.trace = max(lease.trace, trace_of(sql))
        try:
            with self._pool.errors_of(lease, source):
                yield lease.conn
        except QueryError as exc:
            self._note(exc, exc.__cause__)
            raise
        self._failure = None

    _conn = _tx_conn
