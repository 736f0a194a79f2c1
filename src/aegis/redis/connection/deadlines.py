"""
Deadlines for very many futures, without a timer each.

Futures with the same timeout expire in the order in which they were added, so one deque and one armed timer serve them
all; those that are done leave the deque's head on the way. Timeouts are rounded up to three digits, which keeps the
number of deques small whatever callers pass. Rejected: `asyncio.timeout` (a timer, a context manager and 2 µs per
command), a heap (cancelled entries pile up in its middle).

A deadline whose timer the loop kept waiting is put off once, by as long: the command may not even have been written,
and its late answer would be our own fault.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Expirable(Protocol):
    """A future, or what is like one."""

    def done(self) -> bool:
        """Whether its time does not matter any more."""
        ...


W = TypeVar("W", bound=Expirable)

#: A timer that is later than that was kept waiting by the loop.
_LATE_S = 0.01


class Deadlines(Generic[W]):
    """Call `expire(future)` for every future that is not done when its time is over."""

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[W], None]) -> None:
        self._loop, self._expire = loop, expire
        self._lanes: dict[float, deque[tuple[float, W]]] = {}
        self._timers: dict[float, asyncio.TimerHandle] = {}
        self._put_off: set[float] = set()

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    def add(self, timeout_s: float, future: W) -> None:
        """Watch `future` for `timeout_s` from now."""
        lane = self._lanes.get(timeout_s)
        if lane is None:
            timeout_s = _three_digits_up(timeout_s)
            lane = self._lanes.setdefault(timeout_s, deque())
        while lane and lane[0][1].done():
            lane.popleft()
        deadline = self._loop.time() + timeout_s
        lane.append((deadline, future))
        if timeout_s not in self._timers:
            self._timers[timeout_s] = self._loop.call_at(deadline, self._ring, timeout_s)

    def latest_above(self, timeout_s: float) -> float:
        """The latest deadline (loop time) of those not done that were given more than `timeout_s`; 0.0 for none."""
        lanes = (lane for timeout, lane in self._lanes.items() if timeout > timeout_s)
        return max((at for lane in lanes for at, future in lane if not future.done()), default=0.0)

    def close(self) -> None:
        """Forget everything; nothing expires any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._lanes.clear()

    def _ring(self, timeout_s: float) -> None:
        lane, now = self._lanes[timeout_s], self._loop.time()
        while lane and lane[0][1].done():
            lane.popleft()
        late_s = now - lane[0][0] if lane else 0.0
        if late_s > _LATE_S and timeout_s not in self._put_off:
            self._put_off.add(timeout_s)
            self._timers[timeout_s] = self._loop.call_later(min(late_s, timeout_s), self._ring, timeout_s)
            return
        self._put_off.discard(timeout_s)
        expired = []
        while lane and (lane[0][0] <= now or lane[0][1].done()):
            expired.append(lane.popleft()[1])
        if lane:
            self._timers[timeout_s] = self._loop.call_at(lane[0][0], self._ring, timeout_s)
        else:
            del self._lanes[timeout_s], self._timers[timeout_s]
        for future in expired:
            if not future.done():
                self._expire(future)


def _three_digits_up(seconds: float) -> float:
    """The next number of at most three digits: 0.12345 gives 0.124. Never less than a millisecond."""
    if seconds <= 0.001:
        return 0.001
    step = 10.0 ** (math.floor(math.log10(seconds)) - 2)
    return round(math.ceil(seconds / step - 1e-9) * step, 9)
