"""Work that no caller waits for, run to its end, at the latest until `close`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from aegis.errors import ClosedError

log = logging.getLogger("aegis.redis")

T = TypeVar("T")


class Background:
    """Keeps its tasks alive (the event loop alone does not) and waits for them in the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        exc = None if task.cancelled() else task.exception()
        if exc is not None and not isinstance(exc, ClosedError):  # closed meanwhile: nothing is left to do
            log.error("background work of the cache failed", exc_info=exc)

    async def close(self) -> None:
        """Wait until all have ended; each has a bound of its own."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
