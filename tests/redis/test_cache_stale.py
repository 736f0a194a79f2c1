"""Stale values are served at once and refreshed once; hot ones before they expire."""

from __future__ import annotations

import asyncio
import math

import pytest
from cache_fleet import Fleet

from aegis.redis import Cache
from aegis.redis.caching.reader import is_early
from aegis.testing import until


async def expire(redis, key: str, left_ms: int) -> None:
    """As if time had passed: so much of the time to live is left."""
    await redis.execute("PEXPIRE", f"aegis:cache:{{{key}}}", left_ms)


async def forgotten(cache: Cache, key: str) -> None:
    """Until this process has heard of the change (without a tier it asks for the age of each stored value once)."""
    cache._core.reader._soft_at.clear()
    await until(lambda: key not in cache._core.tier.entries)


@pytest.mark.parametrize("local_entries", [0, 1000])
async def test_a_stale_value_is_served_at_once_and_refreshed(redis, local_entries):
    """Past its ttl and within stale_s the old value comes without waiting, and a load brings the new one."""
    cache, gate, loads = Cache(redis, local_entries=local_entries), asyncio.Event(), 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        if loads > 1:
            await gate.wait()
        return loads

    async def get() -> int:
        return await cache.get_or_set("k", load, int, ttl=10, stale_s=60)

    assert await get() == 1
    assert await get() == 1
    await expire(redis, "k", 30_000)
    await forgotten(cache, "k")
    for _ in range(10):
        assert await get() == 1  # also from the process itself, where there is a tier
    assert await cache.get("k", int) is None  # get does not serve what is stale
    assert await cache.get_many(["k"], int) == {}
    await until(lambda: loads == 2)
    assert await get() == 1
    gate.set()
    await until(lambda: not cache._core.loads.flights)
    async with asyncio.timeout(2):
        while await get() != 2:
            await asyncio.sleep(0.001)
    stats = cache.stats()
    assert (stats.loads, stats.refreshes) == (2, 1)
    assert stats.stale_serves >= 11
    assert (stats.local_hits > 0) == (local_entries > 0)


async def test_one_refresh_in_the_fleet(redis, valkey_server):
    """Four processes serve the stale value to many callers; one of them loads."""
    job = """
    async def job(cache, redis, say, told):
        async def load():
            await redis.execute("INCR", "loads")
            while not await redis.execute("GET", "gate"):
                await asyncio.sleep(0.005)
            return "new"
        async def ask():
            return set(await asyncio.gather(*(cache.get_or_set("k", load, str, ttl=10, stale_s=60) for _ in range(20))))
        say(list(await ask()))
        await told()
        while await ask() != {"new"}:
            await asyncio.sleep(0.01)
        say("new")
    """
    cache = Cache(redis)
    assert await cache.get_or_set("k", lambda: "old", str, ttl=10, stale_s=60) == "old"
    await expire(redis, "k", 30_000)
    with Fleet(valkey_server.url) as fleet:
        workers = [fleet.start(job) for _ in range(4)]
        for worker in workers:
            assert await worker.said() == ["old"]
        await redis.execute("SET", "gate", 1)
        for worker in workers:
            worker.tell()
        assert [await worker.said() for worker in workers] == ["new"] * 4
    assert await redis.execute("GET", "loads") == b"1"


async def test_a_stale_value_is_served_when_the_loader_fails(redis, caplog):
    """As long as stale_s lasts; the loader is asked once per error_ttl_s, and the log says so once."""
    cache, loads = Cache(redis), 0

    def load() -> int:
        nonlocal loads
        loads += 1
        if loads > 1:
            raise OSError("upstream")
        return 1

    async def get() -> int:
        return await cache.get_or_set("k", load, int, ttl=10, stale_s=60, error_ttl_s=0.2)

    assert await get() == 1
    await expire(redis, "k", 30_000)
    for _ in range(20):
        assert await get() == 1
        await asyncio.sleep(0.001)
    assert loads == 2
    async with asyncio.timeout(5):
        while loads < 4:
            assert await get() == 1
            await asyncio.sleep(0.01)
    assert [record.message for record in caplog.records if "refresh" in record.message] == [
        "cache 'aegis': refresh of 'k' failed, the old value is served: OSError('upstream')"
    ]
    await redis.execute("DEL", "aegis:cache:{k}")
    await forgotten(cache, "k")
    with pytest.raises(OSError, match="upstream"):
        await get()


async def test_a_refresh_that_failed_is_not_asked_for_again(redis):
    """For `error_ttl_s` the stale value comes from the process, and nobody asks Redis whether he may load."""
    cache, loaded = Cache(redis), [1]

    async def get() -> int:
        return await cache.get_or_set("k", loaded.pop, int, ttl=10, stale_s=60, error_ttl_s=60)

    assert await get() == 1
    await expire(redis, "k", 30_000)
    await forgotten(cache, "k")
    await until(lambda: cache.stats().local_trusted)
    assert await get() == 1  # and begins to load, for which there is nothing
    await until(lambda: cache.stats().load_errors and "k" in cache._core.tier.entries and not cache._core.loads.flights)
    before = redis.stats().commands
    for _ in range(20):
        assert await get() == 1
        await asyncio.sleep(0)
    assert redis.stats().commands == before


async def test_who_wants_no_stale_value_waits(redis):
    """Another caller's stale_s does not make us take an old value."""
    cache = Cache(redis)
    await cache.get_or_set("k", lambda: 1, int, ttl=10, stale_s=60)
    await expire(redis, "k", 30_000)
    await forgotten(cache, "k")
    assert await cache.get_or_set("k", lambda: 2, int, ttl=10) == 2


async def test_nothing_is_served_longer_than_it_was_stored_for(redis):
    """Another caller's long stale_s does not prolong a value in the process beyond its end in Redis."""
    cache = Cache(redis, jitter=0.0)

    async def get(value: int, stale_s: float) -> int:
        return await cache.get_or_set("k", lambda: value, int, ttl=0.3, stale_s=stale_s)

    async with asyncio.timeout(5):
        while "k" not in cache._core.tier.entries:
            await get(1, 0.2)
            await asyncio.sleep(0.001)
    entry = cache._core.tier.entries["k"]
    await asyncio.sleep(max(0.0, entry.expires_at - asyncio.get_running_loop().time()) + 0.01)
    assert await get(2, 600) == 2


async def test_a_refresh_outlives_its_callers(redis):
    """The caller who was served may be cancelled or gone: the refresh goes on."""
    cache, gate = Cache(redis), asyncio.Event()
    await cache.get_or_set("k", lambda: 1, int, ttl=10, stale_s=60)
    await expire(redis, "k", 30_000)
    await forgotten(cache, "k")

    async def load() -> int:
        await gate.wait()
        return 2

    caller = asyncio.create_task(cache.get_or_set("k", load, int, ttl=10, stale_s=60))
    assert await caller == 1
    impatient = asyncio.create_task(cache.get_or_set("k", load, int, ttl=10))  # boards the refresh
    await until(lambda: cache.stats().joined == 1)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    gate.set()
    async with asyncio.timeout(2):
        while await cache.get("k", int) != 2:
            await asyncio.sleep(0.001)


async def test_deleted_while_refreshing_stays_deleted(redis):
    """The refresh of a stale value does not bring it back."""
    cache, gate, began = Cache(redis), asyncio.Event(), asyncio.Event()
    await cache.get_or_set("k", lambda: 1, int, ttl=10, stale_s=60)
    await expire(redis, "k", 30_000)
    await forgotten(cache, "k")

    async def load() -> int:
        began.set()
        await gate.wait()
        return 2

    assert await cache.get_or_set("k", load, int, ttl=10, stale_s=60) == 1
    await began.wait()
    await cache.delete("k")
    gate.set()
    await until(lambda: cache.stats().refused_stores == 1)
    assert await cache.get("k", int) is None


@pytest.mark.parametrize("local_entries", [0, 1000])
async def test_hot_keys_are_refreshed_before_they_expire(redis, local_entries):
    """A value that is read all the time is loaded early by one caller, and no caller ever waits for it."""
    cache, loads = Cache(redis, local_entries=local_entries, jitter=0.0), 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.3)
        return loads

    async def get() -> int:
        return await cache.get_or_set("k", load, int, ttl=3)

    assert await get() == 1
    async with asyncio.timeout(10):
        while (value := await get()) == 1:
            await asyncio.sleep(0.001)
    assert value == 2
    stats = cache.stats()
    assert (stats.misses, stats.refreshes) == (1, 1)


async def test_without_eagerness_nothing_is_early(redis):
    """eagerness=0: the value expires, and the next caller waits."""
    cache, loads = Cache(redis, eagerness=0.0, jitter=0.0), 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.02)
        return loads

    async with asyncio.timeout(3):
        while await cache.get_or_set("k", load, int, ttl=0.2) == 1:
            await asyncio.sleep(0.001)
    assert (cache.stats().misses, cache.stats().refreshes) == (2, 0)


@pytest.mark.parametrize("loads_left", [0.5, 1.0, 2.0, 4.0])
def test_early_refreshes_follow_the_formula(loads_left):
    """The chance that a caller refreshes is exp(-time left / load time): XFetch, within sampling error."""
    tries = 20_000
    early = sum(is_early(loads_left * 0.3, 0.3, 1.0) for _ in range(tries))
    expected = math.exp(-loads_left)
    assert abs(early / tries - expected) < 5 * math.sqrt(expected / tries)


async def test_negative_stale_is_refused(redis):
    """A ValueError names them and the key."""
    with pytest.raises(ValueError, match="stale_s=-1"):
        await Cache(redis).get_or_set("k", lambda: 1, stale_s=-1)
    with pytest.raises(ValueError, match="error_ttl_s=-1"):
        await Cache(redis).get_or_set("k", lambda: 1, error_ttl_s=-1)
