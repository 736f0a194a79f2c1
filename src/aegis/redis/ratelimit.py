"""
Shared rate limits: exact in every sliding window, on the server's clock, by reservation.

The state is a ring of due times in Redis. A caller learns its slot in one round trip (`scripts/limit_reserve.lua`) and
sleeps until then; nobody polls. A permit is at least one window after the permit `limit` places before it, so no
half-open window of any length ever holds more than the limit, whatever clocks the callers have. A caller that cannot be
served within its timeout is refused at once and leaves no trace; a cancelled one gives its slot back.

What the server cannot see is the time between the slot and the moment at which the request arrives upstream. `pad`
widens every window by that much. Half of it is for the way to the upstream; a caller that goes on later than the other
half (its timer overslept, or the answer lay unread because the process had no processor) drops its slot and takes
another, so that a starved process cannot send two windows' worth at once.

Rejected: a counter per window (twice the limit at the edge), token buckets (up to twice the limit), logs on the
client's clock (50 ms of skew doubles the limit), polling (hundreds of calls per permit).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from aegis.errors import RateLimitTimeoutError, RedisUnavailableError, ServerLostError
from aegis.redis._script import load_script
from aegis.redis.client import Redis

_RESERVE, _CANCEL, _HOLD = load_script("limit_reserve"), load_script("limit_cancel"), load_script("limit_hold")
_ANY, _LOOK = -1, -2
_SERVER_CLOCK = -1
#: Widening of every window, in seconds. 50 ms costs 5 % of a limit per second: with 20 ms, the demo on a machine whose
#: two cores were shared by a dozen busy processes put 7 requests into one window of 5.
PAD_S = 0.05
_RETRY_EVERY_S = 0.2
#: How many round trips the usual one is taken from, as their minimum.
_ROUND_TRIPS_KEPT = 32


class Lane(enum.IntEnum):
    """How urgent a caller is."""

    URGENT = 0
    NORMAL = 1
    BULK = 2


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` permits in any window of `per` seconds."""

    limit: int
    per: float

    def __post_init__(self) -> None:
        if self.limit < 1 or not self.per > 0 or not math.isfinite(self.per):
            raise ValueError(f"Rate(limit={self.limit}, per={self.per}): limit must be at least 1 and per above 0")


@dataclass(frozen=True, slots=True, init=False)
class RateLimit:
    """A named limit: all of its rates hold together. `pad` widens every window against jitter, in seconds."""

    name: str
    rates: tuple[Rate, ...]
    pad: float
    hold_max: float  #: longest pause that one refusal of the upstream may cause, in seconds

    def __init__(self, name: str, *rates: Rate, pad: float = PAD_S, hold_max: float = 60.0) -> None:
        if not rates:
            raise ValueError(f"RateLimit({name!r}) needs at least one Rate")
        if pad < 0 or hold_max < 0:
            raise ValueError(f"RateLimit({name!r}): pad={pad} and hold_max={hold_max} must not be negative")
        for field, value in (("name", name), ("rates", rates), ("pad", pad), ("hold_max", hold_max)):
            object.__setattr__(self, field, value)

    @property
    def cost_max(self) -> int:
        """The most permits that one call can ever get."""
        return min(rate.limit for rate in self.rates)


class Decision(NamedTuple):
    """The answer of `allow`: whether, how many permits are left in the first rate's window, seconds until the next."""

    allowed: bool
    remaining: int
    retry_after: float


class Usage(NamedTuple):
    """How a limit stands: permits used and left in the first rate's window, seconds to the next one, seconds held."""

    used: int
    remaining: int
    next_in: float
    held_for: float


@dataclass(frozen=True, slots=True)
class LimiterStats:
    """Totals of one `RateLimiter`."""

    granted: int
    refused: int
    cancelled: int
    late: int  #: slots that were not used because the process woke up too late
    waiting: int
    server_calls: int
    waited_s: float


class RateLimiter:
    """
    Ask the shared server for permits.

    Safe to share between tasks; holds no connection of its own. With Redis disabled every call is granted without I/O.
    """

    def __init__(self, redis: Redis, prefix: str = "aegis") -> None:
        self._redis, self._prefix = redis, prefix
        self._granted = self._refused = self._cancelled = self._late = self._waiting = self._calls = 0
        self._waited_s = 0.0
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS_KEPT)

    def __repr__(self) -> str:
        return f"<RateLimiter {self._prefix} granted={self._granted} waiting={self._waiting}>"

    async def allow(self, limit: RateLimit, key: str = "", cost: int = 1) -> Decision:
        """
        Take `cost` permits if they are due now, else consume nothing. Never sleeps.

        Raises:
            ValueError: `cost` is not between 1 and the smallest limit.
            RedisUnavailableError: the server cannot be asked; nothing was consumed.
            ServerLostError: no answer came; whether permits were consumed is unknown.
        """
        _check_cost(limit, cost)
        if not self._redis.enabled:
            return Decision(True, limit.rates[0].limit, 0.0)
        slot = await self._reserve(limit, key, cost, 0)
        if slot.reserved:
            self._granted += 1
        else:
            self._refused += 1
        return Decision(slot.reserved, slot.left, 0.0 if slot.reserved else slot.wait_s)

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

        While Redis cannot be asked, tries again until `timeout`; without one, for ever.

        Raises:
            ValueError: `cost` is not between 1 and the smallest limit.
            RateLimitTimeoutError: they cannot be had within `timeout`; raised at once, nothing was consumed.
        """
        del lane
        _check_cost(limit, cost)
        if not self._redis.enabled:
            return 0.0
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline = None if timeout is None else started + timeout
        self._waiting += 1
        try:
            while True:
                left_s = None if deadline is None else max(0.0, deadline - loop.time())
                slot = await self._reserve_in_any_weather(limit, key, cost, left_s)
                if not slot.reserved:
                    self._refused += 1
                    raise RateLimitTimeoutError(limit.name, timeout or 0.0, slot.wait_s)
                if await self._sleep_until_due(limit, key, cost, slot):
                    self._granted += 1
                    waited = loop.time() - started
                    self._waited_s += waited
                    return waited
                self._late += 1
        finally:
            self._waiting -= 1

    async def hold(self, limit: RateLimit, seconds: float, key: str = "") -> None:
        """Make every process pause for `seconds`: the upstream said so. A hold only extends forward."""
        if self._redis.enabled and seconds > 0:
            self._calls += 1
            await self._redis.run(_HOLD, [self._keys(limit, key)[1]], [_SERVER_CLOCK, math.ceil(seconds * 1e6)])

    async def peek(self, limit: RateLimit, key: str = "") -> Usage:
        """How the limit stands; changes nothing."""
        total = limit.rates[0].limit
        if not self._redis.enabled:
            return Usage(0, total, 0.0, 0.0)
        slot = await self._reserve(limit, key, 1, _LOOK)
        held = await self._redis.run(_HOLD, [self._keys(limit, key)[1]], [_SERVER_CLOCK, 0])
        return Usage(total - slot.left, slot.left, slot.wait_s, int(held) / 1e6)

    async def reset(self, limit: RateLimit, key: str = "") -> None:
        """Forget permits and hold. The upstream does not: only for tests and operators who know."""
        if self._redis.enabled:
            await self._redis.execute("DEL", *self._keys(limit, key))

    def stats(self) -> LimiterStats:
        """Totals since this object was made."""
        return LimiterStats(
            self._granted, self._refused, self._cancelled, self._late, self._waiting, self._calls, self._waited_s
        )

    def _keys(self, limit: RateLimit, key: str) -> list[str]:
        """Ring and hold, in one slot of a cluster; the key is hashed, since it may be an account."""
        hashed = hashlib.blake2b(key.encode(), digest_size=12).hexdigest() if key else "-"
        tag = f"{self._prefix}:limit:{{{limit.name}:{hashed}}}"
        return [f"{tag}:ring", f"{tag}:hold"]

    async def _reserve(self, limit: RateLimit, key: str, cost: int, longest_us: int) -> _Slot:
        rates = [number for rate in limit.rates for number in (rate.limit, math.ceil((rate.per + limit.pad) * 1e6))]
        self._calls += 1
        loop = asyncio.get_running_loop()
        asked = loop.time()
        reply = await self._redis.run(_RESERVE, self._keys(limit, key), [_SERVER_CLOCK, cost, longest_us, *rates])
        round_trip = loop.time() - asked
        self._round_trips.append(round_trip)
        unread_s = round_trip - min(self._round_trips)  # how much longer than usual the answer took to be read
        return _Slot(reply[0] == 1, int(reply[1]) / 1e6, reply[2], reply[3], unread_s)

    async def _reserve_in_any_weather(self, limit: RateLimit, key: str, cost: int, left_s: float | None) -> _Slot:
        loop = asyncio.get_running_loop()
        deadline = None if left_s is None else loop.time() + left_s
        while True:
            longest = _ANY if deadline is None else max(0, math.floor((deadline - loop.time()) * 1e6))
            asking = loop.create_task(self._reserve(limit, key, cost, longest))
            try:
                return await asyncio.shield(asking)
            except asyncio.CancelledError:
                asking.add_done_callback(lambda asked: self._abandon(limit, key, cost, asked))
                raise
            except (RedisUnavailableError, ServerLostError) as exc:
                # A lost answer may have booked a slot that nobody uses: capacity is lost, exactness is not.
                if deadline is not None and loop.time() + _RETRY_EVERY_S >= deadline:
                    raise RateLimitTimeoutError(limit.name, left_s or 0.0, _RETRY_EVERY_S) from exc
            await asyncio.sleep(_RETRY_EVERY_S)

    def _abandon(self, limit: RateLimit, key: str, cost: int, asked: asyncio.Task[_Slot]) -> None:
        """The caller was cancelled while its request was under way: give back what it brought."""
        if not asked.cancelled() and asked.exception() is None and asked.result().reserved:
            self._give_back(limit, key, cost, asked.result())

    async def _sleep_until_due(self, limit: RateLimit, key: str, cost: int, slot: _Slot) -> bool:
        """Sleep until the slot is due; False when this process is too late to use it."""
        loop = asyncio.get_running_loop()
        due = loop.time() + slot.wait_s
        try:
            if slot.wait_s > 0:
                await asyncio.sleep(slot.wait_s)
        except asyncio.CancelledError:
            self._give_back(limit, key, cost, slot)
            raise
        return slot.unread_s + loop.time() - due <= max(limit.pad, PAD_S) / 2

    def _give_back(self, limit: RateLimit, key: str, cost: int, slot: _Slot) -> None:
        self._cancelled += 1
        self._calls += 1
        keys = self._keys(limit, key)[:1]

        async def give_back() -> None:
            with contextlib.suppress(RedisUnavailableError, ServerLostError):  # then the slot is lost, not doubled
                await self._redis.run(_CANCEL, keys, [_SERVER_CLOCK, slot.due, cost])

        _keep(asyncio.get_running_loop().create_task(give_back()))


@dataclass(frozen=True, slots=True)
class _Slot:
    reserved: bool
    wait_s: float
    due: bytes
    left: int
    unread_s: float


def _check_cost(limit: RateLimit, cost: int) -> None:
    if not 1 <= cost <= limit.cost_max:
        raise ValueError(f"cost={cost} must be between 1 and {limit.cost_max}, the smallest limit of {limit.name!r}")


_kept: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    """Hold a reference until the task is done: the loop keeps only weak ones."""
    _kept.add(task)
    task.add_done_callback(_kept.discard)
