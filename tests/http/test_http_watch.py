"""One timer for all requests in flight, with the meaning of `asyncio.timeout`."""

from __future__ import annotations

import asyncio

import pytest

from aegis.http._watch import Watch
from aegis.testing import until


@pytest.fixture
async def watch():
    made = Watch(asyncio.get_running_loop())
    yield made
    made.close()


async def limited(watch, seconds, order=None, name=""):
    try:
        with watch.within(seconds):
            await asyncio.Event().wait()
    except TimeoutError:
        if order is not None:
            order.append(name)
        raise


async def test_limits_expire_in_their_order_whatever_order_they_began_in(watch):
    """A later and shorter limit moves the timer forward; the longer ones are found when it rings."""
    order = []
    seconds = {"c": 0.3, "a": 0.1, "d": 0.4, "b": 0.2}
    loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    ends = await asyncio.gather(
        *(limited(watch, seconds[name], order, name) for name in seconds), return_exceptions=True
    )
    assert [type(end) for end in ends] == [TimeoutError] * 4
    assert order == sorted(seconds)
    assert loop.time() - began >= 0.4
    assert not watch._open


async def test_a_block_that_ends_in_time_is_left_alone(watch):
    """Also long after: its task is not cancelled, and no timer keeps ringing."""
    with watch.within(0.05):
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    assert asyncio.current_task().cancelling() == 0
    assert watch._timer is None


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_a_limit_that_has_passed_already_ends_the_first_wait(watch, seconds):
    """As `asyncio.timeout` does it."""
    with pytest.raises(TimeoutError):
        await limited(watch, seconds)


async def test_a_cancellation_from_outside_comes_through_untouched(watch):
    """Before the limit, and in the very moment of it: whoever cancelled sees a cancelled task, not a timeout."""
    task = asyncio.create_task(limited(watch, 30.0))
    await until(lambda: len(watch._open) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    task = asyncio.create_task(limited(watch, 30.0))
    await until(lambda: len(watch._open) == 1)
    next(iter(watch._open)).expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not watch._open


async def test_an_outer_timeout_stays_the_outer_ones(watch):
    """The inner limit takes back its own cancellation only."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await limited(watch, 30.0)
    async with asyncio.timeout(30.0):
        with pytest.raises(TimeoutError):
            await limited(watch, 0.01)
        await asyncio.sleep(0)
    assert asyncio.current_task().cancelling() == 0


async def test_an_error_of_the_block_is_not_mistaken_for_a_timeout(watch):
    """Raised on the way out of a block whose time is over: the error stays, the cancellation is taken back."""

    async def failing():
        with watch.within(0.01):
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError

    with pytest.raises(KeyError):
        await failing()
    assert asyncio.current_task().cancelling() == 0
