"""
Last values that end: a topic made with `keep_s` forgets what nobody has published for so long.

Every producer looks after the partitions that it publishes in, a few times within that time, in one step on the server:
keys that have become too old go, and the partition as a whole expires when its last producer has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from aegis.errors import RedisError
from aegis.redis._script import load_script
from aegis.redis.broadcast.clock import ServerClock
from aegis.redis.broadcast.producer import Producer
from aegis.redis.broadcast.wire import Names
from aegis.redis.client import Redis

log = logging.getLogger("aegis.redis")

_FORGET = load_script("quotes_forget")
_LOOKS = 4  #: within `keep_s`
_BEGIN_S = 0.5  #: the longest that something new stays without an end
_LAST_LOOK_S = 0.5


class Forgetting:
    """The periodic task of a `PubSub` with `keep_s`."""

    def __init__(self, redis: Redis, names: Names, clock: ServerClock, producer: Producer, keep_s: float) -> None:
        self._redis, self._names, self._clock, self._producer = redis, names, clock, producer
        self._keep_us, self._every_s = round(keep_s * 1e6), keep_s / _LOOKS
        self._looked_at: dict[int, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="aegis broadcast forgetting")

    async def close(self) -> None:
        """Stop, after a last look: also what was published a moment ago shall end."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._looked_at.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_LOOK_S):
                await self._look()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(min(_BEGIN_S, self._every_s))
            await self._look()

    async def _look(self) -> None:
        """At every partition of ours whose turn it is; the first time, as soon as something is stored there."""
        now = time.monotonic()
        for lane in self._producer.lanes:
            if not lane.taken or now - self._looked_at.get(lane.number, float("-inf")) < self._every_s:
                continue
            try:
                await self._redis.run(_FORGET, [self._names.book(lane.number)], [self._keep_us, -1], idempotent=True)
            except RedisError as exc:
                log.debug("broadcast %s: partition %d forgets later: %s", self._names.topic, lane.number, exc)
            else:
                self._looked_at[lane.number] = now
                lane.forget(self._clock.now_us() - self._keep_us)


__all__ = ["Forgetting"]
