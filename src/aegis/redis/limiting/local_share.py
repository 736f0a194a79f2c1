"""
What to do while Redis cannot be asked: let everybody through, or limit each process to its share of the quota.

A share is a ring of its own with `limit // processes` permits per window, so the shares of all processes never add up
to more than the quota. Two moments are delicate:

- When Redis has just gone, permits that it granted are still in the window, some of them not even due. So the share
  opens one window and one horizon after the question that was not answered.
- When it is back it knows nothing of the shares. So whoever used his share holds the limit for one window, and for the
  second within which all processes have found their way back.

What a process cannot know is that only its own connection is lost: then its share comes on top of what the others get.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

from aegis.errors import RedisError, RedisUnavailableError
from aegis.redis.connection.outage import Outage
from aegis.redis.limiting.gate import Gate
from aegis.redis.limiting.limit import Decision, Lane, RateLimit

#: How long a question may take before the outage begins, in seconds.
PATIENCE_S = 1.0
#: Within this all processes have reconnected (the back-off's longest pause), in seconds.
_RETURN_S = 1.0


@dataclass(frozen=True, slots=True)
class LocalShare:
    """While Redis is away, this process limits itself to the quota divided by `processes`."""

    processes: int

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"LocalShare(processes={self.processes}): there is at least this process")


OnOutage = Literal["wait", "allow"] | LocalShare


class Permits(Protocol):
    """Where permits come from while Redis is away; moments are loop time."""

    def due(self, cost: int, now: float) -> float:
        """When `cost` permits are due, if nobody else takes any; inf when never."""
        ...

    def take(self, cost: int, now: float) -> None:
        """Take what is due."""
        ...

    def left(self, now: float) -> int:
        """Permits left in the first rate's window."""
        ...


class Unlimited:
    """`on_outage="allow"`: no limit at all."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit

    def due(self, cost: int, now: float) -> float:
        """Now."""
        del cost
        return now

    def take(self, cost: int, now: float) -> None:
        """Nothing is counted."""

    def left(self, now: float) -> int:
        """As with Redis disabled."""
        del now
        return self._limit.rates[0].limit


class Share:
    """The part of one limit that falls to one of `processes` processes; nothing before `opens_at`."""

    def __init__(self, limit: RateLimit, processes: int, opens_at: float) -> None:
        self._rates = [(rate.limit // processes, rate.per + limit.pad) for rate in limit.rates]
        self._opens_at = opens_at
        self._widest_s = max(window for _, window in self._rates)
        self._ring: deque[float] = deque()  # oldest first
        self.used = False

    def due(self, cost: int, now: float) -> float:
        """By the rule of the ring on the server."""
        due = max(now, self._opens_at, self._ring[-1] if self._ring else 0.0)
        for limit, window in self._rates:
            if cost > limit:
                return math.inf
            if len(self._ring) > limit - cost:
                due = max(due, self._ring[cost - limit - 1] + window)
        return due

    def take(self, cost: int, now: float) -> None:
        """Count them, and forget what has left every window."""
        self.used = True
        self._ring.extend([now] * cost)
        while self._ring[0] <= now - self._widest_s:
            self._ring.popleft()

    def left(self, now: float) -> int:
        """Nothing before it opens."""
        limit, window = self._rates[0]
        return 0 if now < self._opens_at else max(0, limit - sum(at > now - window for at in self._ring))


class Fallback:
    """One limit and key while the server cannot be asked. `outage` is shared by all of a `RateLimiter`."""

    def __init__(self, gate: Gate, on_outage: Literal["allow"] | LocalShare, outage: Outage) -> None:
        self._gate, self._on_outage, self._outage = gate, on_outage, outage
        self._permits: Permits | None = None

    @property
    def away(self) -> bool:
        """Whether not to ask the server."""
        return not self._outage.up

    def failed(self, exc: RedisError, asked_at: float) -> None:
        """A question was not answered: from now on we do without, until the server answers again."""
        self._outage.failed(exc)
        if self._permits is None:
            sent = not isinstance(exc, RedisUnavailableError)
            self._begin(asyncio.get_running_loop().time() if sent else asked_at)

    def permits(self) -> Permits:
        """Where permits come from now; another limit of this process may have noticed the outage."""
        return self._permits or self._begin(asyncio.get_running_loop().time())

    def decide(self, cost: int) -> Decision:
        """The answer of `allow`."""
        permits, now = self.permits(), asyncio.get_running_loop().time()
        due = permits.due(cost, now)
        if due <= now:
            permits.take(cost, now)
        return Decision(due <= now, permits.left(now), max(0.0, due - now))

    async def back(self) -> None:
        """The server answers again: pause everybody while permits of shares are still in the window."""
        permits = self._permits
        if isinstance(permits, Share) and permits.used:
            await self._gate.hold(max(self._gate.windows_us) / 1e6 + _RETURN_S)
        self._permits = None

    def _begin(self, since: float) -> Permits:
        limit = self._gate.limit
        if isinstance(self._on_outage, LocalShare):
            opens_at = since + max(self._gate.windows_us) / 1e6 + limit.horizon_s(Lane.URGENT)
            self._permits = Share(limit, self._on_outage.processes, opens_at)
        else:
            self._permits = Unlimited(limit)
        return self._permits
