"""The cache's main promises, against a real server."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from aegis.config import RedisConfig
from aegis.redis import TTL, Cache, Redis


class Stock(msgspec.Struct, frozen=True):
    code: str
    price: int


async def test_a_value_comes_back_typed(redis):
    """What was set is read as the type that was asked for, in one process or another."""
    cache = Cache(redis)
    await cache.set("stock:005930", Stock("005930", 70_000), ttl=TTL.MEDIUM)
    assert await Cache(redis).get("stock:005930", Stock) == Stock("005930", 70_000)
    assert await cache.get("stock:000660", Stock) is None


async def test_a_hundred_callers_cause_one_load(redis):
    """Callers of one process join the load that is under way."""
    cache, loads = Cache(redis), 0

    async def load() -> Stock:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.02)
        return Stock("005930", loads)

    values = await asyncio.gather(*(cache.get_or_set("s", load, Stock) for _ in range(100)))
    assert values == [Stock("005930", 1)] * 100
    assert cache.stats().loads == 1


async def test_two_caches_cause_one_load(redis):
    """Two contenders, as two processes are, share one load through the lease."""
    first, second, loads = Cache(redis), Cache(redis), 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.05)
        return loads

    assert await asyncio.gather(first.get_or_set("k", load, int), second.get_or_set("k", load, int)) == [1, 1]


async def test_delete_during_a_load_wins(redis):
    """A load that began before the delete does not store its old value."""
    cache, began, gate = Cache(redis), asyncio.Event(), asyncio.Event()

    async def load() -> int:
        began.set()
        await gate.wait()
        return 1

    flight = asyncio.create_task(cache.get_or_set("k", load, int))
    await began.wait()
    await cache.delete("k")
    gate.set()
    assert await flight == 1
    assert await cache.get("k", int) is None


async def test_delete_if_removes_only_what_was_seen(redis):
    """A token that another process has renewed meanwhile stays."""
    cache = Cache(redis)
    await cache.set("token", "new")
    assert not await cache.delete_if("token", "old", str)
    assert await cache.delete_if("token", "new", str)
    assert await cache.get("token", str) is None


async def test_ttl_may_follow_from_the_value(redis):
    """A function of the loaded value is the time to live, exactly."""
    cache = Cache(redis)
    await cache.get_or_set("token", lambda: {"expires_in": 100}, dict, ttl=lambda value: value["expires_in"])
    assert 99_000 < await redis.execute("PTTL", "aegis:cache:{token}") <= 100_000


async def test_a_failing_loader_runs_once(redis):
    """All callers get the error, and so do those of the next second."""
    cache = Cache(redis)

    async def load() -> int:
        await asyncio.sleep(0.01)
        raise ValueError("upstream")

    outcomes = await asyncio.gather(*(cache.get_or_set("k", load, int) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(each, ValueError) for each in outcomes)
    assert len({id(each) for each in outcomes}) == 10
    with pytest.raises(ValueError, match="upstream"):
        await cache.get_or_set("k", load, int)
    assert cache.stats().loads == 1


async def test_a_cancelled_leader_leaves_the_load_to_the_others(redis):
    """The first caller's cancellation is its own affair."""
    cache, began, gate = Cache(redis), asyncio.Event(), asyncio.Event()

    async def load() -> int:
        began.set()
        await gate.wait()
        return 1

    leader = asyncio.create_task(cache.get_or_set("k", load, int))
    await began.wait()
    other = asyncio.create_task(cache.get_or_set("k", load, int))
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    gate.set()
    assert await other == 1


async def test_invalidating_a_tag_removes_what_carries_it(redis):
    """Also what is being loaded at that moment."""
    cache = Cache(redis)
    await cache.set("a", 1, tags=("x",))
    await cache.set("b", 2)
    assert await cache.get("a", int) == 1
    await cache.invalidate("x")
    assert await cache.get_many(["a", "b"], int) == {"b": 2}


async def test_many_load_only_what_is_missing(redis):
    """One call of the loader, with exactly the missing keys."""
    cache, asked = Cache(redis), []
    await cache.set("a", 1)

    async def load_many(keys: list[str]) -> dict[str, int]:
        asked.append(sorted(keys))
        return {"b": 2, "extra": 9}

    assert await cache.get_or_set_many(["a", "b", "c", "b"], load_many, int) == {"a": 1, "b": 2}
    assert asked == [["b", "c"]]


async def test_disabled_the_loader_is_asked(valkey_server):
    """Without Redis everything is a miss and a load is still shared within the process."""
    async with Redis(RedisConfig(enabled=False)) as redis:
        cache = Cache(redis)
        await cache.set("k", 1)
        assert await cache.get("k", int) is None

        async def load() -> int:
            await asyncio.sleep(0.01)
            return 2

        assert await asyncio.gather(*(cache.get_or_set("k", load, int) for _ in range(5))) == [2] * 5
        assert cache.stats().loads == 1


@pytest.mark.parametrize("ttl", [0, -1, 0.0001])
async def test_a_ttl_that_is_none_is_refused_by_name(redis, ttl):
    """Zero does not mean forever."""
    with pytest.raises(ValueError, match="ttl="):
        await Cache(redis).set("k", 1, ttl=ttl)
