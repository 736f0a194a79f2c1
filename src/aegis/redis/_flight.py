"""
One load, many callers: the load runs in a task of its own, so that no caller's fate touches another's.

Each caller waits on a future of its own. A caller that is cancelled leaves; when the last one has left, the load is
cancelled. Rejected: `asyncio.shield` around one shared task (whose exception is one object with one growing traceback,
and is reported as never retrieved when everybody has left).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine
from typing import Any

from aegis.errors import ClosedError
from aegis.redis._envelope import Codec


class Flight:
    """
    Callers waiting for one outcome.

    `start(run)`: `run` returns a function that makes each caller's own copy of the value. With `background` the load
    goes on when nobody waits. `on_end` is called, perhaps more than once, when nobody may board any more.
    """

    __slots__ = ("_on_end", "_waiting", "background", "codec", "key", "tags", "task")

    def __init__(
        self, key: str, codec: Codec, tags: tuple[str, ...], on_end: Callable[[Flight], None], *, background: bool
    ) -> None:
        self.key, self.codec, self.tags, self.background = key, codec, tags, background
        self._on_end = on_end
        self._waiting: set[asyncio.Future[Any]] = set()
        self.task: asyncio.Task[None] | None = None

    def start(self, run: Coroutine[Any, Any, Callable[[], Any]]) -> asyncio.Task[None]:
        """Take off: the outcome of `run` is everybody's."""
        self.task = asyncio.create_task(self._fly(run), name=f"aegis cache load {self.key}")
        return self.task

    async def wait(self) -> Any:
        """The value, or the load's error as an exception of the caller's own."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)
            if future.done() and not future.cancelled():
                future.exception()  # cancelled while the outcome was on its way: nobody shall report it as lost
            if not self._waiting and not self.background and self.task is not None and not self.task.done():
                self._on_end(self)  # from here on nobody may board: it is being cancelled
                self.task.cancel()

    async def _fly(self, run: Coroutine[Any, Any, Callable[[], Any]]) -> None:
        try:
            copy_of_value = await run
        except asyncio.CancelledError:  # by the last caller who left, or because the cache is closed
            self._land(lambda future: future.set_exception(ClosedError("Cache")))
            raise
        except Exception as exc:  # noqa: BLE001 - whatever the loader raises belongs to its callers
            error = exc  # the name of an except clause ends with it
            self._land(lambda future: future.set_exception(fresh(error)))
        else:
            self._land(lambda future: future.set_result(copy_of_value()))

    def _land(self, tell: Callable[[asyncio.Future[Any]], None]) -> None:
        self._on_end(self)
        for future in self._waiting:
            if not future.done():
                tell(future)


def fresh(exc: Exception) -> Exception:
    """
    A copy of an error to be raised once more; it starts from the traceback of the original and does not grow it.

    Some exceptions cannot be copied (their constructor takes other arguments than it keeps); those are shared.
    """
    try:
        twin = copy.copy(exc)
    except Exception:  # noqa: BLE001 - whatever a foreign constructor raises, we have the original
        return exc
    if type(twin) is not type(exc):
        return exc
    twin.__cause__, twin.__context__ = exc.__cause__, exc.__context__
    twin.__suppress_context__ = exc.__suppress_context__
    return twin.with_traceback(exc.__traceback__)
