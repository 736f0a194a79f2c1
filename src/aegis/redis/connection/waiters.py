"""
Who waits for a reply, and how they are told.

`Pending` is the hot path: one task, woken from within the read. A real `asyncio.Future` is for what is handed
around; `Patient` and `Block` stand before one, in the queue of the link.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import Future
from collections.abc import Callable, Generator
from typing import Any, Protocol

Reply = Any  #: bytes, int, list, None, or hiredis.ReplyError inside a list


class LinkLostError(ConnectionResetError):
    """The link ended before the reply came; `sent` is False when the command was never written. Internal."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class ReplyLateError(TimeoutError):
    """The command's time is over; the command is in flight and its reply will be thrown away. Internal."""


class Waiter(Protocol):
    """What stands in the queue: a future, or a block that collects several replies for one."""

    def set_result(self, reply: Reply, /) -> None:
        """Here is the reply, or one of them."""

    def set_exception(self, exc: BaseException, /) -> None:
        """None will come."""

    def done(self) -> bool:
        """Whether nobody waits any more."""
        ...


class Pending:
    """
    What a task awaits on the hot path: woken from within the read, without the event loop's queue in between.

    A future wakes its task by `call_soon`: a handle, a queue, and one more turn of the loop before the task can send
    its next command. This object implements the protocol by which asyncio's tasks wait for foreign futures
    (`_asyncio_future_blocking`, `add_done_callback`, `result`, `cancel`; see asyncio/futures.py `isfuture`) and runs
    the task's wake-up itself, in the task's context, when the reply is parsed. That is safe because a read callback
    runs outside of any task; cancellation and failure come from elsewhere and go through `call_soon` as usual.
    Measured with 64 tasks: 1.5 µs of CPU per command where `asyncio.Future` takes 1.8; with one task 9 against 13.

    To be awaited at once by the one task that made it. `wake` is None when nobody waits any more.
    """

    __slots__ = ("_asyncio_future_blocking", "_loop", "context", "error", "reply", "wake")
    _loop: asyncio.AbstractEventLoop
    context: contextvars.Context
    error: BaseException | None
    reply: Reply
    wake: Callable[[Any], None] | None

    def __await__(self) -> Generator[Any, None, Reply]:
        self._asyncio_future_blocking = True
        yield self
        reply, self.reply = self.reply, None  # whoever still knows this object shall not keep the reply alive
        return reply

    def add_done_callback(self, wake: Callable[[Any], None], *, context: contextvars.Context) -> None:
        """The task tells how to wake it."""
        self.wake, self.context = wake, context

    def result(self) -> None:
        """The task asks whether to go on or to raise."""
        if self.error is not None:
            raise self.error

    def cancel(self, msg: Any = None) -> bool:
        """The task is being cancelled: its reply will be thrown away."""
        if self.wake is None:
            return False
        self.set_exception(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    def done(self) -> bool:
        """Whether nobody waits any more."""
        return self.wake is None

    def set_result(self, reply: Reply) -> None:
        """Wake the task with its reply; only outside of any task."""
        wake = self.wake
        if wake is not None:
            self.wake, self.reply = None, reply
            self.context.run(wake, self)

    def set_exception(self, exc: BaseException) -> None:
        """Wake the task with a failure, in the loop's next turn."""
        wake, self.wake, self.error = self.wake, None, exc
        assert wake is not None
        self._loop.call_soon(wake, self, context=self.context)


class Patient:
    """A future with a deadline of its own, beyond the default one: the watch's verdict does not touch it."""

    __slots__ = ("done", "future", "set_result")

    def __init__(self, future: Future[Reply]) -> None:
        self.future, self.done, self.set_result = future, future.done, future.set_result

    def set_exception(self, exc: BaseException) -> None:
        """Fail the future, unless for lateness."""
        if type(exc) is not ReplyLateError:
            self.future.set_exception(exc)


class Nobody:
    """Who waits for a reply that only shows that the server is alive."""

    __slots__ = ()

    def done(self) -> bool:
        """Always: nobody waits."""
        return True

    def set_result(self, reply: Reply) -> None:
        """Never called."""

    def set_exception(self, exc: BaseException) -> None:
        """Never called."""


NOBODY = Nobody()


class Block:
    """Several commands written as one: collects their replies and gives them to one future as a list."""

    __slots__ = ("_missing", "_patient", "_replies", "future")

    def __init__(self, future: Future[Reply], count: int, *, patient: bool) -> None:
        self.future, self._missing, self._patient = future, count, patient
        self._replies: list[Reply] = []

    def done(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done()

    def set_result(self, reply: Reply) -> None:
        """One more reply."""
        self._replies.append(reply)
        self._missing -= 1
        if not self._missing and not self.future.done():
            self.future.set_result(self._replies)

    def set_exception(self, exc: BaseException) -> None:
        """The rest will not come, or too late."""
        if not self.future.done() and not (self._patient and type(exc) is ReplyLateError):
            self.future.set_exception(exc)
