"""
A second request beside one that takes long: whichever has a good answer first counts.

It is for the slow tail of an upstream, not for its outage: it leaves only after the first has been silent for a while,
and only if a permit is free at that moment, the retry budget pays for it and the circuit is closed. The two end
together: when one is answered, the other is cancelled and its connection closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aegis.http._shared import Settings, Upstream
from aegis.http._wire import Answer, Failure
from aegis.http.profile import Request

#: Reading twice harms nobody; a second PUT may overtake the first.
_METHODS = frozenset({"GET", "HEAD"})


def may_hedge(request: Request, settings: Settings, upstream: Upstream, number: int) -> bool:
    """Whether attempt `number` may become two requests. The second is one of `RetryPolicy.attempts`."""
    return (
        request.method in _METHODS
        and request.content is None
        and settings.cassette is None
        and number < settings.retry.attempts
        and upstream.breaker.state == "closed"
    )


class Race:
    """
    One or two requests for one answer. `sent` says how many left, `second_won` whose answer it is.

    `refusals` are the answers that were not good: what they say of a pause holds, also where the other request won.
    """

    __slots__ = ("_exchange", "_settings", "_upstream", "refusals", "second_won", "sent")

    def __init__(
        self, settings: Settings, upstream: Upstream, exchange: Callable[[], Awaitable[Answer | Failure]]
    ) -> None:
        self._settings, self._upstream, self._exchange = settings, upstream, exchange
        self.sent = 1
        self.second_won = False
        self.refusals: list[Answer] = []

    async def run(self) -> Answer | Failure:
        """The first good answer; if there is none, what came of the first request."""
        first = asyncio.ensure_future(self._exchange())
        tasks: list[asyncio.Future[Answer | Failure | None]] = [first]  # type: ignore[list-item] # Future is invariant
        try:
            done, _ = await asyncio.wait(tasks, timeout=self._settings.hedge_after_s)
            if not done:
                tasks.append(asyncio.create_task(self._second(), name="aegis.http.hedge"))
            for ended in asyncio.as_completed(tasks):
                result = await ended
                if result is not None and _good(result):
                    self.second_won = not (first.done() and first.result() is result)
                    return result
                if isinstance(result, Answer):
                    self.refusals.append(result)
            return first.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _second(self) -> Answer | Failure | None:
        """None if it cannot be made now: it waits neither for a permit nor for the budget."""
        settings, upstream = self._settings, self._upstream
        cost = settings.retry.transient_cost
        if not upstream.budget.spend(cost):
            upstream.tally.refusals["budget"] += 1
            return None
        if settings.limiter is not None:
            try:
                await settings.limiter.wait(settings.limit, key=settings.limit_key, timeout=0.0)
            except BaseException as exc:
                upstream.budget.refund(cost)  # nothing was sent
                if not isinstance(exc, Exception):
                    raise
                upstream.tally.refusals["limiter"] += 1
                return None
        self.sent = 2
        upstream.tally.attempts += 1
        return await self._exchange()


def _good(result: Answer | Failure) -> bool:
    """Whether waiting for the other request could only cost time."""
    return isinstance(result, Answer) and result.status < 500 and result.status != 429
