"""The in-process tier never keeps what the server no longer has."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import partial
from typing import Any

import msgspec
import pytest
from cache_fleet import Fleet

from aegis.config import RedisConfig
from aegis.redis import Cache, Redis
from aegis.redis.caching import tier
from aegis.testing import Direction, FaultProxy, until


class Stock(msgspec.Struct, frozen=True):
    code: str
    price: int


async def warm(cache: Cache, *keys: str, type: object = Any) -> None:  # noqa: A002 - as in get
    """Until these are served from the process, as this type: a reader of another one asks Redis."""
    for key in keys:
        async with asyncio.timeout(5):
            before = cache.stats().local_hits
            while cache.stats().local_hits == before:
                assert await cache.get(key, type) is not None
                await asyncio.sleep(0.001)


async def test_a_second_read_asks_nobody(redis):
    """A value that was read once is served without a command."""
    cache = Cache(redis)
    await cache.set("k", {"a": 1})
    await warm(cache, "k")
    before = cache.stats()
    for _ in range(100):
        assert await cache.get("k") == {"a": 1}
    after = cache.stats()
    assert after.local_hits - before.local_hits == 100
    assert after.redis_hits == before.redis_hits


OTHER = """
async def job(cache, redis, say, told):
    while True:
        what = await told()
        if what == "set":
            await cache.set("k", "new")
        elif what == "delete":
            await cache.delete("k")
        elif what == "invalidate":
            await cache.invalidate("x")
        elif what == "foreign":
            await redis.execute("SET", "aegis:cache:{k}", "not ours")
        elif what == "flush":
            await redis.execute("FLUSHDB")
        elif what == "expire":
            await redis.execute("PEXPIRE", "aegis:cache:{k}", 1)
        say(what)
"""


async def test_changes_elsewhere_are_seen_within_100_ms(redis, valkey_server):
    """set, delete, tag invalidation, expiry, FLUSHDB and foreign writes of another process."""
    cache = Cache(redis)
    with Fleet(valkey_server.url) as fleet:
        other = fleet.start(OTHER)
        for what in ("set", "delete", "invalidate", "foreign", "flush", "expire"):
            await cache.set("k", "old", tags=("x",))
            await warm(cache, "k", type=str)
            other.tell(what)
            assert await other.said() == what
            said_at = time.monotonic()
            expected = "new" if what == "set" else None
            while await cache.get("k", str) != expected:
                assert time.monotonic() - said_at < 0.1, what
                await asyncio.sleep(0.001)


async def test_expiry_is_kept_by_the_process_itself(redis):
    """An entry of the tier does not outlive the time to live that its value has in Redis, to the millisecond."""
    cache = Cache(redis)
    await cache.set("k", "v", ttl=0.4)
    set_at = time.monotonic()
    await warm(cache, "k", type=str)
    while await cache.get("k", str) is not None:
        assert time.monotonic() - set_at < 0.45
        await asyncio.sleep(0.001)
    assert time.monotonic() - set_at > 0.35


async def test_a_value_whose_life_is_not_known_is_not_kept(redis, valkey_server):
    """Whose user may not ask for it gets the value from Redis each time: the process could serve it too long."""
    await redis.execute("ACL", "SETUSER", "short", "on", "nopass", "~*", "&*", "+@all", "-pttl")
    async with Redis(RedisConfig(url=f"redis://short:x@127.0.0.1:{valkey_server.port}")) as user:
        cache = Cache(user)
        await cache.get("the first use")
        await cache.set("k", "v")
        await until(lambda: cache.stats().local_trusted)
        for _ in range(5):
            assert await cache.get("k", str) == "v"
        assert (cache.stats().local_hits, cache.stats().local_entries) == (0, 0)
    await redis.execute("ACL", "DELUSER", "short")


async def test_own_writes_are_read_back_at_once(redis):
    """After set, delete or invalidate returns, nobody in this process sees what was before."""
    cache = Cache(redis)
    for n in range(200):
        await cache.set("k", n, tags=("x",))
        assert await cache.get("k", int) == n
        assert await cache.get("k", int) == n
    await cache.delete("k")
    assert await cache.get("k", int) is None
    await cache.set("k", 1, tags=("x",))
    assert await cache.get("k", int) == 1
    await cache.invalidate("x")
    assert await cache.get("k", int) is None


@pytest.mark.parametrize("what", ["delete", "set", "invalidate", "delete_if"])
async def test_what_is_read_while_we_change_is_not_kept(valkey_server, what):
    """The server does not know the script: readers come between our two questions, and hear of the change late."""
    async with (
        FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy,
        Redis(RedisConfig(url=valkey_server.url)) as redis,
    ):
        await redis.execute("FLUSHALL")
        cache = Cache(redis)
        cache._core.tether._shelf = _ShelfWithAnotherConfig(cache._core.shelf, RedisConfig(url=proxy.url))
        await cache.set("k", "old", tags=("t",))
        await warm(cache, "k", type=str)
        proxy.slow(0.05)  # for the feed only
        await redis.execute("SCRIPT", "FLUSH")
        change = {
            "delete": partial(cache.delete, "k"),
            "set": partial(cache.set, "k", "new"),
            "invalidate": partial(cache.invalidate, "t"),
            "delete_if": partial(cache.delete_if, "k", "old", str),
        }[what]
        changing = asyncio.create_task(change())
        while not changing.done():
            await asyncio.sleep(0)
            await cache.get("k", str)
        assert await cache.get("k", str) == ("new" if what == "set" else None)


@pytest.mark.parametrize(("before", "after"), [("old", "new"), (None, "new"), ("old", None)])
async def test_a_change_while_the_answer_is_on_its_way_is_not_kept(valkey_server, redis, before, after):
    """The invalidation overtakes the old answer: it goes to its caller, not into the tier, nor to who asks later."""
    async with (
        FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy,
        Redis(RedisConfig(url=proxy.url)) as delayed,
    ):
        cache = Cache(delayed)
        # The feed goes to the server directly, only answers to questions take the slow way.
        cache._core.tether._shelf = _ShelfWithAnotherConfig(cache._core.shelf, RedisConfig(url=valkey_server.url))
        await cache.set("k", "old")
        await warm(cache, "k", type=str)
        if before is None:
            await cache.delete("k")
        tier, heard = cache._core.tier, asyncio.Event()
        invalidated, clear = tier.invalidated, tier.clear
        tier.drop("k")
        proxy.slow(0.3)
        reading = asyncio.create_task(cache.get("k", str))
        await asyncio.sleep(0.45)  # the question has arrived (300 ms), its answer has not (600 ms)
        tier.invalidated = lambda *names: (invalidated(*names), heard.set())
        tier.clear = lambda: (clear(), heard.set())
        if after is None:
            await redis.execute("FLUSHALL")
        else:
            await Cache(redis).set("k", after)
        await heard.wait()
        later = asyncio.create_task(cache.get("k", str))
        await asyncio.wait({reading, later}, return_when=asyncio.FIRST_COMPLETED)
        assert "k" not in tier.entries
        assert await reading == before
        assert await later == after  # does not join the question whose answer is outdated


async def test_an_invalidation_while_a_generation_is_on_its_way_is_not_lost(valkey_server, redis):
    """The answer about a tag is outdated when it comes: it is not kept, and the value that it covers is void."""
    async with FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy, Redis(RedisConfig(url=proxy.url)) as delayed:
        cache = Cache(delayed)
        cache._core.tether._shelf = _ShelfWithAnotherConfig(cache._core.shelf, RedisConfig(url=valkey_server.url))
        await cache.set("k", "old", tags=("t",))
        await warm(cache, "k", type=str)
        cache._core.tier.drop_tag("t")
        generations, asked = cache._core.shelf.generations, asyncio.Event()

        async def heard_of_too_late(*args):
            answer = await generations(*args)
            asked.set()
            await asyncio.sleep(0.5)
            return answer

        cache._core.shelf.generations = heard_of_too_late
        reading = asyncio.create_task(cache.get("k", str))
        await asked.wait()
        await Cache(redis).invalidate("t")
        assert await reading == "old"
        cache._core.shelf.generations = generations
        assert await cache.get("k", str) is None


async def test_who_asks_together_asks_once(redis):
    """One question for all callers of one key, found or not; each may change what it got, or leave."""
    cache = Cache(redis)
    await cache.set("k", {"a": 1})
    await cache.set("warm", 1)
    await warm(cache, "warm")
    before = redis.stats().commands
    for key, expected in (("k", {"a": 1}), ("none", None)):
        callers = [asyncio.create_task(cache.get(key, dict)) for _ in range(50)]
        await asyncio.sleep(0)
        callers[7].cancel()
        values = await asyncio.gather(*callers, return_exceptions=True)
        assert isinstance(values.pop(7), asyncio.CancelledError)
        assert values == [expected] * 49
        assert len({id(value) for value in values}) == (49 if expected else 1)
    assert redis.stats().commands - before == 4  # GET and PTTL, twice


async def test_who_asks_together_survives_the_first(redis):
    """The caller whose question all wait for is cancelled: the others ask themselves; also when a type differs."""
    cache = Cache(redis)
    await cache.set("warm", 1)
    await warm(cache, "warm")
    await cache.set("k", [1])
    callers = [asyncio.create_task(cache.get("k", type_)) for type_ in (list, list, list, tuple, int)]
    await asyncio.sleep(0)
    callers[0].cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert outcomes[1:] == [[1], [1], (1,), None]


async def test_a_stale_value_is_not_refreshed_without_redis(valkey_server):
    """The link that reports changes is alive, questions are not answered: the old value is served, nobody loads."""
    async with FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy, Redis(RedisConfig(url=proxy.url)) as delayed:
        await delayed.execute("FLUSHALL")
        cache, loads = Cache(delayed, patience_s=0.2), []
        cache._core.tether._shelf = _ShelfWithAnotherConfig(cache._core.shelf, RedisConfig(url=valkey_server.url))
        await cache.get_or_set("k", lambda: "old", str, ttl=0.3, stale_s=600)
        async with asyncio.timeout(5):
            while "k" not in cache._core.tier.entries:
                await cache.get_or_set("k", lambda: "old", str, ttl=0.3, stale_s=600)
                await asyncio.sleep(0.001)
        proxy.refuse()
        proxy.reset()
        await cache.get("other")
        assert cache.stats().state == "down"
        await asyncio.sleep(0.3)  # its time to live
        for _ in range(5):
            assert await cache.get_or_set("k", lambda: loads.append(1), str, ttl=0.3, stale_s=600) == "old"
            await asyncio.sleep(0)
        assert loads == []


class _ShelfWithAnotherConfig:
    """The shelf, with another way to the server for its feed."""

    def __init__(self, shelf, config) -> None:
        self._shelf, self.redis = shelf, Redis(config)

    def __getattr__(self, name):
        return getattr(self._shelf, name)


@pytest.mark.parametrize("fault", ["half-open", "reset", "frozen"])
async def test_a_lost_link_is_not_trusted_for_long(valkey_server, redis, fault):
    """Lost, deaf or half-open: within 3 s the tier serves nothing, is empty, and comes back with the link."""
    async with (
        FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy,
        Redis(RedisConfig(url=valkey_server.url)) as direct,
    ):
        cache = Cache(direct)
        cache._core.tether._shelf = _ShelfWithAnotherConfig(cache._core.shelf, RedisConfig(url=proxy.url))
        await cache.set("k", "old")
        await warm(cache, "k", type=str)
        broken_at = time.monotonic()
        if fault == "half-open":
            proxy.drop(Direction.TO_CLIENT)
        elif fault == "frozen":
            proxy.freeze()
        else:
            proxy.refuse()
            proxy.reset()
        await Cache(redis).set("k", "new")
        while await cache.get("k", str) == "old":
            assert time.monotonic() - broken_at < 3.0
            await asyncio.sleep(0.01)
        await until(lambda: not cache._core.tier.entries, within_s=3.0 - (time.monotonic() - broken_at))
        assert not cache.stats().local_trusted
        proxy.heal()
        proxy.accept()
        await warm(cache, "k", type=str)
        assert await cache.get("k", str) == "new"


async def test_a_stopped_process_wakes_up_distrusting(redis, valkey_server):
    """After SIGSTOP of some seconds the first answer is the server's, not the tier's."""
    job = """
    async def job(cache, redis, say, told):
        import time
        while cache.stats().local_hits == 0:
            await cache.get("k", str)
        say("warm")
        last = time.monotonic()
        while True:
            await asyncio.sleep(0)
            asked = time.monotonic()  # an answer that had begun before the pause may be the old one
            value = await cache.get("k", str)
            if asked - last > TRUST_S or value != "old":
                say(value)
                return
            last = asked
    """
    job = job.replace("TRUST_S", str(tier.TRUST_S))
    await Cache(redis).set("k", "old")
    with Fleet(valkey_server.url) as fleet:
        worker = fleet.start(job)
        assert await worker.said() == "warm"
        worker.signal(signal.SIGSTOP)
        await Cache(redis).set("k", "new")
        await asyncio.sleep(tier.TRUST_S + 0.1)
        worker.signal(signal.SIGCONT)
        assert await worker.said() == "new"


async def test_bounds_hold_and_what_is_used_stays(redis):
    """Entries and bytes are bounded; of two, the one that is read again and again outlives the other."""
    cache = Cache(redis, local_entries=100)
    await cache.set_many({f"k{n}": n for n in range(500)})
    await cache.set("hot", 1)
    await warm(cache, "hot")
    for n in range(500):
        await cache.get(f"k{n}", int)
        assert await cache.get("hot", int) == 1
    stats = cache.stats()
    assert stats.local_entries <= 100
    assert stats.evictions > 300
    assert "hot" in cache._core.tier.entries


async def test_bytes_are_bounded(redis):
    """Large values push each other out; one that is larger than an eighth is not kept at all."""
    cache = Cache(redis, local_bytes=100_000)
    await cache.set_many({f"k{n}": os.urandom(10_000) for n in range(50)})
    await cache.set("large", os.urandom(20_000))
    await cache.set("small", 1)
    await warm(cache, "small")
    for n in range(50):
        await cache.get(f"k{n}", bytes)
    await cache.get("large", bytes)
    assert 20_000 < cache.stats().local_bytes <= 100_000
    assert "large" not in cache._core.tier.entries
    for key in list(cache._core.tier.entries):
        await cache.delete(key)
    assert cache.stats().local_bytes == 0


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, [1, 2], {"a": [1]}, [{"a": 1}], [[1]], {"a": {"a": {"a": 1}}}],
    ids=repr,
)
async def test_what_can_be_changed_is_never_shared(redis, value):
    """Whatever a caller does to a value, the next caller gets what was stored; also callers of one load."""
    cache = Cache(redis)
    first, second = await asyncio.gather(*(cache.get_or_set("k", lambda: value) for _ in range(2)))
    for _ in range(5):
        for each in (first, second):
            assert each == value
            spoil(each)
        before = cache.stats().local_hits
        while cache.stats().local_hits == before:  # also what is read from Redis, and kept, is the reader's own
            read = await cache.get("k")
            assert read == value
            spoil(read)
            await asyncio.sleep(0.001)
        first, second = await cache.get("k"), (await cache.get_many(["k"]))["k"]


def spoil(value) -> None:
    inner = value["a"] if isinstance(value, dict) else value[0]
    if isinstance(inner, dict | list):
        spoil(inner)
    elif isinstance(value, dict):
        value["a"] = "spoilt"
    else:
        value[0] = "spoilt"


async def test_what_cannot_be_changed_is_shared(redis):
    """A frozen record is the same object for every caller; a frozen one that holds a list is not."""

    class Holder(msgspec.Struct, frozen=True):
        items: list[int]

    cache = Cache(redis)
    await cache.set("frozen", Stock("005930", 1))
    await cache.set("holder", Holder([1]))
    await warm(cache, "frozen", "holder")
    await cache.get("frozen", Stock)
    assert await cache.get("frozen", Stock) is await cache.get("frozen", Stock)
    (await cache.get("holder", Holder)).items.append(2)
    assert (await cache.get("holder", Holder)).items == [1]


async def test_without_the_tier_every_read_asks(redis):
    """local_entries=0: nothing is kept, nothing is tracked."""
    cache = Cache(redis, local_entries=0)
    await cache.set("k", 1)
    for _ in range(5):
        assert await cache.get("k", int) == 1
    assert (cache.stats().local_hits, cache.stats().redis_hits) == (0, 5)


STORM = """
import random
async def job(cache, redis, say, told):
    await told()
    loop = asyncio.get_running_loop()
    end = loop.time() + 1.0
    async def write():
        while loop.time() < end:
            key, how = random.choice("abcd"), random.random()
            if how < 0.6:
                await cache.set(key, await redis.execute("INCR", "n"), tags=("t",))
            elif how < 0.8:
                await cache.delete(key)
            else:
                await cache.invalidate("t")
            await asyncio.sleep(random.random() * 0.01)
    async def read():
        while loop.time() < end:
            await cache.get(random.choice("abcd"), int)
            await asyncio.sleep(0.0005)
    await asyncio.gather(write(), *(read() for _ in range(4)))
    say(cache.stats().local_hits)
    await told()
    await asyncio.sleep(0.1)
    say({key: await cache.get(key, int) for key in "abcd"})
"""


async def test_after_a_storm_all_processes_agree(redis, valkey_server):
    """Several processes write, delete, invalidate and read the same keys; 100 ms later all read what Redis has."""
    with Fleet(valkey_server.url) as fleet:
        workers = [fleet.start(STORM) for _ in range(3)]
        for worker in workers:
            worker.tell()
        said = [await worker.said() for worker in workers]
        assert min(said) > 50  # local hits: the tier did take part
        for worker in workers:
            worker.tell()
        seen = [await worker.said() for worker in workers]
    truth = Cache(redis, local_entries=0)
    for key in "abcd":
        assert [each[key] for each in seen] == [await truth.get(key, int)] * 3
