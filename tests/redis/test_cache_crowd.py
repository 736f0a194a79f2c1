"""A crowd that does everything at once and is cancelled anywhere: every value is right, nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
from functools import partial

import pytest

from aegis.config import RedisConfig
from aegis.errors import ClosedError
from aegis.redis import Cache, Redis
from aegis.testing import FaultProxy, until

KEYS = [f"k{n}" for n in range(8)]


class UpstreamError(Exception):
    """What the loaders raise now and then."""


def nothing_is_left(cache: Cache) -> bool:
    """No flight, nobody who waits, no ticket, no open question, every place free."""
    core = cache._core
    return (
        not core.loads.flights
        and not core.loads.elsewhere._events
        and not core.tier._tickets
        and not core.reader._asking
        and not core.tags._asked
        and not core._background._tasks
        and core.places._free._value == 8
    )


class Member:
    """Makes random calls, most of them cancelled after a random time; what comes back belongs to its key."""

    def __init__(self, cache: Cache, seed: int) -> None:
        self.cache, self.dice = cache, random.Random(seed)

    async def load(self, key: str) -> str:
        await asyncio.sleep(self.dice.random() * 0.005)
        if self.dice.random() < 0.2:
            raise UpstreamError
        return key

    async def load_many(self, keys: list[str]) -> dict[str, str]:
        await self.load("")
        return {key: key for key in keys if self.dice.random() < 0.9}

    async def call(self) -> object:
        """Any of the calls that there are."""
        cache, choice = self.cache, self.dice.choice
        key, some = choice(KEYS), self.dice.sample(KEYS, 3)
        life = {"ttl": choice((0.01, 0.05, 5)), "tags": choice(((), ("t",), ("t", "u")))}
        wish = {**life, "stale_s": choice((0, 0.05)), "error_ttl_s": choice((0, 0.005))}
        match choice(("load", "load", "load many", "get", "get many", "set", "set many", "delete", "delete if", "tag")):
            case "load":
                return await cache.get_or_set(key, partial(self.load, key), str, **wish) == key
            case "load many":
                found = await cache.get_or_set_many(some, self.load_many, str, **wish)
                return all(each == value for each, value in found.items())
            case "get":
                return await cache.get(key, str) in {None, key}
            case "get many":
                return all(each == value for each, value in (await cache.get_many(some, str)).items())
            case "set":
                return await cache.set(key, key, **life) is None
            case "set many":
                return await cache.set_many({each: each for each in some}, **life) is None
            case "delete":
                return await cache.delete(key) in {True, False}
            case "delete if":
                return await cache.delete_if(key, key, str) in {True, False}
            case _:
                return await cache.invalidate("t") is None

    async def go_on_until(self, end: float) -> None:
        """Call after call."""
        while asyncio.get_running_loop().time() < end:
            try:
                async with asyncio.timeout(self.dice.choice((0.0, 0.0005, 0.002, 0.005, 30))):
                    assert await self.call()
            except (TimeoutError, UpstreamError):
                pass


@pytest.mark.parametrize("fault", ["none", "flush", "lost"])
async def test_a_crowd_leaves_nothing_behind(valkey_server, fault):
    """Three contenders of forty tasks; with the data flushed again and again, or the server lost again and again."""
    reports: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reports.append(context))
    async with (
        FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy,
        Redis(RedisConfig(url=valkey_server.url)) as direct,
        Redis(RedisConfig(url=proxy.url)) as first,
        Redis(RedisConfig(url=proxy.url)) as second,
    ):
        await direct.execute("FLUSHALL")
        caches = [
            Cache(first, concurrent_loads=8, lease_s=0.5),
            Cache(first, concurrent_loads=8, lease_s=0.5, local_entries=0),
            Cache(second, concurrent_loads=8, lease_s=0.5, local_entries=4),
        ]
        end = loop.time() + 1.5
        crowd = asyncio.gather(*(Member(cache, n).go_on_until(end) for n in range(40) for cache in caches))
        while not crowd.done():
            await asyncio.sleep(0.1)
            if fault == "flush":
                await direct.execute("FLUSHALL")
                await direct.execute("SCRIPT", "FLUSH")
            elif fault == "lost":
                proxy.reset()
        await crowd
        await until(lambda: all(nothing_is_left(cache) and cache.stats().state == "up" for cache in caches))
        async with asyncio.timeout(15):
            for key in KEYS:
                for cache in caches:
                    assert await cache.get_or_set(key, lambda key=key: key, str) == key
        assert sum(cache.stats().loads for cache in caches) > 10
    gc.collect()
    assert reports == []


async def test_closing_in_the_middle_of_a_crowd(valkey_server):
    """Everybody gets ClosedError or his value, at once; no task is left."""
    before, reports = asyncio.all_tasks(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    async with Redis(RedisConfig(url=valkey_server.url)) as redis:
        cache = Cache(redis, concurrent_loads=8)
        loop = asyncio.get_running_loop()
        crowd = [asyncio.create_task(Member(cache, n).go_on_until(loop.time() + 60)) for n in range(40)]
        await asyncio.sleep(0.3)
    outcomes = await asyncio.gather(*crowd, return_exceptions=True)
    assert {type(each) for each in outcomes} <= {ClosedError}
    assert asyncio.all_tasks() == before
    gc.collect()
    assert reports == []
