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
from aegis.redis.caching.envelope import Codec


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
        self.task: asyncio.Task[Callable[[], Any]] | None = None

    def start(self, run: Coroutine[Any, Any, Callable[[], Any]]) -> asyncio.Task[Callable[[], Any]]:
        """Take off: the outcome of `run` is everybody's, also that of one that is cancelled before its first step."""
        self.task = asyncio.create_task(run, name=f"aegis cache load {self.key}")
        self.task.add_done_callback(self._land)
        return self.task

    async def wait(self) -> Any:
        """The value, or the load's error as an exception of the caller's own."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)
            if not self._waiting and not self.background and self.task is not None and not self.task.done():
                self._on_end(self)  # from here on nobody may board: it is being cancelled
                self.task.cancel()

    def _land(self, task: asyncio.Task[Callable[[], Any]]) -> None:
        self._on_end(self)
        # Cancelled means that nobody waits any more, or that the cache is closed.
        error = ClosedError("Cache") if task.cancelled() else task.exception()
        for future in self._waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(task.result()())
            else:
                future.set_exception(fresh(error) if isinstance(error, Exception) else error)


def fresh(exc: Exception) -> Exception:
    """A copy of an error to be raised once more; it starts from the traceback of the original and does not grow it."""
    twin = _twin(exc)
    twin.__cause__, twin.__context__ = exc.__cause__, exc.__context__
    twin.__suppress_context__ = exc.__suppress_context__
    return twin.with_traceback(exc.__traceback__)


def _twin(exc: Exception) -> Exception:
    """
    Another one that reads the same.

    A constructor that takes other arguments than it keeps makes `copy` fail, or format its text twice; then the class
    is left out and only what the exception holds is copied. What cannot be copied at all is shared.
    """
    for make in (copy.copy, _without_constructor):
        try:
            twin = make(exc)
            if type(twin) is type(exc) and twin.args == exc.args and str(twin) == str(exc):
                return twin
        except Exception:  # noqa: BLE001, S112 - whatever a foreign class raises, there is another way
            continue
    return exc


def _without_constructor(exc: Exception) -> Exception:
    twin = type(exc).__new__(type(exc), *exc.args)
    twin.__dict__.update(exc.__dict__)
    return twin
