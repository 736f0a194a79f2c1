"""Using it: the decorator, namespaces, looking in, counting."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
from functools import partial

import msgspec
import pytest

from aegis.config import RedisConfig
from aegis.errors import ClosedError
from aegis.redis import TTL, Cache, CacheStats, Redis
from aegis.testing import FaultProxy, until


class Stock(msgspec.Struct, frozen=True):
    code: str
    price: int


async def test_a_decorated_function_is_called_once_per_key(redis):
    """Positional, by name or by default: the same arguments are the same key; the annotation is the type."""
    cache, calls = Cache(redis), []

    @cache.cached(ttl=TTL.LONG, key="stock:{code}:{market}")
    async def stock(code: str, market: str = "KRX") -> Stock:
        """What it costs."""
        calls.append(code)
        return Stock(code, 70_000)

    assert (
        await stock("005930") == await stock(code="005930") == await stock("005930", "KRX") == Stock("005930", 70_000)
    )
    assert await stock("000660") == Stock("000660", 70_000)
    assert calls == ["005930", "000660"]
    assert (stock.__name__, stock.__doc__) == ("stock", "What it costs.")
    assert inspect.iscoroutinefunction(stock)
    assert stock.key_of("005930") == "stock:005930:KRX"
    assert await cache.get("stock:005930:KRX", Stock) == Stock("005930", 70_000)
    assert await stock.forget("005930")
    await stock("005930")
    assert len(calls) == 3


async def test_methods_can_be_decorated(redis):
    """`self` is a parameter like others, and may stay out of the key."""
    cache = Cache(redis)

    class Client:
        def __init__(self, account: str) -> None:
            self.account = account

        @cache.cached(ttl=60, key="balance:{self.account}:{day}", tags=("account:{self.account}",))
        async def balance(self, day: int) -> int:
            return day

    client = Client("12-34")
    assert await client.balance(5) == 5
    assert await cache.keys() == ["balance:12-34:5"]
    await cache.invalidate("account:12-34")
    assert await cache.get("balance:12-34:5") is None


async def test_different_arguments_never_share_a_key(redis):
    """A colon within an argument is not the template's colon."""
    cache = Cache(redis)

    @cache.cached(ttl=60, key="{a}:{b}")
    async def pair(a: str, b: str) -> list[str]:
        return [a, b]

    @cache.cached(ttl=60, key="one:{a}")
    async def one(a: str) -> str:
        return a

    assert await pair("x:y", "z") == ["x:y", "z"]
    assert await pair("x", "y:z") == ["x", "y:z"]
    assert await pair("x%3Ay", "z") == ["x%3Ay", "z"]

    class Pair:
        def __init__(self, a: str, b: str) -> None:
            self.a, self.b = a, b

    @cache.cached(ttl=60, key="{pair.a}:{pair.b}:{at}")
    async def of_pair(pair: Pair, at: dt.time) -> list[str]:
        return [pair.a, pair.b, at.isoformat()]

    nine = dt.time(9)
    assert await of_pair(Pair("x:y", "z"), nine) == ["x:y", "z", "09:00:00"]
    assert await of_pair(Pair("x", "y:z"), nine) == ["x", "y:z", "09:00:00"]
    assert of_pair.key_of(Pair("x", "y"), nine) == "x:y:09%3A00%3A00"
    await one("KRX:005930")
    assert await cache.get("one:KRX:005930", str) == "KRX:005930"  # nothing to confuse: as written


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("stock:{cod}", r"'cod'; its parameters are: code"),
        ("stock:{}", r"''"),
        ("stock:{code", r"is no template"),
        ("", r"is empty"),
        ("{code:>{width}}", r"within a field's format"),
        ("{other.code}", r"'other.code'"),
    ],
)
async def test_a_wrong_template_is_refused_at_decoration(redis, template, complaint):
    """Not on the first call in production."""
    cache = Cache(redis)

    async def stock(code: str) -> str:
        return code

    with pytest.raises(ValueError, match=complaint):
        cache.cached(ttl=60, key=template)(stock)
    with pytest.raises(ValueError, match=complaint if template else "is empty"):
        cache.cached(ttl=60, key="k", tags=(template,))(stock)
    with pytest.raises(ValueError, match="ttl=0"):
        cache.cached(ttl=0, key="k")


async def test_invalidating_is_one_command_however_many_carry_the_tag(redis):
    """And listing keys walks in steps: the server is never asked for all at once."""
    cache = Cache(redis)
    await cache.set_many({f"k{n}": n for n in range(1500)}, tags=("t",))
    await redis.execute("CONFIG", "RESETSTAT")
    before = redis.stats().commands
    await cache.invalidate("t")
    assert redis.stats().commands - before == 1
    assert await cache.get_many([f"k{n}" for n in range(1500)], int) == {}
    assert len(await cache.keys("*", limit=5000)) == 1500
    asked = (await redis.execute("INFO", "commandstats")).decode()
    assert "cmdstat_keys:" not in asked
    steps = int(asked.partition("cmdstat_scan:calls=")[2].partition(",")[0])
    assert steps >= 1500 // 500


async def test_namespaces_do_not_meet(redis):
    """The same key in two namespaces is two values; their tags are their own; counts are shared."""
    cache = Cache(redis)
    kis, dart = cache.namespace("kis"), cache.namespace("dart")
    for each, value in ((cache, "none"), (kis, "kis"), (dart, "dart"), (kis.namespace("paper"), "paper")):
        await each.set("k", value, tags=("t",))
    for _ in range(2):
        assert [await each.get("k") for each in (cache, kis, dart)] == ["none", "kis", "dart"]
    assert await cache.get("kis:paper:k") == "paper"
    assert await kis.keys() == ["k", "paper:k"]
    assert await kis.get_or_set_many(["k", "n"], lambda keys: dict.fromkeys(keys, "new")) == {"k": "kis", "n": "new"}
    await kis.invalidate("t")
    assert [await each.get("k") for each in (cache, kis, dart)] == ["none", None, "dart"]
    assert kis.stats() == cache.stats()


async def test_keys_are_listed_by_pattern_and_limit(redis):
    """SCAN, never KEYS; a prefix with glob characters means itself."""
    cache, odd = Cache(redis), Cache(redis, prefix="a[b]*")
    await cache.set_many({f"stock:{n:04}": n for n in range(1500)})
    await cache.set("other", 1)
    await odd.set("k", 1)
    assert len(await cache.keys()) == 1000
    assert await cache.keys("stock:00[01]*", limit=5000) == [f"stock:{n:04}" for n in range(20)]
    assert await cache.keys("o*") == ["other"]
    assert await odd.keys() == ["k"]
    stats = (await redis.execute("INFO", "commandstats")).decode()
    assert "cmdstat_keys:" not in stats


async def test_a_value_can_be_looked_at_without_its_type(redis):
    """What `aegis cache get` shows: value, ages, tags, size."""
    cache = Cache(redis)
    await cache.get_or_set("k", lambda: Stock("005930", 1), Stock, ttl=lambda _: 100, stale_s=50, tags=("t",))
    entry = await cache.inspect("k")
    assert entry is not None
    assert (entry.key, entry.value, entry.tags) == ("k", {"code": "005930", "price": 1}, ("t",))
    assert 149 < entry.expires_in_s <= 150
    assert 99 < entry.fresh_for_s <= 100
    assert 0 <= entry.load_s < 5
    assert entry.bytes == await redis.execute("STRLEN", "aegis:cache:{k}")
    assert await cache.inspect("other") is None


async def test_every_count_counts(redis):
    """stats() after known events, field by field."""
    cache = Cache(redis)
    await cache.get("k")  # a miss; starts the invalidation link
    await until(lambda: cache.stats().local_trusted)
    await cache.set("k", 1)
    async with asyncio.timeout(5):
        while cache.stats().local_entries == 0:  # our own write is announced as well
            await cache.get("k")
            await asyncio.sleep(0.01)
    base = cache.stats()
    await cache.get("k")
    await cache.get("none")
    await asyncio.gather(*(cache.get_or_set("l", lambda: 1) for _ in range(3)))
    with pytest.raises(ZeroDivisionError):
        await cache.get_or_set("e", lambda: 1 // 0)
    await redis.execute("SET", "aegis:cache:{f}", "foreign")
    await cache.get("f")
    now = cache.stats()

    def more(name: str) -> int:
        return getattr(now, name) - getattr(base, name)

    assert {name: more(name) for name in ("local_hits", "misses", "loads", "load_errors", "joined", "unreadable")} == {
        "local_hits": 1,
        "misses": 6,
        "loads": 2,
        "load_errors": 1,
        "joined": 2,
        "unreadable": 1,
    }
    assert more("bytes_written") > 40
    assert now.hits == now.local_hits + now.redis_hits
    assert now.bytes == now.bytes_read + now.bytes_written
    assert (now.state, now.errors) == ("up", 0)
    assert "up" in repr(cache)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lease_s", 0), ("lease_s", 11), ("load_timeout_s", 0), ("patience_s", 0), ("concurrent_loads", 0),
        ("jitter", 1), ("eagerness", -1), ("local_entries", -1), ("on_outage", "ignore"),
    ],
)  # fmt: skip
async def test_options_out_of_bounds_are_refused_by_name(redis, option, value):
    """ValueError with the name and the value."""
    with pytest.raises(ValueError, match=f"{option}={value}|{option}='{value}'"):
        Cache(redis, **{option: value})


async def test_a_disabled_cache_does_no_io_and_shares_loads():
    """No connection, no task, no server; one load for all callers of the process; errors coalesced as well."""
    async with Redis(RedisConfig(enabled=False, host="192.0.2.1")) as redis:
        cache, loads = Cache(redis), 0

        async def load() -> dict[str, int]:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0.01)
            return {"n": loads}

        first, second = await asyncio.gather(*(cache.get_or_set("k", load, dict) for _ in range(2)))
        assert first == second == {"n": 1}
        assert first is not second
        await cache.set("k", 1, tags=("t",))
        await cache.invalidate("t")
        assert await cache.get("k") is None
        assert not await cache.delete_if("k", 1)
        assert await cache.inspect("k") is None
        assert await cache.get_or_set("k", load, dict) == {"n": 2}
        assert cache.stats().state == "disabled"
        assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("away", [False, True])
async def test_a_closed_cache_says_so(valkey_server, away):
    """Also of a value that lies in the process, and where Redis was away before."""
    async with FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy, Redis(RedisConfig(url=proxy.url)) as redis:
        cache = Cache(redis, patience_s=0.2)
        await cache.set("k", 1)
        await until(partial(is_local, cache))
        if away:
            proxy.refuse()
            proxy.reset()
            await cache.get("other")
            assert cache.stats().state == "down"
        await redis.close()
        for call in (
            lambda: cache.get("k", int),
            lambda: cache.get_or_set("k", lambda: 1, int),
            lambda: cache.set("k", 2),
            lambda: cache.delete("k"),
            lambda: cache.invalidate("t"),
        ):
            with pytest.raises(ClosedError):
                await call()


async def is_local(cache: Cache) -> bool:
    await cache.get("k", int)
    return cache.stats().local_hits > 0


async def test_nothing_is_left_behind(valkey_server):
    """After the Redis is closed no task of the cache runs and no connection is open."""
    before = asyncio.all_tasks()
    async with Redis(RedisConfig(url=valkey_server.url)) as redis, Redis(RedisConfig(url=valkey_server.url)) as other:
        clients = len((await other.execute("CLIENT", "LIST")).splitlines())
        cache = Cache(redis)
        await cache.get_or_set("k", lambda: 1, int)
        await cache.get("k")
        assert len((await other.execute("CLIENT", "LIST")).splitlines()) == clients + 1
        await redis.close()
        async with asyncio.timeout(5):
            while len((await other.execute("CLIENT", "LIST")).splitlines()) > clients - 1:
                await asyncio.sleep(0.005)
    assert asyncio.all_tasks() == before


async def test_stats_are_a_frozen_record(redis):
    """Readers cannot change the counts."""
    stats = Cache(redis).stats()
    assert isinstance(stats, CacheStats)
    with pytest.raises(AttributeError):
        stats.loads = 5
