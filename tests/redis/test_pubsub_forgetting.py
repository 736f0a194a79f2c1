"""Last values that end: what nobody publishes any more is gone from the server, and nothing else is."""

from __future__ import annotations

import asyncio

import pytest
from broadcast_events import collect

from aegis.redis import PubSub
from aegis.redis._script import load_script
from aegis.redis.broadcast.wire import Names

FORGET = load_script("quotes_forget")
HOUR_US = 3600 * 10**6


def two_of_one_partition(names: Names) -> tuple[str, str]:
    keys = [str(number) for number in range(100)]
    return keys[0], next(key for key in keys[1:] if names.partition_of(key) == names.partition_of(keys[0]))


async def test_what_is_older_is_forgotten_and_the_rest_stays(redis):
    """By the server's time of the last publication; what comes later comes as if nothing had happened."""
    async with PubSub(redis) as bus, bus.subscribe(type=int) as updates:
        old, new = two_of_one_partition(bus._names)
        book = bus._names.book(bus._names.partition_of(old))
        await bus.publish(old, 1)
        [first] = await collect(updates, 1)
        await bus.publish(new, 2)
        [second] = await collect(updates, 1)
        now = round(second.published_at * 1e6) + HOUR_US
        assert round(first.published_at * 1e6) + HOUR_US < now
        assert await redis.run(FORGET, [book], [HOUR_US, now]) == 1
        assert (await bus.last(old), await bus.last(new, int)) == (None, 2)
        assert 0 < await redis.execute("PTTL", book) <= HOUR_US / 1000
        await bus.publish(old, 3)
        [third] = await collect(updates, 1)
        assert (third.key, third.value, bus.stats().gaps) == (old, 3, 0)
        assert third.version > second.version
        assert await redis.run(FORGET, [book], [HOUR_US, -1]) == 0  # by the server's clock, both are new


async def test_a_topic_that_keeps_forgets_by_itself(redis):
    """A key that ended goes while another is published; when nobody publishes any more, everything goes."""
    async with PubSub(redis, topic="moods", keep_s=0.4) as bus:
        gone, told = two_of_one_partition(bus._names)
        book = bus._names.book(bus._names.partition_of(gone))
        await bus.publish(gone, 1, urgent=True)
        async with asyncio.timeout(30):
            while await bus.last(gone) is not None or await bus.last(told) is None:
                await bus.publish(told, 2, urgent=True)
                await asyncio.sleep(0.02)
            while gone in bus._producer.lanes[0]._book:  # nor is it written again
                await asyncio.sleep(0.02)
        assert await redis.execute("PTTL", book) > 0
    async with asyncio.timeout(30):
        while await redis.execute("EXISTS", book):
            await asyncio.sleep(0.02)


async def test_leaving_at_once_leaves_nothing_behind(redis):
    """Also what was published a moment before the end expires; without `keep_s`, values stay."""
    for keep_s, ends in ((60.0, True), (None, False)):
        async with PubSub(redis, topic=f"kept {ends}", keep_s=keep_s) as bus:
            await bus.publish("a", 1)
        assert (await redis.execute("PTTL", bus._names.book(bus._names.partition_of("a"))) > 0) is ends
    with pytest.raises(ValueError, match=r"keep_s=0\.0 must be above 0"):
        PubSub(redis, keep_s=0.0)
