"""The contract of the broadcast, clause by clause, on real processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import Any

from broadcast_fleet import fleet

from aegis.redis import PubSub, Redis
from aegis.testing import FaultProxy

TICKS = 1000


async def cut(proxy: FaultProxy) -> None:
    """Cut every connection, again and again."""
    while True:
        await asyncio.sleep(0.1)
        proxy.reset()


async def test_a_newest_value_arrives_though_everything_in_between_is_lost(redis, valkey_server):
    """(a) The subscriber's connections are cut while another process publishes: in the end it has the newest of all."""
    async with (
        FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy,
        fleet(("subscribe", proxy.url, "latest"), ("publish", valkey_server.url, "p", str(TICKS))) as children,
    ):
        subscriber, publisher = children
        cutting = asyncio.create_task(cut(proxy))
        await publisher.asked()
        cutting.cancel()
        seen = await subscriber.asked()
        assert proxy.accepted > 2
    async with PubSub(redis) as bus:
        for number in range(TICKS - 19, TICKS + 1):
            assert seen["newest"][f"p-{number % 20}"] == await bus.last(f"p-{number % 20}") == ["p", number]
    assert seen["newest"]["shared"] == ["p", TICKS]
    assert seen["backwards"] == 0


async def test_b_every_loss_is_reported_exactly(redis, valkey_server):
    """(b) Of every stream: what was announced here and what lies in gaps make up all that was published, once each."""
    async with (
        FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy,
        fleet(("subscribe", proxy.url, "all")) as [subscriber],
        fleet(*[("publish", valkey_server.url, name, str(TICKS)) for name in ("p", "q")]) as publishers,
    ):
        cutting = asyncio.create_task(cut(proxy))
        published = [done["published"] for done in await asyncio.gather(*(child.asked() for child in publishers))]
        cutting.cancel()
        seen = await subscriber.asked()
    arrived = sum(len(numbers) for numbers in seen["numbers"].values())
    lost = sum(gap[3] for gap in seen["gaps"])
    assert lost > 0
    assert arrived + lost == sum(published) == 2 * TICKS * 11 // 10
    ranges: dict[str, list[tuple[int, int]]] = {}
    for stream, first, last, count in seen["gaps"]:
        assert count == last - first + 1
        ranges.setdefault(stream, []).append((first, last))
    for found in ranges.values():
        assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
    assert seen["backwards"] == 0
    for name in ("p", "q"):
        assert seen["newest"][f"{name}-0"] == [name, TICKS]


async def test_c_memory_of_a_consumer_that_never_reads_does_not_grow_with_ticks(redis, valkey_server):
    """(c) It holds one value per key, or its ring: five times the ticks cost no more memory."""
    async with (
        fleet(("never_read", valkey_server.url, "latest"), ("never_read", valkey_server.url, "all")) as listeners,
        PubSub(redis) as bus,
    ):
        marks: list[list[dict[str, Any]]] = []
        for total in (5_000, 30_000):
            said = [await child.asked() for child in listeners]
            while any(one["received"] < total for one in said):
                for number in range(1000):
                    await bus.publish(f"k{number % 20}", {"number": number, "padding": "x" * 100})
                await bus.flush()
                said = [await child.asked() for child in listeners]
            marks.append(said)
    newest, ring = marks[-1]
    assert newest["pending"] == 20
    assert ring["pending"] <= 1000 + 20
    assert ring["evicted"] >= ring["received"] - 1000
    for before, after in zip(*marks, strict=True):
        assert after["rss_kib"] - before["rss_kib"] < 2 * 1024  # 25,000 values would be above 5 MiB


async def test_d_one_consumer_delays_no_other(redis):
    """(d) Beside a hundred consumers that never read and one that cannot, a reader gets every tick."""
    async with PubSub(redis) as bus, contextlib.AsyncExitStack() as stack:
        for policy in ("latest", "merge", "trade_safe", "all"):
            for _ in range(25):
                await stack.enter_async_context(bus.subscribe("a", policy=policy, ring=10))
        failing = await stack.enter_async_context(bus.subscribe("a", type=dict, policy="all"))
        reader = await stack.enter_async_context(bus.subscribe("a", type=int, policy="all"))
        for number in range(200):
            await bus.publish("a", number, urgent=True)
            event = await asyncio.wait_for(anext(reader), 20)
            assert (event.value, event.snapshot) == (number, False)
        assert failing.pending == 200


async def test_e_order_per_key_is_the_publishers_in_every_process(redis, valkey_server):
    """(e) Three producers, two subscribers, a shared key: each producer's order holds, versions never go back."""
    names = ("p", "q", "r")
    async with (
        fleet(*[("subscribe", valkey_server.url, "all")] * 2) as subscribers,
        fleet(*[("publish", valkey_server.url, name, str(TICKS)) for name in names]) as publishers,
    ):
        await asyncio.gather(*(publisher.asked() for publisher in publishers))
        seen = await asyncio.gather(*(subscriber.asked() for subscriber in subscribers))
    for one in seen:
        assert one["gaps"] == []
        assert one["backwards"] == 0
        for name in names:
            for at in range(20):
                assert one["numbers"][f"{name}-{at}"] == [n for n in range(1, TICKS + 1) if n % 20 == at]
    assert seen[0]["numbers"]["shared"] == seen[1]["numbers"]["shared"]  # the same order for everybody
    assert len(seen[0]["numbers"]["shared"]) == 3 * TICKS // 10


async def test_lost_tail_on_a_quiet_key_shows_within_a_second(redis):
    """The last announcement before silence is lost: the heartbeat finds it, and the newest value comes."""
    async with (
        Redis(redis.config) as other,
        PubSub(other) as publisher,
        PubSub(redis) as bus,
        bus.subscribe("a", type=int) as updates,
    ):
        await publisher.publish("a", 1)
        assert (await asyncio.wait_for(anext(updates), 20)).value == 1
        bus._receiver._on_frame = lambda place, frame: None
        await publisher.publish("a", 2)
        await publisher.flush()
        published_at = time.monotonic()
        gap = await asyncio.wait_for(anext(updates), 20)
        newest = await asyncio.wait_for(anext(updates), 20)
        took_s = time.monotonic() - published_at
    assert (gap.lost, newest.value, newest.snapshot) == (1, 2, True)
    assert took_s < 3.0  # the contract says a second and a round trip; a loaded machine gets some more


async def test_number_of_subscribing_processes(redis, valkey_server):
    """Processes that listen are counted once, however many subscriptions they have."""
    async with PubSub(redis) as bus:
        assert await bus.subscribers() == 0
        async with fleet(("never_read", valkey_server.url, "latest")):
            assert await bus.subscribers() == 1
            async with bus.subscribe("a"), bus.subscribe("a"), bus.subscribe("b"):
                assert (await bus.subscribers(), await bus.subscribers("a")) == (2, 2)


async def test_fifty_thousand_messages_do_not_grow_the_subscriber(redis, valkey_server):
    """The leak of hiredis (97 bytes per push on RESP3) is not there. A million: benchmarks/pubsub_memory."""
    channel = (names := PubSub(redis)._names).channel(names.partition_of("a"))
    async with fleet(("never_read", valkey_server.url, "latest")) as [listener]:
        marks = []
        for total in (10_000, 60_000):
            while (said := await listener.asked())["heard"] < total:
                await redis.pipeline([("PUBLISH", channel, b"h")] * 2000)
            marks.append(said["rss_kib"])
    assert marks[1] - marks[0] < 2048  # the leak would be 4,700 KiB
