"""
The way from any thread to the one background loop, and back.

    caller's thread                          loop's thread (a daemon, started by the first call)
    pack the call, lock its gate
    call_soon_threadsafe ------------------> start a task for it, in the caller's context
    wait at the gate                         run it to its end, keep what came out, open the gate
    take the result, or raise the error <---

A caller that is interrupted (Ctrl-C) cancels its task and waits until that has ended, so what the async call cleans up
is cleaned up. `concurrent.futures.Future` is not used: its condition and its callbacks cost more than the call.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aegis.errors import WrongThreadError

_THREADS = 64  #: functions of the user's that run at once (loaders, transactions); further ones wait
_END_TIMEOUT_S = 2.0


class _Call:
    """One call under way. The gate is opened by the loop once `value` or `error` is there."""

    __slots__ = ("context", "error", "gate", "task", "value", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.context = work, contextvars.copy_context()
        self.gate = threading.Lock()
        self.gate.acquire()
        self.value: Any = None
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None

    def result(self) -> Any:
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error  # no cycle from the traceback to this frame


class Portal:
    """A loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="aegis-sync-call"))
        self._thread = threading.Thread(target=self._run, name="aegis-sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def await_(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run the coroutine that `make` gives, to its end, in a task of the loop."""
        return self._through(_Call(make), self._start)

    def plain(self, function: Callable[[], Any]) -> Any:
        """Run a function on the loop's thread, where nothing else runs meanwhile."""
        return self._through(_Call(function), self._do)

    def end(self) -> None:
        """Stop the loop; what still waits in it is abandoned."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_TIMEOUT_S)

    def _through(self, call: _Call, entry: Callable[[_Call], None]) -> Any:
        if threading.current_thread() is self._thread:
            raise WrongThreadError("aegis.sync")
        self._loop.call_soon_threadsafe(entry, call)
        try:
            call.gate.acquire()
        except BaseException:
            self._loop.call_soon_threadsafe(self._cancel, call)
            call.gate.acquire()
            raise
        return call.result()

    def _start(self, call: _Call) -> None:
        call.task = self._loop.create_task(_run_to_the_end(call), context=call.context)

    @staticmethod
    def _do(call: _Call) -> None:
        try:
            call.value = call.context.run(call.work)
        except BaseException as exc:  # noqa: BLE001 - it belongs to the caller
            call.error = exc
        call.gate.release()

    @staticmethod
    def _cancel(call: _Call) -> None:
        if call.task is not None:
            call.task.cancel()


async def _run_to_the_end(call: _Call) -> None:
    try:
        call.value = await call.work()
    except BaseException as exc:  # noqa: BLE001 - it belongs to the caller
        call.error = exc
    call.gate.release()


class Held:
    """An async context manager that is entered and left by one task, as time limits and groups inside it need."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._leave: asyncio.Future[tuple[Any, Any, Any]] | None = None
        self._task: asyncio.Task[Any] | None = None

    async def enter(self) -> Any:
        """What the manager's `__aenter__` gives, or raises."""
        loop = asyncio.get_running_loop()
        entered: asyncio.Future[Any] = loop.create_future()
        self._leave = loop.create_future()
        self._task = loop.create_task(self._hold(entered, self._leave))
        try:
            await asyncio.wait([entered, self._task], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        return entered.result() if entered.done() else self._task.result()

    async def leave(self, kind: Any, exc: Any, tb: Any) -> Any:
        """What the manager's `__aexit__` gives, or raises."""
        assert self._leave is not None
        assert self._task is not None
        if not self._leave.done():
            self._leave.set_result((kind, exc, tb))
        return await self._task

    async def _hold(self, entered: asyncio.Future[Any], leave: asyncio.Future[tuple[Any, Any, Any]]) -> Any:
        value = await self._manager.__aenter__()
        entered.set_result(value)
        try:
            left = await leave
        except asyncio.CancelledError as exc:
            await self._manager.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        return await self._manager.__aexit__(*left)


_lock = threading.Lock()
_portal: Portal | None = None


def portal() -> Portal:
    """The portal of this process, started by the first who asks."""
    global _portal  # noqa: PLW0603 - one loop for all blocking objects is what this module is about
    found = _portal
    if found is None:
        with _lock:
            found = _portal = _portal or Portal()
    return found


def _forget() -> None:
    """In a forked child: the thread was not inherited. Its objects are unusable there, new ones get a new loop."""
    global _portal, _lock
    _portal, _lock = None, threading.Lock()


@atexit.register
def _end() -> None:
    if _portal is not None:
        _portal.end()


os.register_at_fork(after_in_child=_forget)
