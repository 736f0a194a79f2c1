"""
Time limits for the requests in flight, with one timer for all of them.

A request usually ends long before its limit, so the timer is armed for the earliest limit known and only moved when a
still earlier one comes; when it rings, whoever is overdue is cancelled and the next earliest is looked for. Rejected:
`asyncio.timeout`, whose timer per request and whose cancelled timers in the loop's heap cost a tenth of the whole call.
"""

from __future__ import annotations

import asyncio
from math import inf
from types import TracebackType

from aegis.errors import ClosedError


class Watch:
    """
    `with watch.within(seconds):` raises TimeoutError in the block after that time, as `asyncio.timeout` does.

    Closing it ends every open block with ClosedError, so nobody waits for what the closed pool will never bring.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: set[Limit] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = inf
        self.closed = False

    def within(self, seconds: float) -> Limit:
        """The limit; its time begins now."""
        return Limit(self, self._loop.time() + seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end of the client."""
        with self.within(inf):
            await asyncio.sleep(seconds)

    def close(self) -> None:
        """End every open block with ClosedError, and let no other begin."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, inf
        for limit in self._open:
            limit.expire()
        self._open.clear()

    def add(self, limit: Limit) -> None:
        """Watch a limit until it is removed."""
        if self.closed:
            raise ClosedError("HttpClient")
        self._open.add(limit)
        if limit.at < self._rings_at:
            self._arm(limit.at)

    def remove(self, limit: Limit) -> None:
        """Its block has been left."""
        self._open.discard(limit)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_at = None, inf
        now, earliest = self._loop.time(), inf
        for limit in tuple(self._open):
            if limit.at <= now:
                self._open.discard(limit)
                limit.expire()
            elif limit.at < earliest:
                earliest = limit.at
        if earliest < inf:
            self._arm(earliest)


class Limit:
    """One block with a limit. Cancels its task, and turns that cancellation, and no other, into an error."""

    __slots__ = ("_cancelling", "_task", "_watch", "at", "expired")

    def __init__(self, watch: Watch, at: float) -> None:
        self._watch, self.at = watch, at
        self.expired = False  #: it was this limit that ended the block, not something in it

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._watch.add(self)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._watch.remove(self)
        if self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise (ClosedError("HttpClient") if self._watch.closed else TimeoutError) from exc

    def expire(self) -> None:
        """The time is over."""
        self.expired = True
        self._task.cancel()
