"""
Waiting for what must become true, without a guess of how long that takes.

A test that sleeps is slow where the machine is quick and fails where it is busy; one that waits for its condition is
neither.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from inspect import isawaitable
from typing import Any, TypeVar, overload

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.02


@overload
async def until(condition: Callable[[], Awaitable[T]], *, within_s: float = ...) -> T: ...
@overload
async def until(condition: Callable[[], T], *, within_s: float = ...) -> T: ...
async def until(condition: Callable[[], Any], *, within_s: float = 20.0) -> Any:
    """
    What `condition()` gives as soon as that is true; it may be a coroutine function. Asked again every few ms.

    Raises:
        TimeoutError: it is not true after `within_s`; names the condition and what it gave last.
    """
    given, pauses_s = None, _pauses_s()
    try:
        async with asyncio.timeout(within_s) as limit:
            while not given:
                answer = condition()
                given = await answer if isawaitable(answer) else answer
                if not given:
                    await asyncio.sleep(next(pauses_s))
    except TimeoutError:
        if not limit.expired():
            raise  # the condition's own
        raise _too_late(condition, given, within_s) from None
    return given


def until_sync(condition: Callable[[], T], *, within_s: float = 20.0) -> T:
    """As `until`, where there is no event loop."""
    deadline, pauses_s = time.monotonic() + within_s, _pauses_s()
    while not (given := condition()):
        if time.monotonic() > deadline:
            raise _too_late(condition, given, within_s)
        time.sleep(next(pauses_s))
    return given


def _pauses_s() -> Iterator[float]:
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(1.3 * pause_s, _LONGEST_PAUSE_S)


def _too_late(condition: Callable[[], Any], given: Any, within_s: float) -> TimeoutError:
    code = getattr(condition, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    name = getattr(condition, "__qualname__", repr(condition))
    return TimeoutError(f"{name}{where} is still {given!r} after {within_s:g} s")
