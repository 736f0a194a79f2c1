"""
Running a loader: in one of a bounded number of places, within a deadline.

A loader that ignores its cancellation is left behind, and its place is given to the next one: a bound that hung loaders
could use up would end in nobody loading anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from inspect import isawaitable
from typing import Any

from aegis.errors import LoadFailedError, LoadTimeoutError

#: True inside a loader: a load within a load must not wait for a place that the outer one holds.
_loading: ContextVar[bool] = ContextVar("aegis_cache_loading", default=False)


class Places:
    """At most `most` loaders at once, each at most for `timeout_s`, the wait for a place included."""

    def __init__(self, most: int, timeout_s: float) -> None:
        self._free, self._timeout_s = asyncio.Semaphore(most), timeout_s

    async def load(self, key: str, load: Callable[[], Any], *, takes_place: bool = True) -> Any:
        """
        What the loader returns.

        Raises:
            LoadTimeoutError: it did not, in time.
            LoadFailedError: it raised CancelledError although nobody had cancelled it.
        """
        work = self.take(load) if takes_place else call(load)
        task = asyncio.create_task(work, name=f"aegis cache loader {key}")
        try:
            done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
        except asyncio.CancelledError:
            abandon(task)
            raise
        if not done:
            abandon(task)
            raise LoadTimeoutError(key, self._timeout_s)
        if task.cancelled():
            raise LoadFailedError(key, "the loader was cancelled from within")
        return task.result()

    async def take(self, load: Callable[[], Any]) -> Any:
        """Run a loader in one of the places; without a deadline of its own, until cancelled."""
        if _loading.get():
            return await call(load)
        async with self._free:
            task = asyncio.create_task(_inside(load))
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                abandon(task)
                raise
            return task.result()


async def call(load: Callable[[], Any]) -> Any:
    """The loader's result; it may be a coroutine function or a plain one."""
    value = load()
    return await value if isawaitable(value) else value


async def _inside(load: Callable[[], Any]) -> Any:
    _loading.set(True)  # in the context of this task only
    return await call(load)


def abandon(task: asyncio.Future[Any]) -> None:
    """Cancel without waiting, and take note of its outcome so that nobody reports it as lost."""
    task.cancel()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
