"""The broadcast: newest values arrive, losses are reported, a slow consumer hurts only itself."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from broadcast_events import collect, eventually

from aegis.config import RedisConfig
from aegis.redis import Gap, PubSub, Redis, Update


class Quote(msgspec.Struct, frozen=True):
    price: int


async def test_subscription_starts_with_last_values_then_follows(redis):
    """First what is known, marked as a snapshot; then what changes."""
    async with PubSub(redis) as bus:
        await bus.publish("005930", Quote(70_000))
        await bus.flush()
        async with bus.subscribe("005930", type=Quote) as updates:
            [first] = await collect(updates, 1)
            assert (first.key, first.value, first.snapshot) == ("005930", Quote(70_000), True)
            await bus.publish("005930", Quote(70_100), urgent=True)
            [then] = await collect(updates, 1)
            assert (then.value, then.snapshot) == (Quote(70_100), False)
            assert then.version > first.version
        assert await bus.last("005930", Quote) == Quote(70_100)
        assert await bus.last("000660", Quote) is None


async def test_policy_all_loses_and_reorders_nothing(redis):
    """Fifteen thousand ticks of three producers: every one, in each producer's order, and no gap."""
    async with (
        PubSub(redis) as bus,
        PubSub(redis) as second,
        PubSub(redis) as third,
        bus.subscribe(type=int, policy="all") as updates,
    ):

        async def produce(producer: PubSub, base: int) -> None:
            for number in range(5000):
                await producer.publish(f"key{base}-{number % 50}", base + number)
            await producer.flush()

        producing = asyncio.gather(produce(bus, 0), produce(second, 100_000), produce(third, 200_000))
        events = await collect(updates, 15_000)
        await producing
    assert not [event for event in events if isinstance(event, Gap)]
    for base in (0, 100_000, 200_000):
        for key in range(50):
            values = [event.value for event in events if event.key == f"key{base}-{key}"]
            assert values == sorted(values)
            assert len(values) == 100


async def test_slow_consumer_sees_the_newest_and_how_many_were_folded(redis):
    """With `latest`, memory is one entry per key, and the count of folded ticks is told."""
    async with PubSub(redis) as bus, bus.subscribe("a", "b", type=int) as updates:
        for number in range(1, 501):
            await bus.publish("a", number)
            await bus.publish("b", -number)
        await bus.flush()
        await eventually(lambda: bus.stats().received >= 1000)
        assert "pending=2" in repr(updates)
        events = await collect(updates, 2)
    assert {event.key: (event.value, event.conflated) for event in events} == {"a": (500, 499), "b": (-500, 499)}


async def test_lost_announcements_are_a_gap_and_then_the_newest_value(redis):
    """A hole in the versions is reported before newer data, and repaired."""
    async with PubSub(redis) as bus:
        await bus.publish("a", 1)
        await bus.flush()
        async with bus.subscribe("a", type=int, policy="all") as updates:
            assert (await collect(updates, 1))[0].value == 1
            names = bus._names
            channel = names.channel(names.partition_of("a")).encode()
            bus._receiver._feed._ask("UNSUBSCRIBE", [channel])  # behind its own back
            async with Redis(redis.config) as other:  # same server, another connection
                while (await other.execute("PUBSUB", "NUMSUB", channel))[1]:
                    await asyncio.sleep(0.005)
            await bus.publish("a", 2)
            await bus.publish("a", 3)
            await bus.flush()
            gap, repaired = await collect(updates, 2)
    assert isinstance(gap, Gap)
    assert gap.lost == 2
    assert (repaired.value, repaired.snapshot) == (3, True)


async def test_killed_connection_is_repaired_and_reported(redis):
    """CLIENT KILL of the feed: what was published meanwhile is a gap, then the newest value arrives."""
    async with PubSub(redis) as bus, bus.subscribe("a", type=int, policy="all") as updates:
        await bus.publish("a", 1)
        assert (await collect(updates, 1))[0].value == 1
        await redis.execute("CLIENT", "KILL", "TYPE", "pubsub")
        await bus.publish("a", 2, urgent=True)
        events = await collect(updates, 1)
        if isinstance(events[0], Gap):  # the tick fell into the hole; otherwise the link was back in time
            events += await collect(updates, 1)
        assert events[-1].value == 2
        await bus.publish("a", 3)
        assert (await collect(updates, 1))[0].value == 3


async def test_flushed_server_is_a_new_epoch(redis):
    """Versions start again; the subscriber is told and goes on."""
    async with PubSub(redis) as bus, bus.subscribe("a", type=int, policy="all") as updates:
        for number in range(5):
            await bus.publish("a", number)
        await bus.flush()
        await collect(updates, 5)
        await redis.execute("FLUSHALL")
        await bus.publish("a", 100)
        events = await collect(updates, 2)
        assert isinstance(events[0], Gap)
        assert events[1].value == 100
        await bus.publish("a", 101)
        assert (await collect(updates, 1))[0].value == 101


async def test_frame_sent_twice_is_published_once(redis):
    """The script knows the producer's last frame, so a retry after a lost answer changes nothing."""
    from aegis.redis.broadcast.lane import _PUBLISH
    from aegis.redis.broadcast.reading import _LOOK
    from aegis.redis.broadcast.wire import parse_header

    keys = ["{q}:book", "{q}:frames", "{q}:log"]
    frame = ["PUBLISH", "", "", "body", 2, 0, "a", "- 1", "b", "- 2"]
    args = ["life", "me.1", 1, 2, 1000, 10, 1, *frame]
    assert await redis.run(_PUBLISH, keys, args) == [b"life", b"1000", b"0", 0]
    assert await redis.run(_PUBLISH, keys, args) == [b"life", b"1000", b"2", 0]
    header = parse_header(await redis.run(_LOOK, keys[:1]))
    assert (header.life, header.version, header.streams) == ("life", 1001, {"me.1": 2})
    assert await redis.execute("HMGET", keys[0], "a", "b") == [b"1001 2 1000 me.1 1", b"1001 2 1000 me.1 2"]
    assert await redis.execute("XLEN", "{q}:log") == 1
    later = ["life", "me.1", 3, 2, 900, 10, 901, *frame]  # a clock that went back
    assert await redis.run(_PUBLISH, keys, later) == [b"life", b"1002", b"2", 0]
    wiser = ["life", "me.1", 5, 2, 900, 10, 5001, *frame]  # the producer knows of a newer version
    assert await redis.run(_PUBLISH, keys, wiser) == [b"life", b"5001", b"4", 0]


async def test_cancelled_waiting_loses_nothing(redis):
    """`wait_for` around `anext`, again and again: every tick is still seen once."""
    async with PubSub(redis) as bus, bus.subscribe(type=int, policy="all") as updates:
        seen: list[int] = []

        async def impatient() -> None:
            while len(seen) < 200:
                try:
                    seen.append((await asyncio.wait_for(anext(updates), 0.001)).value)
                except TimeoutError:
                    continue

        reading = asyncio.create_task(impatient())
        for number in range(200):
            await bus.publish("a", number)
            await asyncio.sleep(0)
        await asyncio.wait_for(reading, 20)
    assert seen == list(range(200))


async def test_two_first_subscribers_at_once_both_receive(redis):
    """No race between subscriptions of the same channel."""
    async with PubSub(redis) as bus:
        one, two = bus.subscribe("a", type=int), bus.subscribe("a", type=int)
        await asyncio.gather(one.__aenter__(), two.__aenter__())
        await bus.publish("a", 7)
        assert [(await collect(updates, 1))[0].value for updates in (one, two)] == [7, 7]
        await asyncio.gather(one.__aexit__(None, None, None), two.__aexit__(None, None, None))


async def test_full_ring_reports_how_many_were_dropped(redis):
    """A consumer that never reads costs a bounded ring, and learns what it missed."""
    async with PubSub(redis) as bus, bus.subscribe("a", type=int, policy="all", ring=100) as updates:
        for number in range(1000):
            await bus.publish("a", number)
        await bus.flush()
        await eventually(lambda: bus.stats().received >= 1000)
        events: list[Update | Gap] = []
        while not events or isinstance(events[-1], Gap) or events[-1].value != 999:
            events += await collect(updates, 1)
    lost = sum(event.lost for event in events if isinstance(event, Gap))
    assert lost + sum(isinstance(event, Update) for event in events) == 1000
    assert isinstance(events[0], Gap)


async def test_leaving_the_bus_sends_what_was_published_and_ends_subscriptions(redis, valkey_server):
    """Nothing published is left behind, and no consumer hangs."""
    async with PubSub(redis) as bus:
        subscription = await bus.subscribe("a", type=int, policy="all").__aenter__()
        for number in range(50):
            await bus.publish("a", number)
    values = [event.value async for event in subscription]
    assert values == list(range(len(values)))  # those that had arrived
    async with Redis(RedisConfig(url=valkey_server.url)) as other, PubSub(other) as bus:
        assert await bus.last("a", int) == 49


async def test_unknown_policy_is_refused_by_name(redis):
    """The error lists what there is."""
    with pytest.raises(ValueError, match="policy='newest' is none of latest, merge, trade_safe, all"):
        PubSub(redis).subscribe("a", policy="newest")
