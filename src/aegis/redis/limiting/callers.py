"""
The callers of `wait` of one limit and key: how each of their waits begins, and how it ends.

A wait ends by its slot (the dispatcher releases it), by a refusal, by its deadline, by an error, or by being cancelled;
whichever comes first takes the waiter out of the queue, and so the others find nothing to end. The dispatcher is told
by `on_change` whenever the queue is another one than before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aegis.errors import AegisError, RateLimitTimeoutError, RedisError
from aegis.redis.caching.flight import fresh
from aegis.redis.limiting.counts import Counts
from aegis.redis.limiting.gate import Gate
from aegis.redis.limiting.limit import Lane
from aegis.redis.limiting.outlook import Outlook
from aegis.redis.limiting.queue import Slot, Waiter, WaitQueue

#: When to come back, if nothing is known; and how long the dispatcher waits before it asks a silent server again.
RETRY_EVERY_S = 0.2
#: A caller whose first answer is under way is given so much more time: its permit may be on its way.
_ANSWER_GRACE_S = 0.1


class Callers:
    """Everything that a caller sees; the queue is the dispatcher's, too."""

    def __init__(
        self, gate: Gate, counts: Counts, queue: WaitQueue, outlook: Outlook, on_change: Callable[[], None]
    ) -> None:
        self._counts, self._queue, self._outlook, self._on_change = counts, queue, outlook, on_change
        self._limit, self._widest_s = gate.limit, max(gate.windows_us) / 1e6
        self._loop = asyncio.get_running_loop()
        self.trouble: RedisError | None = None  #: why the last question was not answered: the cause of missed deadlines

    async def wait(self, cost: int, timeout_s: float | None, lane: Lane) -> float:
        """Return when `cost` permits are due, with the seconds waited."""
        waiter = Waiter(lane, cost, self._loop.time(), timeout_s, self._loop.create_future())
        count = self._counts.lanes[lane]
        expiry = None
        if waiter.deadline is not None:
            self._foresee(waiter, waiter.deadline)
            expiry = self._loop.call_at(waiter.deadline, self._expire, waiter, waiter.deadline)
        self._queue.add(waiter)
        self._on_change()
        count.waiting += 1
        try:
            await waiter.future
        except asyncio.CancelledError:
            count.cancelled += 1
            self._abandon(waiter)
            raise
        finally:
            count.waiting -= 1
            if expiry is not None:
                expiry.cancel()
        waited_s = self._loop.time() - waiter.since
        count.granted += 1
        count.waited_s += waited_s
        return waited_s

    def refuse(self, waiter: Waiter, retry_after_s: float) -> None:
        """Its deadline cannot be met."""
        if self._queue.remove(waiter):
            _fail(waiter, self._refusal(waiter, retry_after_s))

    def fail_all(self, exc: AegisError) -> None:
        """Nobody will get anything."""
        for waiter in list(self._queue):
            self._queue.remove(waiter)
            _fail(waiter, fresh(exc))

    def _foresee(self, waiter: Waiter, deadline: float) -> None:
        """What is known without asking: that the deadline may well be met, or cannot be; then it is not even queued."""
        place = self._queue.permits_before(waiter.lane) + waiter.cost
        earliest = self._outlook.earliest(waiter.lane, place)
        if earliest is None:
            return
        if earliest > deadline:
            raise self._refusal(waiter, earliest - self._loop.time())
        if earliest + self._widest_s <= deadline:
            waiter.answered = True

    def _refusal(self, waiter: Waiter, retry_after_s: float) -> RateLimitTimeoutError:
        self._counts.lanes[waiter.lane].refused += 1
        return RateLimitTimeoutError(self._limit.name, waiter.timeout_s or 0.0, retry_after_s)

    def _expire(self, waiter: Waiter, deadline: float) -> None:
        """Its time is over."""
        now = self._loop.time()
        if not waiter.answered and now < deadline + _ANSWER_GRACE_S and self.trouble is None:
            self._loop.call_at(deadline + _ANSWER_GRACE_S, self._expire, waiter, deadline)
            return
        if self._queue.remove(waiter):
            last = self._outlook.last(waiter.lane)
            retry_after_s = RETRY_EVERY_S if last is None else max(0.0, last - now)
            error = RateLimitTimeoutError(self._limit.name, waiter.timeout_s or 0.0, retry_after_s)
            error.__cause__ = self.trouble
            self._counts.lanes[waiter.lane].timed_out += 1
            _fail(waiter, error)
            self._on_change()

    def _abandon(self, waiter: Waiter) -> None:
        """It was cancelled: in the queue, or in the very moment at which it was released."""
        future = waiter.future
        released = not self._queue.remove(waiter) and future.done() and not future.cancelled()
        if released and future.exception() is None:
            used = future.result()
            if used is not None:
                self._queue.hold(Slot(used.due, used.grant, waiter.cost))
        self._on_change()


def _fail(waiter: Waiter, error: Exception) -> None:
    if not waiter.future.done():
        waiter.future.set_exception(error)
