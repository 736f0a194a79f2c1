"""Waiting for a condition: what it gives, and what it says when it never comes."""

from __future__ import annotations

import asyncio
import time

import pytest

from aegis.testing import until, until_sync


async def test_what_became_true_is_returned():
    """A plain condition or a coroutine function; other tasks go on meanwhile."""
    found: list[int] = []
    task = asyncio.create_task(asyncio.sleep(0.01))
    task.add_done_callback(lambda _: found.append(7))
    assert await until(lambda: found) == [7]

    async def ask() -> int:
        await asyncio.sleep(0)
        found.append(1)
        return len(found) // 4

    assert await until(ask) == 1
    assert until_sync(lambda: found.append(1) or len(found) > 6) is True


async def test_what_never_becomes_true_is_named():
    """The condition, where it stands, what it gave last, and how long it had; also one that hangs."""

    def never() -> int:
        return 0

    with pytest.raises(TimeoutError, match=r"never \(.*test_testing_conditions.py:\d+\) is still 0 after 0.02 s"):
        await until(never, within_s=0.02)
    with pytest.raises(TimeoutError, match=r"never .* is still 0 after 0.02 s"):
        until_sync(never, within_s=0.02)
    with pytest.raises(TimeoutError, match=r"wait .* is still None after 0.02 s"):
        await until(asyncio.Event().wait, within_s=0.02)


async def test_an_error_of_the_condition_is_its_own():
    """It is not taken for the end of the time."""

    async def fail() -> None:
        raise TimeoutError("the condition's")

    with pytest.raises(TimeoutError, match="the condition's"):
        await until(fail)


async def test_the_pauses_stay_short():
    """What becomes true after a while is noticed soon after."""
    true_at = time.monotonic() + 0.2
    asked: list[float] = []
    await until(lambda: asked.append(time.monotonic()) or time.monotonic() > true_at)
    assert 12 < len(asked) < 60
