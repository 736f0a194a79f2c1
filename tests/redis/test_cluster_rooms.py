"""Every room on a real cluster, unchanged but for the URL: limits, cache, broadcast; and how they spread."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import msgspec

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedCluster
from aegis.errors import ServerLostError
from aegis.redis import Cache, Decision, Gap, PubSub, Rate, RateLimit, RateLimiter, Redis, Update
from aegis.redis.broadcast.wire import Names
from aegis.redis.connection.slots import slot_of_key
from aegis.redis.limiting.gate import key_name


class Quote(msgspec.Struct):
    price: int


def share(keys: list[str], nodes: int = 3) -> list[int]:
    """How many of the keys lie in each third of the slots."""
    counted = Counter(slot_of_key(key) * nodes // 16_384 for key in keys)
    return [counted[node] for node in range(nodes)]


def test_limits_keys_and_partitions_are_spread() -> None:
    """Accounts and cached keys by hash; the partitions of every topic exactly, because they are few."""
    limit = RateLimit("kis", Rate(5, per=1))
    assert all(250 < count < 420 for count in share([key_name("aegis", limit, f"account {i}") for i in range(1000)]))
    assert all(250 < count < 420 for count in share([f"aegis:cache:{{stock:{i}}}" for i in range(1000)]))
    for topic in ("quotes", "trades", "호가"):
        names = Names("aegis", topic)
        for nodes in (1, 2, 3, 4, 6, 8, 16):
            counts = share([names.book(partition) for partition in range(names.partitions)], nodes)
            assert max(counts) - min(counts) <= 1
        for partition in range(names.partitions):
            of_one = (names.book(partition), names.channel(partition), names.log(partition))
            assert len({slot_of_key(name) for name in of_one}) == 1


async def test_scripts_touch_no_key_that_they_do_not_declare(redis: Redis) -> None:
    """The server tells (MONITOR) what each script asks of it while every room works: only about the script's KEYS."""
    declared: list[str] = []
    asked: Counter[str] = Counter()
    await use_every_script(redis)  # from here on the server knows them, and they are called by hash
    async with redis.raw.monitor() as monitor:
        working = asyncio.create_task(use_every_script(redis))
        async with asyncio.timeout(30):
            while (told := await monitor.next_command())["command"] != "ECHO done":
                command, *rest = told["command"].split(" ")
                if command == "EVALSHA":
                    declared = rest[2 : 2 + int(rest[1])]
                elif told["client_type"] == "lua" and command not in {"TIME", "PUBLISH"}:  # those are of no key
                    asked[command] += 1
                    assert rest[0] in declared, told["command"]
        await working
    assert asked.keys() >= {"LINDEX", "LPUSH", "GET", "SET", "DEL", "HGET", "HSET"}, "a room is missing"


async def use_every_script(redis: Redis) -> None:
    limiter, cache, limit = RateLimiter(redis), Cache(redis), RateLimit("watched", Rate(2, per=0.1))
    await asyncio.gather(*(limiter.wait(limit, key="account") for _ in range(5)))
    assert (await limiter.peek(limit, key="account")).remaining >= 0
    await limiter.allow(limit, key="account")
    await limiter.hold(limit, 0.05, key="account")
    task = asyncio.create_task(limiter.wait(limit, key="account"))
    await asyncio.sleep(0.02)
    task.cancel()
    await cache.get_or_set("k", lambda: 1, int, tags=("t",))
    await cache.set("k", 2)
    await cache.delete_if("k", 2, int)
    await cache.delete("k")
    with contextlib.suppress(ZeroDivisionError):
        await cache.get_or_set("failing", lambda: 1 // 0, int)
    async with PubSub(redis) as bus:
        await bus.publish("005930", Quote(1), urgent=True)
        await bus.flush(10)
    await redis.execute("ECHO", "done")


async def test_a_limit_is_shared_by_two_clients_of_a_cluster(valkey_cluster: EmbeddedCluster) -> None:
    """Exactly so many permits, whoever asks; many limits at once; wait, hold, peek and reset work."""
    config = RedisConfig(url=valkey_cluster.url)
    async with Redis(config) as one, Redis(config) as other:
        await one.execute("FLUSHALL")
        limiters = [RateLimiter(one), RateLimiter(other)]
        limits = [RateLimit(f"limit {i}", Rate(5, per=30)) for i in range(12)]
        for limit in limits:
            decisions = await asyncio.gather(*(limiter.allow(limit) for limiter in limiters for _ in range(5)))
            assert sum(decision.allowed for decision in decisions) == 5
        usage = await limiters[1].peek(limits[0])
        assert (usage.used, usage.remaining) == (5, 0)
        await limiters[0].reset(limits[0])
        assert await limiters[1].wait(limits[0], timeout=5) < 5
        quick = RateLimit("quick", Rate(3, per=0.2))
        waited = await asyncio.gather(*(limiter.wait(quick, timeout=20) for limiter in limiters for _ in range(6)))
        assert max(waited) >= 0.6
        await limiters[0].hold(quick, 0.3)
        assert await limiters[1].wait(quick, timeout=20) > 0.1


async def test_a_limit_pauses_for_a_window_when_another_server_keeps_it(valkey_cluster: EmbeddedCluster) -> None:
    """A failover may have lost the last permits, and looks like this: the same keys, another server."""
    limit = RateLimit("moving", Rate(5, per=0.5))
    slot = slot_of_key(key_name("aegis", limit, ""))
    async with Redis(RedisConfig(url=valkey_cluster.url)) as redis:
        await redis.execute("FLUSHALL")
        limiter = RateLimiter(redis)
        assert (await limiter.allow(limit)).allowed
        source = valkey_cluster.primary_of(slot)
        target = next(node for node in valkey_cluster.nodes[:3] if node is not source)
        await asyncio.to_thread(valkey_cluster.move_slot, slot, target)
        decision = await first_answer(limiter, limit)
        assert not decision.allowed
        assert 0.3 < decision.retry_after < 2.0
        assert await limiter.wait(limit, timeout=20) > 0.1
        await asyncio.to_thread(valkey_cluster.move_slot, slot, source)


async def first_answer(limiter: RateLimiter, limit: RateLimit) -> Decision:
    """`allow` says once that its question may have reached another server than it thought."""
    try:
        return await limiter.allow(limit)
    except ServerLostError:
        return await limiter.allow(limit)


async def test_the_cache_works_across_slots(valkey_cluster: EmbeddedCluster) -> None:
    """Batches, tags, single flight and deletion of keys of all nodes; a second process sees the same."""
    config = RedisConfig(url=valkey_cluster.url)
    async with Redis(config) as one, Redis(config) as other:
        await one.execute("FLUSHALL")
        mine, theirs = Cache(one, patience_s=10), Cache(other, patience_s=10)  # no answer is late on a busy machine
        values = {f"k{i}": i for i in range(200)}
        await mine.set_many(values, ttl=60)
        assert await theirs.get_many(list(values), int) == values
        calls: list[list[str]] = []

        async def load_many(keys: list[str]) -> dict[str, int]:
            calls.append(list(keys))
            return {key: int(key[1:]) for key in keys}

        wanted = [f"n{i}" for i in range(100)]
        got = await asyncio.gather(*(c.get_or_set_many(wanted, load_many, int, ttl=60) for c in (mine, theirs)))
        assert got[0] == got[1] == {key: int(key[1:]) for key in wanted}
        assert sorted(key for call in calls for key in call) == sorted(wanted)
        for i in range(20):
            await mine.set(f"tagged{i}", i, ttl=60, tags=("one", "two"))
        await theirs.invalidate("two")
        async with asyncio.timeout(10):
            while any([await cache.get(f"tagged{i}", int) is not None for cache in (mine, theirs) for i in range(20)]):
                await asyncio.sleep(0.02)
        await asyncio.gather(*(theirs.delete(key) for key in values))
        async with asyncio.timeout(10):
            while await mine.get_many(list(values), int):
                await asyncio.sleep(0.02)


async def test_the_local_tier_is_told_of_changes_on_every_node(valkey_cluster: EmbeddedCluster) -> None:
    """Invalidations of keys of all three primaries arrive; hits in between cost no command."""
    config = RedisConfig(url=valkey_cluster.url)
    async with Redis(config) as one, Redis(config) as other:
        await one.execute("FLUSHALL")
        mine, theirs = Cache(one, local_entries=1000), Cache(other, local_entries=0)
        keys = [f"k{i}" for i in range(30)]
        await theirs.set_many(dict.fromkeys(keys, 1), ttl=60)
        async with asyncio.timeout(20):
            while mine.stats().local_entries < len(keys):
                await mine.get_many(keys, int)
                await asyncio.sleep(0.05)
        for round_ in range(2, 5):
            await theirs.set_many(dict.fromkeys(keys, round_), ttl=60)
            async with asyncio.timeout(10):
                while await mine.get_many(keys, int) != dict.fromkeys(keys, round_):
                    await asyncio.sleep(0.01)


async def test_quotes_of_every_partition_arrive(valkey_cluster: EmbeddedCluster) -> None:
    """Sharded channels: all values of all partitions, in order, with last values first; no gap, and who listens."""
    config = RedisConfig(url=valkey_cluster.url)
    async with Redis(config) as one, Redis(config) as other:
        await one.execute("FLUSHALL")
        keys = [f"{i:06d}" for i in range(60)]
        async with PubSub(one) as publisher, PubSub(other) as listener:
            await publisher.publish(keys[0], Quote(0))
            await publisher.flush(10)
            async with listener.subscribe(type=Quote, policy="all") as updates:
                assert await listener.subscribers() == 1
                for price in range(1, 11):
                    for key in keys:
                        await publisher.publish(key, Quote(price))
                await publisher.flush(10)
                seen: dict[str, list[int]] = {key: [] for key in keys}
                async with asyncio.timeout(20):
                    while any(prices[-1:] != [10] for prices in seen.values()):
                        event = await anext(updates)
                        assert isinstance(event, Update), event
                        seen[event.key].append(event.value.price)
            assert seen[keys[0]] == list(range(11))
            assert all(prices == list(range(1, 11)) for key, prices in seen.items() if key != keys[0])
            assert await listener.last(keys[5], Quote) == Quote(10)


async def test_a_partition_that_moves_to_another_node_goes_on(valkey_cluster: EmbeddedCluster) -> None:
    """The slot of a channel is moved under a subscription: the next values arrive, what was missed is repaired."""
    config = RedisConfig(url=valkey_cluster.url)
    async with Redis(config) as redis, PubSub(redis, topic="moving") as bus:
        key = "005930"
        slot = slot_of_key(bus._names.channel(bus._names.partition_of(key)))
        source = valkey_cluster.primary_of(slot)
        target = next(node for node in valkey_cluster.nodes[:3] if node is not source)
        async with bus.subscribe(key, type=Quote) as updates:
            price = 0
            for place in (target, source):
                await asyncio.to_thread(valkey_cluster.move_slot, slot, place)
                for _ in range(3):
                    price += 1
                    await bus.publish(key, Quote(price), urgent=True)
                async with asyncio.timeout(20):
                    while True:
                        event = await anext(updates)
                        if not isinstance(event, Gap) and event.value.price == price:
                            break
