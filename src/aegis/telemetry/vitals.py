"""
What every process is doing, told to whoever watches: `stats()` of its rooms, twice a second, on a topic of their own.

A process knows who waits for which limit, what its cache served and how its requests ended; nobody else does. So each
one publishes it (`Runtime(..., vitals="collector 1")`), and the dashboard reads all of them as it reads quotes. The
cost is two small frames a second. Rejected: scraping (the watcher would have to know every process and port).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec

from aegis.errors import OutboxFullError, UnsentTicksError
from aegis.redis import PubSub, Redis

#: The topic; its keys are `process:NAME`.
VITALS_TOPIC = "vitals"
#: How long the last word of a process is kept in Redis, in seconds.
KEEP_S = 60.0
_EVERY_S = 0.5
_CLOSE_TIMEOUT_S = 0.5


def vitals_bus(redis: Redis, prefix: str) -> PubSub:
    """The topic of the vitals. What cannot be sent soon is worth nothing, and a process that is gone is forgotten."""
    return PubSub(redis, prefix=prefix, topic=VITALS_TOPIC, keep_s=KEEP_S, close_timeout=_CLOSE_TIMEOUT_S)


class Vital(msgspec.Struct, frozen=True):
    """One process at one moment. `stats` are the records of its rooms, by room."""

    name: str
    pid: int
    started_at: float  #: seconds since epoch, by the process's clock
    every_s: float  #: seconds between two of them: a process that is silent for several is in trouble
    stats: Mapping[str, Any]
    ended: bool = False  #: it has left in order


class Vitals:
    """
    `async with Vitals(redis, prefix, name, stats):` tells until the block is left, and then that it has ended.

    `stats` are the `stats` methods of the rooms, by the name under which they are shown. While Redis is away, what
    would have been told is dropped.
    """

    def __init__(
        self, redis: Redis, prefix: str, name: str, stats: Mapping[str, Callable[[], object]], every_s: float = _EVERY_S
    ) -> None:
        self.name, self._stats, self._every_s = name, stats, every_s
        self._bus = vitals_bus(redis, prefix)
        self._started_at = time.time()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._bus)
            telling = asyncio.create_task(self._tell_for_ever(), name="aegis vitals")
            stack.push_async_callback(self._end, telling)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with contextlib.suppress(UnsentTicksError):  # nobody misses the last word of a process whose server is away
            await self._stack.__aexit__(kind, exc, tb)

    async def _tell_for_ever(self) -> None:
        while True:
            await self._tell()
            await asyncio.sleep(self._every_s)

    async def _tell(self, *, ended: bool = False) -> None:
        stats = {room: ask() for room, ask in self._stats.items()}
        vital = Vital(self.name, os.getpid(), self._started_at, self._every_s, stats, ended=ended)
        with contextlib.suppress(OutboxFullError):
            await self._bus.publish(f"process:{self.name}", vital, timeout=self._every_s)

    async def _end(self, telling: asyncio.Task[None]) -> None:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await self._tell(ended=True)
