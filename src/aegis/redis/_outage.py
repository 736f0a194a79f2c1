"""
When the server does not answer, stop asking: one slow call finds out, the others go on without it.

While it is away, one background probe asks with a growing pause; no caller pays for the question. Rejected: letting
every n-th call probe (that caller waits), retries in the call (3.7 s for a refused and 58.8 s for a hung server with
redis-py's defaults).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from aegis.backoff import Backoff
from aegis.errors import RedisError, ServerReplyError
from aegis.redis.client import Redis

log = logging.getLogger("aegis.redis")


class Outage:
    """Whether the server answers. `up` is read before every question; `failed` is told about every failure."""

    def __init__(self, redis: Redis, timeout_s: float, what: str) -> None:
        self.up = True
        self.failures = 0
        self._redis, self._timeout_s, self._what = redis, timeout_s, what
        self._probe: asyncio.Task[None] | None = None
        self._refusing: str | None = None

    def failed(self, exc: RedisError) -> None:
        """Note a failure; logs one line when the state changes."""
        self.failures += 1
        if isinstance(exc, ServerReplyError):  # it answers, if only to refuse: full, read-only, loading
            if self._refusing != exc.code:
                self._refusing = exc.code
                log.warning("%s: the server refuses: %s", self._what, exc)
            return
        if self.up:
            self.up = False
            log.warning("%s: going on without Redis: %s", self._what, exc)
            self._probe = asyncio.create_task(self._ask_until_it_answers(), name="aegis cache probe")

    def accepted(self) -> None:
        """Note that the server took a write."""
        if self._refusing is not None:
            self._refusing = None
            log.info("%s: the server accepts again", self._what)

    async def close(self) -> None:
        """End the probe."""
        task, self._probe = self._probe, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _ask_until_it_answers(self, on_up: Callable[[], None] | None = None) -> None:
        backoff, attempt = Backoff(0.1, 1.0, 0.05), 1
        while True:
            await asyncio.sleep(backoff.delay_s(attempt))
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._redis.execute("PING", timeout=self._timeout_s)
            except (RedisError, TimeoutError):
                attempt += 1
                continue
            self.up = True
            log.info("%s: Redis answers again", self._what)
            if on_up is not None:
                on_up()
            return
