"""The cache between real processes: one load, whoever is killed, stopped or slow."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial

import pytest
from cache_fleet import LEADER, Fleet

from aegis.config import RedisConfig
from aegis.redis import Cache, Redis
from aegis.redis.caching import elsewhere
from aegis.testing import until

CROWD = """
async def job(cache, redis, say, told):
    async def load():
        await redis.execute("INCR", "loads")
        await asyncio.sleep(0.2)
        return {"pid": os.getpid()}
    say("ready")
    await told()
    values = await asyncio.gather(*(cache.get_or_set("k", load, dict) for _ in range(100)))
    say([sorted({value["pid"] for value in values}), len({id(value) for value in values})])
"""

FAILING = """
class UpstreamError(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code

async def job(cache, redis, say, told):
    async def load():
        await redis.execute("INCR", "loads")
        await asyncio.sleep(0.2)
        raise UpstreamError("EGW00201", "too fast")
    say("ready")
    await told()
    errors = await asyncio.gather(*(cache.get_or_set("k", load, dict) for _ in range(20)), return_exceptions=True)
    say([sorted({type(each).__name__ + str(each) for each in errors}), sorted({each.code for each in errors})])
"""


async def scripts_run(redis) -> int:
    """How many scripts the server has run, by source or by hash."""
    lines = (await redis.execute("INFO", "commandstats")).decode().splitlines()
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines if line.startswith("cmdstat_eval"))


async def test_four_processes_of_a_hundred_tasks_load_once(redis, valkey_server):
    """A cold key costs one load in the whole fleet, and every caller gets a dict of its own."""
    with Fleet(valkey_server.url) as fleet:
        workers = [fleet.start(CROWD) for _ in range(4)]
        for worker in workers:
            assert await worker.said() == "ready"
        for worker in workers:
            worker.tell()
        said = [await worker.said() for worker in workers]
    assert await redis.execute("GET", "loads") == b"1"
    assert len({pid for pids, _ in said for pid in pids}) == 1
    assert [copies for _, copies in said] == [100] * 4


async def test_a_failing_loader_runs_once_in_the_fleet(redis, valkey_server):
    """Every caller of every process gets the error, as its own class where the process knows it."""
    with Fleet(valkey_server.url) as fleet:
        workers = [fleet.start(FAILING) for _ in range(3)]
        for worker in workers:
            assert await worker.said() == "ready"
        for worker in workers:
            worker.tell()
        said = [await worker.said() for worker in workers]
    assert said == [[["UpstreamError('EGW00201', 'too fast')"], ["EGW00201"]]] * 3
    assert await redis.execute("GET", "loads") == b"1"


async def test_a_killed_leader_costs_at_most_its_lease(redis, valkey_server):
    """kill -9 while loading: a waiting process loads when the lease has run out, not before and not much later."""
    cache = Cache(redis, lease_s=1.0)
    with Fleet(valkey_server.url, lease_s=1.0) as fleet:
        leader = fleet.start(LEADER)
        assert await leader.said() == "loading"
        waiting = asyncio.create_task(cache.get_or_set("k", lambda: "second", str))
        await until(lambda: cache.stats().waited)
        leader.signal(signal.SIGKILL)
        killed_at = time.monotonic()
        assert await waiting == "second"
        assert time.monotonic() - killed_at < 1.0 + 0.3


async def test_a_slow_leader_keeps_its_lease(redis, valkey_server):
    """A load that takes longer than the lease is renewed: nobody else loads."""
    cache = Cache(redis, lease_s=0.3)
    with Fleet(valkey_server.url, lease_s=0.3) as fleet:
        leader = fleet.start(LEADER)
        assert await leader.said() == "loading"
        waiting = asyncio.create_task(cache.get_or_set("k", lambda: "second", str))
        await asyncio.sleep(1.0)  # more than three leases
        assert not waiting.done()
        leader.tell("first")
        assert await waiting == "first"
        assert cache.stats().loads == 0


async def test_a_stopped_leader_that_wakes_up_is_refused(redis, valkey_server):
    """Its lease has gone to another; what it brings is not stored, and its callers get what is newer."""
    cache = Cache(redis, lease_s=0.5)
    with Fleet(valkey_server.url, lease_s=0.5) as fleet:
        leader = fleet.start(LEADER)
        assert await leader.said() == "loading"
        leader.signal(signal.SIGSTOP)
        assert await cache.get_or_set("k", lambda: "second", str) == "second"
        leader.tell("first")
        leader.signal(signal.SIGCONT)
        assert await leader.said() == "second"
    assert await cache.get("k", str) == "second"


@pytest.fixture
def nobody_looks(monkeypatch):
    """What wakes somebody here was told, not found."""
    monkeypatch.setattr(elsewhere, "_LOOK_EVERY_S", 3600.0)


@pytest.mark.parametrize("local_entries", [0, 1000])
async def test_waiting_is_woken_and_does_not_poll(redis, valkey_server, nobody_looks, local_entries):
    """A waiting process does not ask for the value however long the load takes, and wakes at once; tier or none."""
    cache = Cache(redis, lease_s=10.0, local_entries=local_entries)
    with Fleet(valkey_server.url, lease_s=10.0) as fleet:
        leader = fleet.start(LEADER)
        assert await leader.said() == "loading"
        waiting = asyncio.create_task(cache.get_or_set("k", lambda: "second", str))
        await until(lambda: cache.stats().waited and cache._core.tether.hears)
        before = await scripts_run(redis)
        await asyncio.sleep(0.5)
        assert await scripts_run(redis) == before
        told_at = time.monotonic()
        leader.tell("first")
        assert await waiting == "first"
        assert time.monotonic() - told_at < 0.25
        assert cache.stats().waited == 1  # a load that was left to another, however often we asked for it


async def test_a_load_that_is_given_up_goes_to_who_waits(redis, valkey_server, nobody_looks):
    """The only caller of the leading process is cancelled: a waiting process loads at once, not when the lease ends."""
    job = """
    async def job(cache, redis, say, told):
        async def load():
            say("loading")
            await asyncio.Event().wait()
        caller = asyncio.create_task(cache.get_or_set("k", load))
        await told()
        caller.cancel()
        await told()
    """
    cache = Cache(redis, lease_s=10.0)
    with Fleet(valkey_server.url, lease_s=10.0) as fleet:
        leader = fleet.start(job)
        assert await leader.said() == "loading"
        waiting = asyncio.create_task(cache.get_or_set("k", lambda: "second", str))
        await until(lambda: cache.stats().waited and cache._core.tether.hears)
        leader.tell()
        async with asyncio.timeout(5):
            assert await waiting == "second"


async def fail_after(gate: asyncio.Event) -> int:
    await gate.wait()
    return 1 // 0


async def test_lost_announcements_cost_no_lease(redis, valkey_server):
    """Nothing that is announced arrives: who waits for many keys finds them, by questions whose number is bounded."""
    soon, later = [f"soon{n}" for n in range(50)], [f"later{n}" for n in range(50)]
    gates = {key: asyncio.Event() for key in ("soon0", "later0")}

    async def load_many(missing: list[str]) -> dict[str, str]:
        await gates[missing[0]].wait()
        return dict.fromkeys(missing, "first")

    async with Redis(RedisConfig(url=valkey_server.url)) as second:
        cache, leader = Cache(redis, lease_s=10.0), Cache(second, lease_s=10.0)
        cache._core.tether._on_message = lambda *_: None
        failing = asyncio.create_task(leader.get_or_set("fails", partial(fail_after, gates["soon0"]), error_ttl_s=60))
        leading = [asyncio.create_task(leader.get_or_set_many(keys, load_many, str)) for keys in (later, soon)]
        await until(lambda: leader.stats().loads == 101)
        told = asyncio.create_task(cache.get_or_set("fails", lambda: 1))
        waiting = [asyncio.create_task(cache.get_or_set_many(keys, lambda _: {}, str)) for keys in (later, soon)]
        await until(lambda: cache.stats().waited == 101)
        before, began = redis.stats().commands, time.monotonic()
        await asyncio.sleep(0.3)
        looks = (time.monotonic() - began) / 0.05 + 1
        assert redis.stats().commands - before <= 32 * looks
        for gate, keys, led, waited in zip(gates.values(), (soon, later), leading[::-1], waiting[::-1], strict=True):
            gate.set()
            async with asyncio.timeout(5):
                assert await led == await waited == dict.fromkeys(keys, "first")
                outcomes = await asyncio.gather(failing, told, return_exceptions=True)
            assert [type(each) for each in outcomes] == [ZeroDivisionError] * 2


async def test_a_delete_elsewhere_during_a_load_wins(redis, valkey_server):
    """Another process deletes while we load: our callers so far get the value, nobody after them does."""
    cache = Cache(redis)
    with Fleet(valkey_server.url) as fleet:
        leader = fleet.start(LEADER)
        assert await leader.said() == "loading"
        await cache.delete("k")
        leader.tell("old")
        assert await leader.said() == "old"
    assert await cache.get("k", str) is None
