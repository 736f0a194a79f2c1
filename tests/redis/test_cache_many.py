"""Many keys at once: only what is missing is loaded, each key once, in one round trip."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from aegis.config import RedisConfig
from aegis.errors import CacheTypeError
from aegis.redis import Cache, Redis
from aegis.testing import until


class Source:
    """A batch loader that remembers what it was asked for."""

    def __init__(self, *, absent: tuple[str, ...] = (), gate: asyncio.Event | None = None) -> None:
        self.asked: list[list[str]] = []
        self.absent, self.gate, self.began = absent, gate, asyncio.Event()

    async def load(self, keys: list[str]) -> dict[str, str]:
        self.asked.append(sorted(keys))
        self.began.set()
        if self.gate is not None:
            await self.gate.wait()
        return {key: f"value of {key}" for key in keys if key not in self.absent}


def values(*keys: str) -> dict[str, str]:
    return {key: f"value of {key}" for key in keys}


async def test_only_what_is_missing_is_loaded(redis):
    """From the process, from Redis, and the rest by one call of the loader; in the order that was asked."""
    cache, source = Cache(redis), Source()
    await cache.set("b", "value of b")
    found = await cache.get_or_set_many(["c", "b", "a"], source.load, str)
    assert (list(found), found) == (["c", "b", "a"], values("a", "b", "c"))
    assert source.asked == [["a", "c"]]
    for _ in range(3):
        assert await cache.get_or_set_many(["a", "b", "c"], source.load, str) == values("a", "b", "c")
    assert source.asked == [["a", "c"]]


async def test_duplicate_missing_and_extra_keys_are_defined(redis):
    """Twice asked: once loaded. Not returned: absent and not cached. Returned unasked: ignored and not cached."""
    cache = Cache(redis)
    asked: list[list[str]] = []

    def load(keys: list[str]) -> dict[str, int]:
        asked.append(sorted(keys))
        return {"a": 1, "extra": 9}

    for n in range(1, 3):
        assert await cache.get_or_set_many(["a", "a", "gone", "a"], load, int) == {"a": 1}
        assert asked[n - 1] == (["a", "gone"] if n == 1 else ["gone"])
    assert await cache.get_many(["extra", "gone", "a", "a"], int) == {"a": 1}


async def test_nothing_asked_is_nothing_done(redis):
    """Empty requests make no round trip and call no loader."""
    cache = Cache(redis)
    assert await cache.get_many([]) == {}
    assert await cache.get_or_set_many([], lambda _: 1 // 0) == {}
    await cache.set_many({})


async def test_keys_may_come_from_a_generator(redis):
    """An iterable that can be read only once is enough."""
    cache, source = Cache(redis), Source()
    assert await cache.get_or_set_many((key for key in "ab"), source.load, str) == values("a", "b")
    assert await cache.get_many((key for key in "ab"), str) == values("a", "b")


async def test_overlapping_batches_load_each_key_once(redis):
    """Two batches of one process, and one of another, share what they have in common."""
    cache, other, gate = Cache(redis), Cache(redis), asyncio.Event()
    first, second, third = Source(gate=gate), Source(gate=gate), Source(gate=gate)
    one = asyncio.create_task(cache.get_or_set_many(["a", "b", "c"], first.load, str))
    await first.began.wait()
    two = asyncio.create_task(cache.get_or_set_many(["b", "c", "d"], second.load, str))
    three = asyncio.create_task(other.get_or_set_many(["c", "d", "e"], third.load, str))
    single = asyncio.create_task(cache.get_or_set("a", lambda: 1 // 0, str))
    await second.began.wait()
    await third.began.wait()
    gate.set()
    assert await one == values("a", "b", "c")
    assert await two == values("b", "c", "d")
    assert await three == values("c", "d", "e")
    assert await single == "value of a"
    loaded = sorted(key for source in (first, second, third) for keys in source.asked for key in keys)
    assert loaded == ["a", "b", "c", "d", "e"]


async def test_a_large_batch_is_one_call_and_few_writes(redis):
    """Two thousand missing keys: one call of the loader, though only a few loaders may run at once."""
    cache, source = Cache(redis, concurrent_loads=2), Source()
    keys = [f"k{n}" for n in range(2000)]
    assert await cache.get_or_set_many(keys, source.load, str) == values(*keys)
    assert [len(asked) for asked in source.asked] == [2000]
    assert await Cache(redis).get_many(keys, str) == values(*keys)


async def test_an_error_fails_the_call_and_is_remembered(redis):
    """The loader's error reaches the caller as itself; the keys are quiet for error_ttl_s."""
    cache, calls = Cache(redis), []

    async def load(keys: list[str]) -> dict[str, int]:
        calls.append(keys)
        raise OSError("upstream")

    for _ in range(3):
        with pytest.raises(OSError, match="upstream"):
            await cache.get_or_set_many(["a", "b"], load, int)
    assert len(calls) == 1


async def test_one_bad_value_does_not_hide_the_others(redis):
    """A value of the wrong type is an error of its key; the others are cached."""
    cache = Cache(redis)
    with pytest.raises(CacheTypeError, match="'b'"):
        await cache.get_or_set_many(["a", "b"], lambda _: {"a": 1, "b": "text"}, int)
    assert await cache.get_many(["a", "b"], int) == {"a": 1}


async def test_a_loader_that_returns_no_mapping_is_told_so(redis):
    """A list would silently be taken for keys."""
    with pytest.raises(TypeError, match="list, not a mapping"):
        await Cache(redis).get_or_set_many(["a"], lambda keys: keys, str)


async def test_a_single_caller_is_not_disappointed_by_a_batch(redis):
    """Who joins a batch whose loader does not know the key loads it with a loader of his own."""
    cache, source = Cache(redis), Source(absent=("x",), gate=asyncio.Event())
    batch = asyncio.create_task(cache.get_or_set_many(["x", "y"], source.load, str))
    await source.began.wait()
    single = asyncio.create_task(cache.get_or_set("x", lambda: "mine", str))
    await until(lambda: cache.stats().joined)
    source.gate.set()
    assert await batch == values("y")
    assert await single == "mine"


async def test_a_cancelled_batch_ends_its_loader_and_nobody_elses(redis):
    """Cancelled alone, the loader is cancelled; a caller who waits for one of its keys keeps it alive."""
    cache, source = Cache(redis), Source(gate=asyncio.Event())
    batch = asyncio.create_task(cache.get_or_set_many(["a", "b"], source.load, str))
    await source.began.wait()
    single = asyncio.create_task(cache.get_or_set("a", lambda: "mine", str))
    await until(lambda: cache.stats().joined)
    batch.cancel()
    await asyncio.gather(batch, return_exceptions=True)
    source.gate.set()
    assert await single == "value of a"
    again = Source()
    assert await cache.get_or_set_many(["b"], again.load, str) == values("b")
    assert again.asked == [["b"]]


async def test_a_batch_that_nobody_waits_for_is_cancelled(redis):
    """The one loader of all its keys ends with the last caller."""
    cache, began, ended = Cache(redis), asyncio.Event(), asyncio.Event()

    async def load(_: list[str]) -> dict[str, str]:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return {}

    batch = asyncio.create_task(cache.get_or_set_many(["a", "b"], load, str))
    await began.wait()
    batch.cancel()
    async with asyncio.timeout(5):
        await ended.wait()


async def test_an_error_of_a_large_batch_has_a_short_traceback(redis):
    """It is the error of every key, and grows with none of them."""

    async def frames(count: int) -> int:
        cache = Cache(redis)
        with pytest.raises(OSError, match="upstream") as caught:
            await cache.get_or_set_many([f"{count}:{n}" for n in range(count)], fail, int, error_ttl_s=0)
        return len(traceback.extract_tb(caught.value.__traceback__))

    async def fail(_: list[str]) -> dict[str, int]:
        raise OSError("upstream")

    assert await frames(50) == await frames(1)


async def test_a_batch_cancelled_before_it_began_does_not_hang_others(redis):
    """Its keys were never decided; those who had boarded its flights still get an answer."""
    cache, source = Cache(redis), Source()
    await cache.get("warm")
    batch = asyncio.create_task(cache.get_or_set_many(["a", "b"], source.load, str))
    while "a" not in cache._core.loads.flights:  # to the turn: it has not begun yet
        await asyncio.sleep(0)
    single = asyncio.create_task(cache.get_or_set("a", lambda: "mine", str))
    while cache.stats().joined == 0:
        await asyncio.sleep(0)
    batch.cancel()
    async with asyncio.timeout(5):
        assert await single in {"value of a", "mine"}


async def test_many_stale_values_are_served_and_refreshed_by_one_call(redis):
    """stale_s holds for many as for one."""
    cache, source = Cache(redis), Source()
    keys = ["a", "b", "c"]
    await cache.get_or_set_many(keys, source.load, str, ttl=10, stale_s=60)
    for key in keys:
        await redis.execute("PEXPIRE", f"aegis:cache:{{{key}}}", 30_000)
    await until(lambda: not any(key in cache._core.tier.entries for key in keys))
    assert await cache.get_or_set_many(keys, source.load, str, ttl=10, stale_s=60) == values(*keys)
    async with asyncio.timeout(2):
        while len(await cache.get_many(keys, str)) < 3:
            await asyncio.sleep(0.001)
    assert source.asked == [keys, keys]


class RoundTrips(Redis):
    """Counts how often somebody begins to wait for the server while nobody else does."""

    count = waiting = 0

    async def execute(self, *args, **kwargs):
        return await self._counted(super().execute(*args, **kwargs))

    async def pipeline(self, *args, **kwargs):
        return await self._counted(super().pipeline(*args, **kwargs))

    async def _counted(self, question):
        self.count += self.waiting == 0
        self.waiting += 1
        try:
            return await question
        finally:
            self.waiting -= 1

    async def of(self, call) -> int:
        before = self.count
        await call
        return self.count - before


async def test_many_are_one_round_trip(valkey_server):
    """However many keys: one write, one answer; tags, which lie elsewhere on a cluster, cost one more."""
    keys = [f"k{n}" for n in range(300)]
    async with RoundTrips(RedisConfig(url=valkey_server.url)) as redis:
        cache = Cache(redis, local_entries=0, patience_s=10)
        await redis.execute("FLUSHALL")
        await cache.set_many({"warm": 1}, tags=("t",))  # the server knows the scripts
        await cache.get_or_set("warm2", lambda: 1)
        values = dict.fromkeys(keys, 1)
        assert await redis.of(cache.set_many(values)) == 1
        assert await redis.of(cache.get_many(keys, int)) == 1
        assert await redis.of(cache.set_many(values, tags=("t",))) == 2
        assert await redis.of(cache.get_many(keys, int)) == 2
        assert await redis.of(cache.get_or_set_many(keys, lambda _: 1 // 0, int)) == 2
        await redis.execute("FLUSHALL")
        assert await redis.of(cache.get_or_set_many(keys, lambda _: values, int)) == 3  # look, lease, store
        await redis.execute("FLUSHALL")
        assert await redis.of(cache.get_or_set_many(keys, lambda _: values, int, tags=("t", "u"))) == 3
        await redis.execute("SCRIPT", "FLUSH")
        assert await redis.of(cache.set_many(values)) == 2
        assert await cache.get_many(keys, int) == values


async def test_many_with_tags(redis):
    """All values of a batch carry its tags and go with them."""
    cache, source = Cache(redis, local_entries=0), Source()
    assert await cache.get_or_set_many(["a", "b"], source.load, str, tags=("t", "u", "t")) == values("a", "b")
    await cache.set_many({"c": "value of c"}, tags=("u",))
    assert await cache.get_many(["a", "b", "c"], str) == values("a", "b", "c")
    await cache.invalidate("t")
    assert await cache.get_many(["a", "b", "c"], str) == values("c")
    assert await cache.get_or_set_many(["a", "b", "c"], source.load, str, tags=("t",)) == values("a", "b", "c")
    assert source.asked == [["a", "b"], ["a", "b"]]


async def test_many_without_redis(valkey_server):
    """Disabled: set_many does nothing, get_many finds nothing, the loader is asked for all."""
    async with Redis(RedisConfig(enabled=False)) as redis:
        cache, source = Cache(redis), Source()
        await cache.set_many({"a": 1}, tags=("t",))
        assert await cache.get_many(["a"]) == {}
        assert await cache.get_or_set_many(["a", "b"], source.load, str) == values("a", "b")
        assert source.asked == [["a", "b"]]
        await cache.invalidate("t")
        assert (await cache.delete("a"), await cache.keys(), cache.stats().state) == (False, [], "disabled")


async def test_keys_are_texts_and_one_text_is_not_several(redis):
    """`005930` is text, and its six letters are no keys."""
    cache = Cache(redis)
    for ask in (lambda: cache.get_many("005930"), lambda: cache.get_or_set_many("005930", dict)):
        with pytest.raises(TypeError, match="keys='005930' is one text"):
            await ask()
    for ask in (lambda: cache.set(5930, 1), lambda: cache.get_many([5930]), lambda: cache.delete(5930)):
        with pytest.raises(TypeError, match="5930 is not text"):
            await ask()
