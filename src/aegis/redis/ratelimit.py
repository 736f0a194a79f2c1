"""
Shared rate limits: exact in every sliding window, on the server's clock, by reservation.

The state is a ring of due times in Redis. A caller learns its slot in one round trip and sleeps until then; nobody
polls. A permit is at least one window after the permit `limit` places before it, so no half-open window of any length
ever holds more than the limit, whatever clocks the callers have.

Who owns what:

    scripts/limit_rule.lua    the ring, the clock that never steps back, the hold     the server
    scripts/limit_queue.lua   which process is next, by lane                          the server
    limiting/gate             what is asked and answered; no state                    one per limit and key
    limiting/take             callers of `allow` of one turn of the loop              one per limit and key
    limiting/callers          how the wait of each caller begins and ends             one per limit and key
    limiting/dispatcher       when to ask, whom to release; one question at a time    one per limit and key
    limiting/queue            who waits here, which slots we have; no I/O             one per limit and key
    limiting/outlook          what the server said last: when to come back; no I/O    one per limit and key
    limiting/local_share      what happens without Redis                              one per limit and key
    limiting/bell             "you are next", "hold": one subscription                one per RateLimiter
    limiting/server           which server it is: another one may have forgotten      one per RateLimiter

What the server cannot see is the time between the slot and the moment at which the request arrives upstream. `pad`
widens every window by that much. Half of it is for the way to the upstream; a process that wakes up later than the
other half drops its slot and takes another, so that a starved process cannot send two windows' worth at once.

Rejected: a counter per window (twice the limit at the edge), token buckets (up to twice the limit), logs on the
client's clock (50 ms of skew doubles the limit), polling (hundreds of calls per permit), one queue in the order of
arrival (an urgent caller could not overtake, and a process with many waiters would get all).
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from math import inf
from typing import Any, ParamSpec, TypeVar

from aegis.errors import TooManyWaitersError
from aegis.redis.client import Redis
from aegis.redis.connection.outage import Outage
from aegis.redis.limiting.bell import Bell
from aegis.redis.limiting.counts import Counts, total
from aegis.redis.limiting.dispatcher import Dispatcher
from aegis.redis.limiting.gate import Gate, key_name
from aegis.redis.limiting.limit import (
    Decision,
    Lane,
    LaneStats,
    LimiterStats,
    LimitStats,
    Rate,
    RateLimit,
    Usage,
)
from aegis.redis.limiting.local_share import PATIENCE_S, Fallback, LocalShare, OnOutage
from aegis.redis.limiting.take import Takes

#: Longest pause that one `hold` may order: a slip of a unit must not stop a fleet for good.
HOLD_S_MAX = 31_536_000.0  # a year

P = ParamSpec("P")
T = TypeVar("T")
#: Callers of `wait` in one process: at 5/s, so many are served in three hours. Each weighs about 3 KB with its task.
WAITING_MAX = 50_000
#: Keys nobody waits for that are remembered: their clock, their subscription.
_IDLE_MAX = 256


class RateLimiter:
    """
    Ask the shared server for permits.

    Safe to share between tasks of one event loop; its background work ends with the `Redis` it was given. Each object
    is a contender of its own: two in one process share nothing but the server. With Redis disabled every call is
    granted without I/O.

    At most `waiting_max` callers wait in this object, over all limits and keys.

    `on_outage` says what happens while Redis cannot be asked. `"wait"`: `wait` goes on trying until its timeout, and
    `allow` raises. `"allow"`: everything is granted. `LocalShare(processes=n)`: this process limits itself to 1/n of
    the quota, from one window and one horizon after the outage began.

    A server that takes over from another, or was restarted, may lack the last permits, because replication is
    asynchronous. So a limit pauses for its longest window then (at most `hold_max`). With `exact_after_failover=False`
    it goes on at once; up to one window's permits may then be granted twice.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str = "aegis",
        *,
        on_outage: OnOutage = "wait",
        exact_after_failover: bool = True,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        if on_outage not in {"wait", "allow"} and not isinstance(on_outage, LocalShare):
            raise ValueError(f'on_outage={on_outage!r} must be "wait", "allow" or LocalShare(processes=n)')
        if waiting_max < 1:
            raise ValueError(f"{waiting_max=} must be at least 1")
        self._redis, self._prefix = redis, prefix
        self._waiting, self._waiting_max = 0, waiting_max
        self._on_outage, self._exact = on_outage, exact_after_failover
        self._outage: Outage | None = None
        self._fallbacks: dict[tuple[RateLimit, str], Fallback] = {}
        self._me = secrets.token_hex(6)
        self._server_names: dict[int, str] = {}
        self._bell = Bell(redis, self._me, self._spawn)
        self._counts: dict[str, Counts] = {}
        self._gates: OrderedDict[tuple[RateLimit, str], Gate] = OrderedDict()
        self._takes: dict[tuple[RateLimit, str], Takes] = {}
        self._dispatchers: dict[tuple[RateLimit, str], Dispatcher] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._bound = False

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<RateLimiter {self._prefix} granted={stats.granted} waiting={stats.waiting}>"

    async def allow(self, limit: RateLimit, key: str = "", cost: int = 1) -> Decision:
        """
        Take `cost` permits if they are due now and nobody waits for them, else consume nothing. Never sleeps.

        Whoever is cancelled before the answer (also by a timeout around it) does not know either: the permits may be
        consumed, and then serve nobody. Nothing else does; to be cancelled without loss is what `wait` is for.

        Raises:
            ValueError: `cost` is not between 1 and the smallest limit.
            RedisUnavailableError: the server cannot be asked; nothing was consumed.
            ServerLostError: no answer came; whether permits were consumed is unknown.
        """
        _check_cost(limit, cost)
        if not self._redis.enabled:
            return Decision(True, limit.rates[0].limit, 0.0)
        takes = self._takes.get((limit, key)) or self._new_takes(limit, key)
        decision: Decision = await takes.ask(cost)
        return decision

    async def wait(
        self,
        limit: RateLimit,
        key: str = "",
        cost: int = 1,
        timeout: float | None = None,
        lane: Lane = Lane.NORMAL,
    ) -> float:
        """
        Wait for `cost` permits; returns the seconds waited.

        While Redis cannot be asked, tries again until `timeout`; without one, for ever. When it returns, send at once:
        the permit is for this moment. Cancel it whenever you like: what it had serves the next in line.

        Raises:
            ValueError: `cost` is not between 1 and the smallest limit, or `timeout` is not a number.
            TooManyWaitersError: `waiting_max` callers wait here already; nothing was asked or consumed.
            RateLimitTimeoutError: they cannot be had within `timeout`; raised as soon as that is known, nothing was
                consumed.
            ServerReplyError: the server refuses for good (it forbids the script); nothing was consumed.
            RateLimitLayoutError: another version of aegis keeps this limit; nothing was consumed.
            ClosedError: the `Redis` is closed, or was closed meanwhile.
        """
        _check_cost(limit, cost)
        if timeout is not None and not timeout < inf:
            if timeout != inf:
                raise ValueError(f"timeout={timeout} is not a number of seconds")
            timeout = None
        if not self._redis.enabled:
            return 0.0
        if self._waiting >= self._waiting_max:
            raise TooManyWaitersError(limit.name, self._waiting_max)
        self._waiting += 1
        try:
            return await self._dispatcher(limit, key).callers.wait(cost, timeout, lane)
        finally:
            self._waiting -= 1

    def limited(
        self,
        limit: RateLimit,
        key: str | Callable[..., str] = "",
        cost: int = 1,
        timeout: float | None = None,
        lane: Lane = Lane.NORMAL,
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]:
        """
        Decorate an async function: every call waits for its permits first.

        `key` may be a function of the call's own arguments: `@limiter.limited(KIS, key=lambda account, *_: account)`.
        Errors are those of `wait`; the function is then not called.
        """
        _check_cost(limit, cost)

        def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
            @functools.wraps(function)
            async def limited(*args: P.args, **kwargs: P.kwargs) -> T:
                name = key if isinstance(key, str) else key(*args, **kwargs)
                await self.wait(limit, key=name, cost=cost, timeout=timeout, lane=lane)
                return await function(*args, **kwargs)

            return limited

        return decorate

    async def hold(self, limit: RateLimit, seconds: float, key: str = "") -> None:
        """
        Make every process pause for `seconds`: the upstream said so. A hold only extends forward.

        Raises:
            ValueError: `seconds` is not a number, or more than a year; nothing is held.
        """
        if not seconds <= HOLD_S_MAX:
            raise ValueError(f"seconds={seconds} of a hold must be at most {HOLD_S_MAX:.0f}, a year")
        if not self._redis.enabled or seconds <= 0:
            return
        left_s = await self._gate(limit, key).hold(seconds)
        counts, until = self._counts_of(limit), asyncio.get_running_loop().time() + left_s
        counts.held_until = max(counts.held_until, until)
        dispatcher = self._dispatchers.get((limit, key))
        if dispatcher is not None:
            dispatcher.hold(left_s)

    async def peek(self, limit: RateLimit, key: str = "") -> Usage:
        """How the limit stands; changes nothing."""
        if not self._redis.enabled:
            return Usage(0, limit.rates[0].limit, 0.0, 0.0)
        return await self._gate(limit, key).peek()

    async def reset(self, limit: RateLimit, key: str = "") -> None:
        """Forget permits and hold. The upstream does not: only for tests and operators who know."""
        if self._redis.enabled:
            await self._gate(limit, key).reset()
            dispatcher = self._dispatchers.get((limit, key))
            if dispatcher is not None:
                dispatcher.come()

    def stats(self) -> LimiterStats:
        """Totals since this object was made, and those of each limit by name."""
        try:
            now = asyncio.get_running_loop().time()
        except RuntimeError:  # asked after the loop has ended: nothing is held any more
            now = float("inf")
        reserved = dict.fromkeys(self._counts, 0)
        for (limit, _), dispatcher in self._dispatchers.items():
            reserved[limit.name] += dispatcher.reserved
        return total({name: counts.record(now, reserved[name]) for name, counts in self._counts.items()})

    # --- what belongs to one limit and key ---

    def _counts_of(self, limit: RateLimit) -> Counts:
        counts = self._counts.get(limit.name)
        if counts is None:
            counts = self._counts[limit.name] = Counts()
        return counts

    def _gate(self, limit: RateLimit, key: str) -> Gate:
        found = self._gates.get((limit, key))
        if found is None:
            if not self._bound:
                self._bound = True
                self._redis.on_close(self._close)
            name = key_name(self._prefix, limit, key)
            counts = self._counts_of(limit)
            found = Gate(self._redis, self._server_names, limit, name, self._me, counts=counts, exact=self._exact)
            self._gates[limit, key] = found
            self._forget_idle()
        return found

    def _new_takes(self, limit: RateLimit, key: str) -> Takes:
        takes = Takes(self._gate(limit, key), self._counts_of(limit), self._spawn, self._fallback(limit, key))
        self._takes[limit, key] = takes
        return takes

    def _dispatcher(self, limit: RateLimit, key: str) -> Dispatcher:
        found = self._dispatchers.get((limit, key))
        if found is None:
            gate = self._gate(limit, key)
            fallback = self._fallback(limit, key)
            found = Dispatcher(gate, self._counts_of(limit), self._spawn, self._bell, fallback)
            self._dispatchers[limit, key] = found
        return found

    def _fallback(self, limit: RateLimit, key: str) -> Fallback | None:
        if self._on_outage == "wait":
            return None
        found = self._fallbacks.get((limit, key))
        if found is None:
            if self._outage is None:
                self._outage = Outage("rate limiter", self._redis.config.address, self._back)
            found = self._fallbacks[limit, key] = Fallback(self._gate(limit, key), self._on_outage, self._outage)
        return found

    async def _back(self) -> None:
        """Ask whether the server answers again; before anybody is told, shares that were used are paid for."""
        await self._redis.execute("PING", timeout=PATIENCE_S)
        for fallback in list(self._fallbacks.values()):
            await fallback.back()
        for dispatcher in self._dispatchers.values():
            dispatcher.come()

    def _forget_idle(self) -> None:
        """Keep the number of remembered keys bounded, oldest first; those that somebody waits for stay."""
        for each in list(self._gates)[: max(0, len(self._gates) - _IDLE_MAX)]:
            dispatcher = self._dispatchers.get(each)
            if dispatcher is None or dispatcher.idle:
                self._bell.leave(self._gates[each].channel)
                self._dispatchers.pop(each, None)
                self._takes.pop(each, None)
                self._fallbacks.pop(each, None)
                del self._gates[each]

    # --- background work ---

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _close(self) -> None:
        dispatchers = list(self._dispatchers.values())
        self._dispatchers.clear()
        self._takes.clear()
        self._fallbacks.clear()
        self._gates.clear()
        self._bound = False
        await asyncio.gather(*(dispatcher.close() for dispatcher in dispatchers))
        await self._bell.close()
        outage, self._outage = self._outage, None
        if outage is not None:
            await outage.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _check_cost(limit: RateLimit, cost: int) -> None:
    if type(cost) is not int:
        raise TypeError(f"cost={cost!r} must be a whole number of permits")
    if not 1 <= cost <= limit.cost_max:
        raise ValueError(f"cost={cost} must be between 1 and {limit.cost_max}, the smallest limit of {limit.name!r}")


__all__ = [
    "Decision",
    "Lane",
    "LaneStats",
    "LimitStats",
    "LimiterStats",
    "LocalShare",
    "Rate",
    "RateLimit",
    "RateLimiter",
    "Usage",
]
