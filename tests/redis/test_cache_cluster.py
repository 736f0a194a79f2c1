"""The cache on a cluster: a value and its lease in one slot, tags and batches across all of them."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from aegis.config import RedisConfig
from aegis.redis import Cache, Redis
from aegis.redis.caching.tether import Tether
from aegis.redis.connection.slots import slot_of_key
from aegis.testing import until

KEYS = [f"k{n}" for n in range(60)]


async def test_a_value_and_its_lease_share_a_slot(cluster):
    """Whatever braces the key itself has; the scripts need it."""
    shelf = Cache(cluster)._core.shelf
    for key in ("k", "a{b}c", "a}b", "{x}", "한글", "a{}b"):
        value, lease = shelf.value_key(key).encode(), shelf.lease_key(key).encode()
        assert slot_of_key(value) == slot_of_key(lease)


async def test_values_of_all_slots(cluster):
    """Set, read, deleted, loaded, one by one and many at once."""
    cache = Cache(cluster)
    values = dict.fromkeys(KEYS, "v")
    await cache.set_many(values)
    assert await cache.get_many(KEYS, str) == values
    assert await cache.delete("k1")
    assert await cache.get_or_set_many(KEYS, lambda keys: dict.fromkeys(keys, "new"), str) == {**values, "k1": "new"}
    assert await cache.get_or_set("single", lambda: "s", str, stale_s=5) == "s"
    assert await cache.delete_if("single", "s", str)


async def test_tags_cover_values_of_all_slots(cluster):
    """One command, though tag and values lie on different nodes."""
    cache, other = Cache(cluster), Cache(cluster)
    await cache.set_many(dict.fromkeys(KEYS, 1), tags=("t", "u"))
    assert len(await other.get_many(KEYS, int)) == len(KEYS)
    await cache.invalidate("t")
    assert await other.get_many(KEYS, int) == {}
    await cache.get_or_set_many(KEYS, lambda keys: dict.fromkeys(keys, 2), int, tags=("t",))
    assert len(await other.get_many(KEYS, int)) == len(KEYS)


async def test_one_load_for_all_clients(cluster, valkey_cluster):
    """The lease holds between clients; a delete meanwhile wins."""
    async with Redis(RedisConfig(url=valkey_cluster.url)) as second:
        caches, loads = (Cache(cluster), Cache(second)), []

        async def load() -> int:
            loads.append(1)
            await asyncio.sleep(0.2)
            return 1

        calls = [cache.get_or_set(key, load, int) for key in KEYS[:6] for cache in caches for _ in range(5)]
        assert await asyncio.gather(*calls) == [1] * 60
        assert len(loads) == 6
        loading = asyncio.create_task(caches[0].get_or_set("deleted", load, int))
        await until(lambda: len(loads) == 7)
        await caches[1].delete("deleted")
        assert await loading == 1
        assert await caches[1].get("deleted", int) is None


async def test_the_end_of_a_load_is_told_on_its_own_node_to_those_who_wait(cluster, valkey_cluster, monkeypatch):
    """Over a sharded channel, which is left afterwards; no other node hears of it, and a failed load is told, too."""
    heard, on_message = [], Tether._on_message

    def hear(tether: Tether, channel: bytes, payload: object) -> None:
        heard.append(channel)
        on_message(tether, channel, payload)

    monkeypatch.setattr(Tether, "_on_message", hear)
    async with Redis(RedisConfig(url=valkey_cluster.url)) as second:
        loading, waiting = Cache(cluster), Cache(second)
        ended = asyncio.Event()
        channel = loading._core.shelf.ends_channel("told").encode()
        owner = cluster.servers.owner(slot_of_key(channel))

        async def load() -> int:
            await ended.wait()
            return 1

        first = asyncio.create_task(loading.get_or_set("told", load, int))
        while loading.stats().loads < 1:
            await asyncio.sleep(0.001)
        other = asyncio.create_task(waiting.get_or_set("told", load, int))
        async with asyncio.timeout(20):
            while channel not in await owner.ask(("PUBSUB", "SHARDCHANNELS"), 5.0):
                await asyncio.sleep(0.001)
            before = await bus_messages(cluster)
            ended.set()
            assert await first == await other == 1
            while channel not in heard:  # the value may have been found by the look before
                await asyncio.sleep(0.001)
            while await owner.ask(("PUBSUB", "SHARDCHANNELS"), 5.0):
                await asyncio.sleep(0.001)
        assert await bus_messages(cluster) == before


async def bus_messages(cluster: Redis) -> int:
    """Classic messages that nodes have passed to each other."""
    told = [await node.ask(("CLUSTER", "INFO"), 5.0) for node in cluster.servers.nodes]
    return sum(int(info.partition(b"messages_publish_sent:")[2].split()[0]) for info in told if b"publish_sent" in info)


async def test_keys_of_all_nodes_are_listed(cluster):
    """keys() and survey() walk through every primary."""
    cache = Cache(cluster)
    await cache.set_many(dict.fromkeys(KEYS, 1), tags=("t",))
    with pytest.raises(ZeroDivisionError):
        await cache.get_or_set("quiet", lambda: 1 // 0, error_ttl_s=60)
    assert await cache.keys("k*") == sorted(KEYS)
    survey = await cache.survey()
    assert (survey.values, survey.tags, survey.failing) == (len(KEYS), 1, 1)


async def test_the_tier_hears_of_changes_on_every_node(cluster, valkey_cluster):
    """Keys of all primaries are served from the process, until another client changes them."""
    async with Redis(RedisConfig(url=valkey_cluster.url)) as second:
        cache, other = Cache(cluster), Cache(second)
        await cache.set_many(dict.fromkeys(KEYS, "old"))
        async with asyncio.timeout(20):
            while cache.stats().local_hits < len(KEYS):
                await cache.get_many(KEYS, str)
                await asyncio.sleep(0.01)
        await other.set_many(dict.fromkeys(KEYS, "new"))
        async with asyncio.timeout(2):
            while await cache.get_many(KEYS, str) != dict.fromkeys(KEYS, "new"):
                await asyncio.sleep(0.001)


async def test_what_was_read_of_a_primary_before_its_feed_was_there_is_forgotten(cluster, valkey_cluster):
    """A primary that joins was never down: its changes of before are unknown, though all other feeds are trusted."""
    async with Redis(RedisConfig(url=valkey_cluster.url)) as second:
        cache = Cache(cluster)
        await cache.get("the first use")
        await cache.set_many(dict.fromkeys(KEYS, "old"))
        await until(lambda: cache.stats().local_trusted)
        feeds = cache._core.tether._feed
        place = cluster.servers.topology.owners[slot_of_key(cache._core.shelf.value_key("k1"))]
        await feeds._members.pop(place).close()  # as if the map did not have it yet
        del feeds._heard[place]
        await until(partial(is_local, cache))
        await Cache(second).set_many(dict.fromkeys(KEYS, "new"))
        feeds._follow()
        async with asyncio.timeout(5):
            while await cache.get("k1", str) != "new":
                await asyncio.sleep(0.001)


async def test_one_primary_that_hangs_is_found_once(cluster, valkey_cluster):
    """While it hangs, the others answer: the cache does not take that for the end of the outage."""
    cache = Cache(cluster, patience_s=0.2, local_entries=0)
    await cache.get_or_set_many(KEYS, lambda keys: dict.fromkeys(keys, 1), int)
    probe, tried = cache._core.shelf.outage._ask, []

    async def counted() -> None:
        try:
            await probe()
        finally:
            tried.append(1)

    cache._core.shelf.outage._ask = counted
    hanging = valkey_cluster.primary_of(slot_of_key("k1"))
    hanging.pause()
    try:
        await cache.get("k1", int)
        await until(lambda: len(tried) > 1 or cache.stats().state == "up")
        assert cache.stats().state == "down"
    finally:
        hanging.resume()
    await until(lambda: cache.stats().state == "up")


async def is_local(cache: Cache) -> bool:
    """Whether the value is served from the process."""
    assert await cache.get("k1", str) == "old"
    return "k1" in cache._core.tier.entries
