"""One loader call for many flights: it begins when each key is known to be this process's to load, or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from aegis.redis._flight import fresh
from aegis.redis._loads import AbsentError, Loads, abandon


class Batch:
    """
    Collects what this process has to load of `keys`, then calls `load_many` once; it gives a mapping.

    Keys that others are loading are waited for by their flights; should such a load fail and its key fall to us after
    all, it is loaded by a call of its own.
    """

    def __init__(self, keys: list[str], load_many: Callable[[list[str]], Any], loads: Loads) -> None:
        self._load_many, self._loads = load_many, loads
        self._undecided = set(keys)
        self._asked: dict[str, asyncio.Future[Any]] = {}

    def decided(self, key: str, mine: bool) -> None:
        """Whether this process loads the key; called once the lease was asked for."""
        if not mine and key in self._undecided:
            self._undecided.discard(key)
            self._go_if_complete()

    async def load(self, key: str) -> Any:
        """The loader of one flight: its part of the common call."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[key] = future
        self._undecided.discard(key)
        self._go_if_complete()
        return await future

    def _go_if_complete(self) -> None:
        if self._undecided or not self._asked:
            return
        asked, self._asked = self._asked, {}
        task = asyncio.ensure_future(self._loads.in_place(partial(self._load_many, list(asked))))
        task.add_done_callback(partial(self._share_out, asked))
        for future in asked.values():
            future.add_done_callback(partial(self._leave, asked, task))

    @staticmethod
    def _leave(asked: dict[str, asyncio.Future[Any]], task: asyncio.Future[Any], _: asyncio.Future[Any]) -> None:
        """When nobody waits for any of the keys, nobody needs the loader."""
        if not task.done() and all(future.done() for future in asked.values()):
            abandon(task)

    @staticmethod
    def _share_out(asked: dict[str, asyncio.Future[Any]], task: asyncio.Future[Any]) -> None:
        error: BaseException | None = asyncio.CancelledError() if task.cancelled() else task.exception()
        for key, future in asked.items():
            if future.done():
                continue
            if isinstance(error, Exception):
                future.set_exception(fresh(error))
            elif error is not None:
                future.cancel()
            elif key in task.result():
                future.set_result(task.result()[key])
            else:
                future.set_exception(AbsentError(key))
