"""
Connections, handed out first come first served.

A released connection, or the right to open one (a slot), goes straight to the longest waiter, so nobody can barge in.
Release does no I/O and awaits nothing: it cannot be cancelled half-way, and costs no round trip. Rejected: asyncpg.Pool
(a reset round trip per release, no default timeout, newcomers steal) and psycopg_pool (many cancellation bugs).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from dataclasses import dataclass

from aegis.config import DatabaseConfig
from aegis.database._driver import Conn, address_of, connect
from aegis.errors import ClosedError, DatabaseUnavailableError, PoolFullError, PoolTimeoutError

_log = logging.getLogger("aegis.database")
_PING_AFTER_S = 1.0  # an idle connection older than this is asked before it is trusted (pgxpool's ShouldPing)
_PING_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Counters since the pool was opened, and its present sizes."""

    total: int  #: open and opening
    idle: int
    active: int  #: handed out or opening
    waiting: int
    max: int
    acquired: int
    acquire_wait_s: float
    timeouts: int
    refused: int
    opened: int
    closed_by_lifetime: int
    closed_dirty: int  #: came back inside a transaction, or interrupted


@dataclass(slots=True, eq=False)
class Lease:
    """One open connection and its times on the monotonic clock."""

    conn: Conn
    expires_at: float
    idle_since: float
    held_since: float = 0.0


class Pool:
    """At most `config.max_conns` connections. Whoever acquires a lease owes exactly one `release`."""

    def __init__(self, config: DatabaseConfig) -> None:
        self.config, self.address = config, address_of(config)
        self._open = False
        self._size = 0  # slots in use: idle, held and opening
        self._idle: list[Lease] = []
        self._held: set[Lease] = set()
        self._waiters: deque[asyncio.Future[Lease | None]] = deque()
        self._last_failure: DatabaseUnavailableError | None = None
        self._acquired = self._timeouts = self._refused = self._opened = self._expired = self._dirty = 0
        self._wait_s = 0.0

    def __repr__(self) -> str:
        return f"<Pool {self.address} {self._state()}>"

    async def open(self) -> None:
        """Open the first connection, so that a wrong address fails here; then fill to the minimum."""
        self._open = True
        leases: list[Lease] = []
        try:
            leases.extend([await self.acquire() for _ in range(max(1, self.config.min_conns))])
        except BaseException:
            self._open = False
            raise
        finally:
            for lease in leases:
                self.release(lease)
            if not self._open:
                await self.close()

    async def close(self) -> None:
        """Refuse newcomers, fail waiters, close idle connections; held ones are closed when they come back."""
        self._open = False
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(ClosedError("Database"))
        idle, self._idle = self._idle, []
        self._size -= len(idle)
        for lease in idle:
            lease.conn.terminate()
        await asyncio.sleep(0)  # let the transports see their end

    async def acquire(self) -> Lease:
        """
        A healthy connection, in order of arrival.

        Raises:
            PoolTimeoutError: none within `acquire_timeout`; the last connect failure is chained.
            PoolFullError: too many wait already.
            DatabaseUnavailableError: a connection had to be opened and could not be.
        """
        if not self._open:
            raise ClosedError("Database")
        started = time.monotonic()
        timeout_s = self.config.acquire_timeout
        try:
            async with asyncio.timeout(timeout_s):
                lease = await self._healthy(await self._next())
        except TimeoutError as exc:
            self._timeouts += 1
            raise PoolTimeoutError(timeout_s, self._state()) from (self._last_failure or exc)
        lease.held_since = time.monotonic()
        self._held.add(lease)
        self._acquired += 1
        self._wait_s += lease.held_since - started
        return lease

    def release(self, lease: Lease, *, broken: bool = False) -> None:
        """Give it back. `broken`, closed or in a transaction: it is closed and its slot given on. Never awaits."""
        self._held.discard(lease)
        unfinished = not lease.conn.is_closed() and lease.conn.is_in_transaction()
        if unfinished or broken:
            self._dirty += 1
        if unfinished and not broken:
            _log.warning("a connection came back inside a transaction and was closed")
        if unfinished or broken or lease.conn.is_closed() or not self._open:
            self._discard(lease)
            self._give(None)
        else:
            lease.idle_since = time.monotonic()
            self._give(lease)

    def stats(self) -> PoolStats:
        """A frozen record of now."""
        idle, waiting = len(self._idle), self._waiting()
        return PoolStats(
            self._size, idle, self._size - idle, waiting, self.config.max_conns, self._acquired, self._wait_s,
            self._timeouts, self._refused, self._opened, self._expired, self._dirty,
        )  # fmt: skip

    async def _next(self) -> Lease | None:
        """An idle lease, or None for a slot to open one in; waits in line when there is neither."""
        if not self._waiting():
            if self._idle:
                return self._idle.pop()
            if self._size < self.config.max_conns:
                self._size += 1
                return None
        if self._waiting() >= self.config.max_waiting:
            self._refused += 1
            raise PoolFullError(self.config.max_waiting, self._state())
        waiter: asyncio.Future[Lease | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except BaseException:
            # The race: cancelled in the same turn in which a connection was handed over. It goes to the next.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give(waiter.result())
            else:
                waiter.cancel()
            raise

    async def _healthy(self, lease: Lease | None) -> Lease:
        """Replace an expired or dead lease in its own slot. On any failure the slot goes to the next in line."""
        try:
            if lease is not None and not await self._usable(lease):
                self._discard(lease)
                lease = None
            if lease is not None:
                return lease
            conn = await connect(self.config)
        except BaseException as exc:
            if isinstance(exc, DatabaseUnavailableError):
                self._last_failure = exc
            if lease is not None:
                self._discard(lease)
            self._give(None)
            raise
        self._opened += 1
        self._last_failure = None
        now = time.monotonic()
        return Lease(conn, now + self.config.max_conn_lifetime * random.uniform(0.9, 1.0), now)

    async def _usable(self, lease: Lease) -> bool:
        now = time.monotonic()
        if lease.conn.is_closed():
            return False
        if now >= lease.expires_at:
            self._expired += 1
            return False
        if now - lease.idle_since < _PING_AFTER_S:
            return True
        try:
            await lease.conn.execute("", timeout=_PING_TIMEOUT_S)
        except Exception:  # noqa: BLE001 - whatever a ping raises, the answer is "replace it"
            return False
        return True

    def _give(self, item: Lease | None) -> None:
        """Hand a lease, or a slot (None), to the longest waiter; without one, keep or free it."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(item)
                return
        if item is None:
            self._size -= 1
        elif self._open:
            self._idle.append(item)
        else:
            self._discard(item)
            self._size -= 1

    def _discard(self, lease: Lease) -> None:
        if not lease.conn.is_closed():
            lease.conn.terminate()

    def _waiting(self) -> int:
        return sum(not waiter.done() for waiter in self._waiters)

    def _state(self) -> str:
        longest_s = max((time.monotonic() - lease.held_since for lease in self._held), default=0.0)
        idle = len(self._idle)
        return (
            f"{self._size} of {self.config.max_conns} open, {self._size - idle} active, {idle} idle, "
            f"{self._waiting()} waiting, longest held {longest_s:.1f} s"
        )
