"""
Connections, handed out first come first served.

Every connection that counts is in exactly one of four collections (idle, held, connecting, closing), so their sum is
the size and no slot can be lost by a miscount. Whatever takes time (connect, reset, close) runs in a task of the pool:
a cancelled caller never interrupts it, and a freed connection goes straight to the longest waiter, so nobody barges
in. `release` awaits nothing. Rejected: asyncpg.Pool (a reset round trip per release, no default timeout, newcomers
steal) and psycopg_pool (a chain of cancellation bugs: #509, #1123, #1208, #1275, #1345, #1401).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from aegis.config import DatabaseConfig
from aegis.database._driver import AsyncpgDriver, Conn, Driver, in_sync, ours
from aegis.database._feed import Feed
from aegis.database._holders import Holders
from aegis.database._lease import Counters, Lease, PoolStats
from aegis.database._session import Trace
from aegis.database._site import caller
from aegis.database._supply import Supply
from aegis.database._waiters import Waiters
from aegis.database.stream import Sink
from aegis.errors import (
    ClosedError,
    CommitOutcomeUnknownError,
    DatabaseUnavailableError,
    PoolFullError,
    PoolTimeoutError,
    QueryError,
)

_log = logging.getLogger("aegis.database")
_log.addHandler(logging.NullHandler())  # a program that configures no logging sees nothing
_PING_AFTER_S = 1.0  # an idle connection older than this is asked before it is trusted (pgxpool's ShouldPing)
_PING_TIMEOUT_S = 1.0
_UPKEEP_S = 1.0  # how often the background looks, or a quarter of the shortest bound
_READ_ONLY = "25006"  # a write met a server that was demoted
_REPLICAS = frozenset({"read-only", "standby", "prefer-standby"})  # where a refused write is no surprise
_DRAIN_AGAIN_S = 10.0  # a server that stays read-only is not drained in a loop


class Pool:
    """At most `config.max_conns` connections. Whoever acquires a lease owes exactly one `release`."""

    def __init__(
        self, config: DatabaseConfig, driver: Driver | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config, self._clock = config, clock
        self.driver: Driver = driver or AsyncpgDriver(config)
        self.address = self.driver.address
        self._open = False
        self._idle: list[Lease] = []  # the freshest last; reuse is last in, first out, so that the rest can age
        self._closing: dict[asyncio.Task[None], Lease] = {}
        self._waiters = Waiters()
        self._count = Counters()
        self._held = Holders(clock, config.leak_after, self._count)
        self._supply = Supply(self.driver, self, self._count, clock)  # holds the connecting ones
        self._drained_at = -_DRAIN_AGAIN_S
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._released = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Pool {self.address} {self._state() if self._open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """Whether connections can be had."""
        return self._open

    @property
    def size(self) -> int:
        """How many connections count against the maximum now."""
        return len(self._idle) + len(self._held) + len(self._supply.connecting) + len(self._closing)

    # --- open and close ---

    async def open(self, *, verify: bool = True) -> None:
        """Open a first connection, so that a wrong address fails here; the minimum fills in the background."""
        if self._open:
            raise RuntimeError("this Database is open already")
        self._open = True
        self._supply.start()
        try:
            self._upkeep()
            if verify:
                self.release(await self.acquire())
        except BaseException:
            await self.close(0.0)
            raise

    async def close(self, grace_s: float | None = None) -> None:
        """Refuse newcomers, fail waiters, wait `grace_s` for holders, then cut them off and name them in the log."""
        self._open = False
        self._waiters.fail(lambda: ClosedError("Database"))
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._supply.stop()
        while self._idle:
            self._retire(self._idle.pop())
        try:
            async with asyncio.timeout(self.config.close_timeout if grace_s is None else grace_s):
                while self._held:
                    self._released.clear()
                    await self._released.wait()
        except TimeoutError:
            names = "; ".join(self._held.described(lease) for lease in self._held)
            _log.warning("closed while %d connections were held: %s", len(self._held), names)
        finally:
            for lease in self._held:
                lease.conn.terminate()
            busy = [*self._supply.connecting, *self._closing]
            if busy:  # each is bounded: connects were cancelled, goodbyes end after two seconds
                await asyncio.gather(*busy, return_exceptions=True)
            await asyncio.sleep(0)  # let the transports see their end

    def drain(self) -> None:
        """Replace every connection: the idle now, the held when they come back."""
        now = self._clock()
        if now - self._drained_at < _DRAIN_AGAIN_S:
            return
        self._drained_at = now
        _log.warning("PostgreSQL at %s became read-only: replacing all %d connections", self.address, self.size)
        for lease in self._held:
            lease.expires_at = 0.0
        while self._idle:
            self._retire(self._idle.pop())

    # --- acquire and release ---

    def take(self) -> Lease | None:
        """An idle connection that needs no question, without waiting; None means `acquire`."""
        if not self._idle:
            return None
        lease, now = self._idle[-1], self._clock()
        if now - lease.idle_since > _PING_AFTER_S or now >= lease.expires_at or lease.conn.is_closed():
            return None
        self._idle.pop()
        self._held.add(lease, now)
        lease.site = caller()
        self._count.acquired += 1
        return lease

    async def acquire(self) -> Lease:
        """
        A healthy connection, in order of arrival.

        Raises:
            PoolTimeoutError: none within `acquire_timeout`; the last connect failure is chained.
            PoolFullError: too many wait already.
            DatabaseUnavailableError: nothing is connected, and the last attempt failed.
        """
        if not self._open:
            raise ClosedError("Database")
        started = self._clock()
        lease = await self._idle_and_alive() or await self._wait(started)
        lease.site = caller()
        self._count.acquired += 1
        self._count.acquire_wait_s += self._clock() - started
        return lease

    def failed(self, lease: Lease, exc: BaseException, *, foreign: bool = False) -> BaseException:
        """What to raise for `exc`, which came out of a statement on `lease`; an interrupted one breaks the lease."""
        if not in_sync(exc):
            lease.broken = True
        mine = ours(exc, self.address, foreign=foreign)
        replica = self.config.target_session_attrs in _REPLICAS
        if isinstance(mine, QueryError) and mine.sqlstate == _READ_ONLY and not lease.readonly and not replica:
            self.drain()
        return mine

    def confirmed(self, lease: Lease) -> None:
        """
        After a write: whoever must confirm it did.

        Raises:
            CommitOutcomeUnknownError: the wait for a synchronous standby was broken off.
        """
        if lease.conn.unconfirmed:
            lease.broken = True
            raise CommitOutcomeUnknownError(self.address, "no synchronous standby confirmed it")

    @contextmanager
    def errors_of(self, lease: Lease, source: Feed | Sink | None = None) -> Iterator[None]:
        """Raise what `failed` says; what `source` raised is the caller's own and comes through as it is."""
        try:
            yield
        except GeneratorExit:  # a stream was left early; the connection is well
            raise
        except BaseException as exc:
            mine = self.failed(lease, exc, foreign=source is not None and source.failure is exc)
            if mine is exc:
                raise
            raise mine from exc

    def release(self, lease: Lease) -> None:
        """Give it back. What is closed, broken, expired or in a transaction is replaced. Never awaits."""
        now, count = self._clock(), self._count
        self._let_go(lease, now)
        if lease.conn.is_closed():
            count.lost += 1
            self._supply.grow()
        elif lease.broken:
            count.closed_dirty += 1
            self._retire(lease)
        elif lease.conn.is_in_transaction():
            count.closed_dirty += 1
            _log.warning("a connection came back inside a transaction and is closed: %s", self._held.described(lease))
            self._retire(lease)
        elif now >= lease.expires_at:
            count.closed_by_lifetime += 1
            self._retire(lease)
        elif not self._open or lease.trace is Trace.CLOSE:
            self._retire(lease)
        elif (lease.trace is Trace.RESET or self.config.reset == "always") and not self.config.pgbouncer:
            self._spawn_closing(self._reset(lease), lease)
        else:
            self._give(lease, now)

    def _let_go(self, lease: Lease, now: float) -> None:
        """Nobody holds it any more, which `close` may be waiting for."""
        self._held.remove(lease, now)
        self._released.set()

    async def _idle_and_alive(self) -> Lease | None:
        """The freshest idle connection that answers. Silence condemns the rest: they are older and as costly to ask."""
        while self._idle:
            lease, now = self._idle.pop(), self._clock()
            if lease.conn.is_closed():
                self._count.lost += 1
            elif now >= lease.expires_at:
                self._count.closed_by_lifetime += 1
                self._retire(lease)
            else:
                self._held.add(lease, now)
                if now - lease.idle_since <= _PING_AFTER_S or await self._answers(lease):
                    return lease
        return None

    async def _answers(self, lease: Lease) -> bool:
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                await self.driver.ping(lease.conn)
        except Exception as exc:  # noqa: BLE001 - whatever a ping raises, the answer is no
            self._let_go(lease, self._clock())
            silent = [lease, *self._idle] if isinstance(exc, TimeoutError) else [lease]
            self._idle = [other for other in self._idle if other not in silent]
            for other in silent:
                self._count.lost += 1
                other.conn.terminate()
            return False
        except BaseException:
            lease.broken = True
            self.release(lease)
            raise
        return True

    async def _wait(self, started: float) -> Lease:
        if len(self._waiters) >= self.config.max_waiting:
            self._count.refused += 1
            raise PoolFullError(self.config.max_waiting, self._state())
        if not self._open:  # closed while we asked a connection
            raise ClosedError("Database")
        waiter = self._waiters.join(started + self.config.acquire_timeout)
        self._count.waited += 1
        if "expiry" not in self._timers:
            self._expire_at(started + self.config.acquire_timeout)
        self._supply.grow()
        try:
            return await waiter
        except asyncio.CancelledError:
            self._count.canceled += 1
            self._waiters.leave(waiter)
            # The race: cancelled in the same turn in which a connection was handed over. It goes to the next.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise
        finally:
            self._count.waited_s += self._clock() - started

    def _give(self, lease: Lease, now: float) -> None:
        """To the longest waiter, else to the idle."""
        lease.idle_since = now
        waiter = self._waiters.first()
        if waiter is None:
            self._idle.append(lease)
        else:
            self._held.add(lease, now)
            waiter.set_result(lease)

    def _expire_at(self, deadline: float) -> None:
        self._timers["expiry"] = asyncio.get_running_loop().call_later(deadline - self._clock(), self._expire)

    def _expire(self) -> None:
        """Fail the waiters whose time is up."""
        self._timers.pop("expiry", None)
        now, state = self._clock(), self._state()
        for waiter in self._waiters.overdue(now):
            self._count.timeouts += 1
            waiter.set_exception(self._timeout(state))
        deadline = self._waiters.next_deadline()
        if deadline is not None:
            self._expire_at(deadline)

    def _timeout(self, state: str) -> Exception:
        """Why no connection came; the last connect failure is chained."""
        timeout_s, failure = self.config.acquire_timeout, self._supply.failure
        error: Exception = PoolTimeoutError(timeout_s, state)
        if not self._idle and not self._held and not self._closing:  # nobody holds one: it is the server
            cause = failure.cause if failure else f"no answer within {timeout_s:.1f} s"
            error = DatabaseUnavailableError(self.address, cause)
        error.__cause__ = failure
        return error

    # --- what the supply asks and says ---

    def wanted(self) -> int:
        """How many more attempts to connect would be of use now."""
        return max(len(self._waiters) - len(self._supply.connecting), self.config.min_conns - self.size)

    def room(self) -> int:
        """How many more connections are allowed."""
        return self.config.max_conns - self.size

    def is_awaited(self) -> bool:
        """Whether somebody waits for a connection."""
        return len(self._waiters) > 0

    def arrived(self, conn: Conn) -> None:
        """A new connection, with the end of its life."""
        now = self._clock()
        self._give(Lease(conn, now, now + self.config.max_conn_lifetime * random.uniform(0.9, 1.0), now), now)

    def refused(self, failure: DatabaseUnavailableError) -> None:
        """With nothing open and nothing else being tried, those who wait would wait for nothing."""
        if self.size == 0:
            self._waiters.fail(lambda: _again(failure))

    # --- leaving: reset and close, in tasks that keep their slot until the server has let go ---

    def _spawn_closing(self, work: Coroutine[Any, Any, None], lease: Lease) -> None:
        task = asyncio.get_running_loop().create_task(work, name="aegis.database.closing")
        self._closing[task] = lease
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        lease = self._closing.pop(task)
        if task.cancelled() or task.exception() is not None:
            lease.conn.terminate()
        if not lease.conn.is_closed():  # reset, not closed
            if self._open:
                self._give(lease, self._clock())
                return
            lease.conn.terminate()
        self._supply.grow()

    def _retire(self, lease: Lease) -> None:
        self._spawn_closing(self.driver.close(lease.conn), lease)

    async def _reset(self, lease: Lease) -> None:
        self._count.resets += 1
        await self.driver.reset(lease.conn)

    # --- upkeep ---

    def _upkeep(self) -> None:
        """Once a second: replace the old, close the idle above the minimum, report leaks, keep the minimum."""
        config, now = self.config, self._clock()
        keep: list[Lease] = []
        spare = self.size - len(self._closing) - config.min_conns
        for lease in self._idle:  # the longest idle first
            if lease.conn.is_closed():
                self._count.lost += 1
            elif now >= lease.expires_at:
                self._count.closed_by_lifetime += 1
                self._retire(lease)
            elif spare > 0 and now - lease.idle_since >= config.max_conn_idle_time:
                self._count.closed_by_idle_time += 1
                self._retire(lease)
            else:
                keep.append(lease)
                continue
            spare -= 1
        self._idle = keep
        self._held.report_leaks(now)
        self._supply.grow()
        bounds = (config.max_conn_lifetime, config.max_conn_idle_time, config.leak_after or _UPKEEP_S)
        period_s = max(0.01, min(_UPKEEP_S, min(bounds) / 4))
        self._timers["upkeep"] = asyncio.get_running_loop().call_later(period_s, self._upkeep)

    # --- reporting ---

    def stats(self) -> PoolStats:
        """A frozen record of now."""
        return PoolStats(
            total=self.size,
            idle=len(self._idle),
            active=len(self._held),
            connecting=len(self._supply.connecting),
            closing=len(self._closing),
            waiting=len(self._waiters),
            max=self.config.max_conns,
            **asdict(self._count),
        )

    def _state(self) -> str:
        return (
            f"{self.size} of {self.config.max_conns} open, {len(self._held)} active, {len(self._idle)} idle, "
            f"{len(self._supply.connecting)} connecting, {len(self._waiters)} waiting, "
            f"longest held by {self._held.longest()}"
        )


def _again(failure: DatabaseUnavailableError) -> DatabaseUnavailableError:
    """One exception per waiter: a shared one would collect the tracebacks of all."""
    copy = DatabaseUnavailableError(failure.address, failure.cause)
    copy.__cause__ = failure.__cause__
    return copy
