"""
When the server does not answer, stop asking: one slow call finds out, the others go on without it.

While it is away, one background probe asks with a growing pause; no caller pays for the question. Rejected: letting
every n-th call probe (that caller waits), retries in the call (3.7 s for a refused and 58.8 s for a hung server with
redis-py's defaults).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aegis.backoff import Backoff
from aegis.errors import RedisError, RedisUnavailableError, ServerReplyError

log = logging.getLogger("aegis.redis")

#: Refusals of a server that will answer later: as good as away.
_AWAY = frozenset({"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN"})
_PAUSES = Backoff(0.1, 1.0, 0.05)


class Outage:
    """
    Whether the server answers. `up` is read before every question; `failed` is told about every failure.

    `ask` is the probe's question: it raises RedisError while the server is away, and makes up for what was missed.
    `on_down` and `on_up` are called when that changes.
    """

    def __init__(self, what: str, address: str, ask: Callable[[], Awaitable[None]]) -> None:
        self.up = True
        self.failures = 0
        self.on_down: Callable[[], None] = _nothing
        self.on_up: Callable[[], None] = _nothing
        self._what, self._address, self._ask = what, address, ask
        self._probe: asyncio.Task[None] | None = None
        self._closed = False
        self._refusal: ServerReplyError | None = None
        self._cause: RedisError | None = None

    def failed(self, exc: RedisError) -> None:
        """Note a failure; logs one line when the state changes."""
        self.failures += 1
        self._cause = exc
        if (
            isinstance(exc, ServerReplyError) and exc.code not in _AWAY
        ):  # it answers, if only to refuse: full, read-only
            if self._refusal is None or self._refusal.code != exc.code:
                self._refusal = exc
                log.warning("%s: the server refuses, going on without: %s", self._what, exc)
        elif self.up and not self._closed:
            self.up = False
            log.warning("%s: going on without Redis: %s", self._what, exc)
            self._probe = asyncio.create_task(self._ask_until_it_answers(), name="aegis cache probe")
            self.on_down()

    def accepted(self) -> None:
        """Note that the server took a write."""
        if self._refusal is not None:
            self._refusal = None
            log.info("%s: the server accepts again", self._what)

    def error(self) -> RedisError:
        """What to raise for those who want to know."""
        if self.up and self._cause is not None:
            return self._cause
        return RedisUnavailableError(self._address, f"not asked, because it did not answer: {self._cause}")

    async def close(self) -> None:
        """End the probe. From here on every question is asked, and told that Redis is closed."""
        self._closed = self.up = True
        task, self._probe = self._probe, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _ask_until_it_answers(self) -> None:
        attempt = 1
        while True:
            await asyncio.sleep(_PAUSES.delay_s(attempt))
            try:
                await self._ask()
            except RedisError:
                attempt += 1
                continue
            self.up = True
            self.on_up()
            log.info("%s: Redis answers again", self._what)
            return


def _nothing() -> None:
    return
