"""The broadcast in everyday use: patterns, trades, conflation, rates, counts, cancellation, closing."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from broadcast_events import collect, eventually

from aegis.config import RedisConfig
from aegis.errors import ClosedError, PayloadError, TopicPartitionsError
from aegis.redis import PubSub, Redis
from aegis.testing import FaultProxy


async def test_patterns_and_keys_select_snapshot_and_ticks(redis):
    """A glob and a key together: both kinds come, nothing else does."""
    async with PubSub(redis) as bus:
        for key in ("005930", "005935", "000660", "kosdaq"):
            await bus.publish(key, 1)
        await bus.flush()
        async with bus.subscribe("kosdaq", type=int, patterns=["0059*"]) as updates:
            assert {event.key for event in await collect(updates, 3)} == {"005930", "005935", "kosdaq"}
            for key in ("000660", "005935", "kosdaq"):
                await bus.publish(key, 2)
            events = await collect(updates, 2)
            assert {(event.key, event.value) for event in events} == {("005935", 2), ("kosdaq", 2)}
            await bus.flush()
            assert updates.pending == 0


async def test_subscriber_of_one_key_listens_to_its_partition_only(redis):
    """Where a topic has several, the other partitions cost it nothing; leaving ends the listening."""
    config = redis.config.model_copy(update={"topic_partitions": 4})
    async with Redis(config) as client, PubSub(client) as bus, PubSub(client) as other_bus:
        names = bus._names
        other = next(key for key in map(str, range(100)) if names.partition_of(key) != names.partition_of("a"))
        async with (
            bus.subscribe("a", type=int, policy="all") as updates,
            bus.subscribe(type=int, policy="all") as everything,
        ):
            assert (await bus.subscribers("a"), await bus.subscribers(other)) == (1, 1)
            for number, key in enumerate(("a", other, "a")):
                await other_bus.publish(key, number)
                await other_bus.flush()
            assert [event.value for event in await collect(updates, 2)] == [0, 2]
            assert sorted(event.value for event in await collect(everything, 3)) == [0, 1, 2]
        async with bus.subscribe("a"):
            async with asyncio.timeout(20):
                while await bus.subscribers(other):
                    await asyncio.sleep(0.005)
            assert await bus.subscribers("a") == 1
        async with asyncio.timeout(20):
            while await bus.subscribers("a"):
                await asyncio.sleep(0.005)


async def test_processes_that_disagree_about_partitions_are_told(redis, caplog):
    """They would never meet. The second to open raises; who is open when Redis forgets is told in the log."""
    config = redis.config.model_copy(update={"topic_partitions": 4})
    async with Redis(config) as other, PubSub(redis) as bus:
        message = "topic 'quotes' has partitions: 1, by the key 'aegis:quotes:partitions', and this process asks for 4"
        with pytest.raises(TopicPartitionsError, match=message):
            await PubSub(other).__aenter__()
        async with PubSub(other, topic="another"):
            pass
        await redis.execute("FLUSHALL")
        async with PubSub(other):
            await bus._pulse._compare_partitions()
    assert "and this process asks for 1; give all its processes the same REDIS_TOPIC_PARTITIONS" in caplog.text


async def test_urgent_ticks_are_trades_and_none_is_lost(redis):
    """With trade_safe: every trade in order, and the quote that stood before it, however slow the consumer is."""
    async with PubSub(redis) as bus, bus.subscribe("a", policy="trade_safe") as updates:
        for number in range(100):
            for quote in range(3):
                await bus.publish("a", ["quote", number, quote])
            await bus.publish("a", ["trade", number], urgent=True)
        await bus.publish("a", ["quote", 100, 0])
        await bus.publish("a", ["forced", 101], urgent=True, trade=False)
        await bus.flush()
        await eventually(lambda: bus.stats().received == 402)
        events = [event.value for event in await collect(updates, 201)]
    expected = [value for number in range(100) for value in (["quote", number, 2], ["trade", number])]
    assert events == [*expected, ["forced", 101]]


async def test_urgent_ticks_share_a_frame_while_another_is_in_flight(redis):
    """A burst of urgent ticks does not become a queue of one-tick frames."""
    async with PubSub(redis) as bus:
        for number in range(200):
            await bus.publish("a", number, urgent=True)
        await bus.flush()
        assert bus.stats().published == 200
        assert bus.stats().frames <= 4


async def test_conflating_outbox_keeps_the_newest_during_an_outage(valkey_server):
    """With conflate=True an outage costs one tick per key and all trades; what was folded is counted at both ends."""
    async with (
        FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy,
        Redis(RedisConfig(url=valkey_server.url)) as direct,
        Redis(RedisConfig(host=proxy.host, port=proxy.port)) as redis,
        PubSub(direct, topic="conflated") as listening,
        PubSub(redis, topic="conflated", conflate=True, outbox_max=50) as bus,
        listening.subscribe("a", "b", type=int, policy="all") as updates,
    ):
        await bus.publish("b", 0)
        await collect(updates, 1)
        proxy.freeze()
        for number in range(1, 1001):
            await asyncio.wait_for(bus.publish("a", number), 10)
            if number in {400, 800}:
                await bus.publish("b", number, trade=True)
        assert bus.stats().pending <= 4
        proxy.heal()
        events = await collect(updates, 1)
        while events[-1].value != 1000:
            events += await collect(updates, 1)
        await bus.flush()
        assert bus.stats().outbox_conflated + bus.stats().published == 1003
    assert [event.value for event in events if event.key == "b"] == [400, 800]
    assert len(events) < 20
    assert sum(event.conflated + 1 for event in events) == 1002


async def test_max_rate_holds_on_a_live_stream(redis):
    """Ten updates per second and key at most: the first at once, the newest in the end."""
    async with PubSub(redis) as bus, bus.subscribe("a", type=int, max_rate=10) as updates:
        loop, times, values = asyncio.get_running_loop(), [], []

        async def read() -> None:
            async for event in updates:
                times.append(loop.time())
                values.append(event.value)
                if event.value == 300:
                    return

        reading = asyncio.create_task(read())
        for number in range(301):
            await bus.publish("a", number)
            await asyncio.sleep(0.002)
        await asyncio.wait_for(reading, 20)
    assert values[-1] == 300
    for before, after in itertools.pairwise(times):
        assert after - before > 0.09
    assert updates.conflated + len(values) == 301


async def test_published_at_is_when_publish_was_called(valkey_server):
    """A tick that waited out an outage does not look fresh; server's clock."""
    async with (
        FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy,
        Redis(RedisConfig(url=valkey_server.url)) as direct,
        Redis(RedisConfig(host=proxy.host, port=proxy.port)) as redis,
        PubSub(direct, topic="late") as listening,
        PubSub(redis, topic="late") as bus,
        listening.subscribe("a", type=int) as updates,
    ):
        await bus.publish("a", 1)
        await collect(updates, 1)
        await eventually(lambda: bus._clock.known)
        proxy.freeze()
        seconds, micros = await direct.execute("TIME")
        before = int(seconds) + int(micros) / 1e6
        await bus.publish("a", 2)
        await asyncio.sleep(1.0)
        proxy.heal()
        [update] = await collect(updates, 1)
        seconds, micros = await direct.execute("TIME")
    assert int(seconds) + int(micros) / 1e6 - before >= 1.0
    assert -0.1 < update.published_at - before < 0.9


async def test_statistics_tell_both_sides(redis):
    """Ticks, frames, lag, heartbeats: what a person looks at first."""
    async with PubSub(redis) as bus, bus.subscribe(type=int, policy="all") as updates:
        await eventually(lambda: bus._clock.known)
        for number in range(100):
            await bus.publish(f"k{number}", number)
        await collect(updates, 100)
        await bus.flush()
        await eventually(lambda: bus.stats().heartbeats >= 2)
        stats = bus.stats()
        assert (stats.published, stats.received, stats.pending, stats.buffered) == (100, 100, 0, 0)
        assert 0 < stats.frames == stats.frames_received <= 100
        assert (stats.gaps, stats.repairs, stats.evicted, stats.conflated, stats.reconnects) == (0, 0, 0, 0, 0)
        assert stats.connected
        assert 0 < stats.lag_p50_s <= stats.lag_p99_s < 20
        assert updates.live
        assert "live" in repr(updates)
        assert "open" in repr(bus)


async def test_value_that_cannot_travel_is_refused_at_the_edge(redis):
    """The error names the key; nothing was published."""
    async with PubSub(redis) as bus:
        with pytest.raises(PayloadError, match="broadcast key 'a': cannot be published as JSON"):
            await bus.publish("a", object())
        with pytest.raises(ValueError, match="must not be empty"):
            await bus.publish("", 1)
        with pytest.raises(TypeError, match="must be text: 5930"):
            await bus.publish(5930, 1)
        await bus.flush()
        assert bus.stats().published == 0
        await bus.publish("a", "text")
        await bus.flush()
        with pytest.raises(PayloadError, match="does not fit the type"):
            await bus.last("a", int)


async def test_closed_bus_says_so(redis):
    """Before and after the block; a second opening, too."""
    bus = PubSub(redis)
    with pytest.raises(ClosedError):
        await bus.publish("a", 1)
    async with bus:
        await bus.publish("a", 1)
    with pytest.raises(ClosedError):
        await bus.publish("a", 1)
    with pytest.raises(ClosedError):
        await bus.subscribe("a").__aenter__()
    with pytest.raises(RuntimeError, match="make another"):
        await bus.__aenter__()


async def test_redis_closed_first_sends_what_is_pending(valkey_server):
    """The bus ends with the Redis under it, and loses nothing."""
    redis = Redis(RedisConfig(url=valkey_server.url))
    await redis.__aenter__()
    bus = PubSub(redis, topic="orphan")
    await bus.__aenter__()
    updates = await bus.subscribe("a").__aenter__()
    await bus.publish("a", 42)
    await redis.close()
    async with Redis(RedisConfig(url=valkey_server.url)) as other, PubSub(other, topic="orphan") as again:
        assert await again.last("a") == 42
    async with asyncio.timeout(20):
        async for _ in updates:
            pass
    with pytest.raises(ClosedError):
        await bus.publish("a", 43)
    await bus.__aexit__(None, None, None)


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_cancelled_while_subscribing_leaves_nothing(redis, turns):
    """Cancelled after any number of turns of the loop: no subscription, no channel, and the next one works."""
    async with PubSub(redis) as bus:
        await bus.publish("a", 1)
        await bus.flush()
        entering = asyncio.create_task(bus.subscribe("a", type=int).__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        entering.cancel()
        result = (await asyncio.gather(entering, return_exceptions=True))[0]
        if isinstance(result, BaseException):
            assert isinstance(result, asyncio.CancelledError)
            assert bus.stats().subscriptions == 0
        async with bus.subscribe("a", type=int) as updates:
            assert (await collect(updates, 1))[0].value == 1
            await bus.publish("a", 2)
            assert (await collect(updates, 1))[0].value == 2


async def test_cancelled_publisher_gives_its_place_to_the_next(valkey_server):
    """Waiting publishers are let in one by one; those cancelled meanwhile take nobody's place, and publish nothing."""
    async with (
        FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy,
        Redis(RedisConfig(url=valkey_server.url)) as direct,
        Redis(RedisConfig(host=proxy.host, port=proxy.port)) as redis,
        PubSub(direct, topic="crowded") as listening,
        PubSub(redis, topic="crowded", outbox_max=10) as bus,
        listening.subscribe(type=int, policy="all") as updates,
    ):
        proxy.freeze()
        for number in range(10):
            await bus.publish("a", number)
        waiting = [asyncio.create_task(bus.publish("a", 10 + number)) for number in range(100)]
        await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()
        proxy.heal()
        await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        events = await collect(updates, 60)
        await bus.flush()
        assert bus.stats().pending == 0
    assert [event.value for event in events] == [*range(10), *range(11, 110, 2)]
