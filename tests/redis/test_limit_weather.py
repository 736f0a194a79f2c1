"""The limiter when the server is lost, slow, flushed, restarted, replaced, or answers too late."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from limit_fleet import worst_window

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.errors import RateLimitLayoutError, RateLimitTimeoutError, RedisUnavailableError, ServerLostError
from aegis.redis import LocalShare, Rate, RateLimit, RateLimiter, Redis
from aegis.redis.limiting.gate import key_name
from aegis.testing import Direction, FaultProxy

#: What a busy machine may add between a permit and the line that notes it, on top of the pad.
JITTER_S = 0.1
LIMIT = RateLimit("weather", Rate(5, per=0.6), pad=0.05)


def config_of(url: str) -> RedisConfig:
    return RedisConfig(url=url, command_timeout=1.0, hang_timeout=0.5)


async def crowd(
    limiter: RateLimiter, limit: RateLimit, callers: int, released: list[float]
) -> list[asyncio.Task[None]]:
    """So many callers that wait again and again."""

    async def caller() -> None:
        while True:
            await limiter.wait(limit)
            released.append(time.monotonic())

    return [asyncio.create_task(caller()) for _ in range(callers)]


async def end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(ended, asyncio.CancelledError)


async def more(released: list[float], count: int) -> None:
    """Return when so many more have been released."""
    wanted = len(released) + count
    while len(released) < wanted:
        await asyncio.sleep(0.01)


async def test_script_flush_in_the_middle_of_waiting(redis):
    """The scripts are sent again; nobody notices, and nothing is granted twice."""
    limiter, released = RateLimiter(redis), []
    tasks = await crowd(limiter, LIMIT, 8, released)
    for _ in range(4):
        await more(released, 4)
        await redis.execute("SCRIPT", "FLUSH")
    await end(tasks)
    assert worst_window(released, 0.6 - JITTER_S) <= 5
    assert limiter.stats().limits["weather"].outages == 0


@pytest.mark.parametrize("fault", ["reset", "freeze", "lost replies"])
async def test_connection_lost_in_the_middle_of_waiting(valkey_server, redis, fault):
    """Callers go on when it is back: exact, and no permit is used that a lost reply may have brought."""
    async with FaultProxy(valkey_server.url.removeprefix("redis://")) as proxy, Redis(config_of(proxy.url)) as lossy:
        limiter, other, released = RateLimiter(lossy), RateLimiter(redis), []
        tasks = await crowd(limiter, LIMIT, 8, released) + await crowd(other, LIMIT, 4, released)
        for _ in range(2):
            await more(released, 4)
            if fault == "reset":
                proxy.reset()
            elif fault == "freeze":
                proxy.freeze()
                await more(released, 3)  # the other one is not hindered
                proxy.heal()
            else:
                proxy.drop(Direction.TO_CLIENT)
                await more(released, 3)
                proxy.reset()
                proxy.heal()
        before = limiter.stats().granted
        while limiter.stats().granted < before + 4:
            await asyncio.sleep(0.01)
        await end(tasks)
    assert worst_window(released, 0.6 - JITTER_S) <= 5


async def test_allow_says_when_it_does_not_know(valkey_server, redis):
    """A lost reply is ServerLostError, and at most that one permit is gone; no connection is RedisUnavailableError."""
    async with FaultProxy(valkey_server.url.removeprefix("redis://")) as proxy, Redis(config_of(proxy.url)) as lossy:
        limiter, limit = RateLimiter(lossy), RateLimit("unknown", Rate(10, per=60))
        assert (await limiter.allow(limit)).allowed
        proxy.drop(Direction.TO_CLIENT)
        with pytest.raises(ServerLostError):
            await limiter.allow(limit)
        proxy.refuse()
        proxy.reset()
        with pytest.raises((RedisUnavailableError, ServerLostError)):
            await limiter.allow(limit)
        with pytest.raises(RedisUnavailableError):
            await limiter.allow(limit)
        proxy.heal()
        assert (await RateLimiter(redis).peek(limit)).used == 2


async def test_the_first_allow_of_a_limit_is_not_sent_again(valkey_server, redis):
    """It goes another way than the later ones: there, too, a lost reply is an error, and one permit is gone."""
    async with FaultProxy(valkey_server.url.removeprefix("redis://")) as proxy, Redis(config_of(proxy.url)) as lossy:
        limiter, limit = RateLimiter(lossy), RateLimit("first", Rate(10, per=60))
        await limiter.allow(RateLimit("another", Rate(10, per=60)))
        proxy.drop(Direction.TO_CLIENT)
        unknown = asyncio.create_task(limiter.allow(limit))
        while not (await RateLimiter(redis).peek(limit)).used:
            await asyncio.sleep(0.01)
        proxy.reset()
        proxy.heal()
        with pytest.raises(ServerLostError):
            await unknown
        assert (await RateLimiter(redis).peek(limit)).used == 1


async def test_a_cancelled_allow_may_have_been_consumed_and_costs_no_more(redis):
    """As its docstring says: who does not wait for the answer does not know. The others of its turn get theirs."""
    limiter, limit = RateLimiter(redis), RateLimit("impatient", Rate(5, per=60))
    await limiter.allow(limit)
    tasks = [asyncio.create_task(limiter.allow(limit)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    decided = await asyncio.gather(*tasks, return_exceptions=True)
    assert [decided[0].allowed, decided[2].allowed] == [True, True]
    assert isinstance(decided[1], asyncio.CancelledError)
    assert 3 <= (await limiter.peek(limit)).used <= 4


async def test_wait_tries_until_its_timeout(valkey_server):
    """Refused in time with the cause, and granted when the server is back before that."""
    async with FaultProxy(valkey_server.url.removeprefix("redis://")) as proxy, Redis(config_of(proxy.url)) as lossy:
        limiter, limit = RateLimiter(lossy), RateLimit("patient", Rate(10, per=1))
        await limiter.wait(limit)
        proxy.refuse()
        proxy.reset()
        began = time.monotonic()
        with pytest.raises(RateLimitTimeoutError):
            await limiter.wait(limit, timeout=0.5)
        assert time.monotonic() - began >= 0.5
        waiting = asyncio.create_task(limiter.wait(limit, timeout=30))
        await asyncio.sleep(0)
        proxy.heal()
        assert await waiting < 30


@pytest.mark.parametrize("persistent", [False, True])
async def test_a_restarted_server_owes_a_pause(tmp_path, persistent):
    """Whatever it has forgotten is out of every window before anybody is served again."""
    options = {"appendonly": "yes", "appendfsync": "everysec", "dir": str(tmp_path)} if persistent else {}
    limit = RateLimit("restart", Rate(5, per=1.0), pad=0.05)
    released: list[float] = []
    async with AsyncExitStack() as stack:
        server = EmbeddedValkey(port=0, options=options)
        server.start()
        stack.callback(lambda: server.stop())  # noqa: PLW0108 - the last one
        clients = [await stack.enter_async_context(Redis(config_of(server.url))) for _ in range(2)]
        tasks = [task for client in clients for task in await crowd(RateLimiter(client), limit, 5, released)]
        await more(released, 6)
        server.stop()
        server = EmbeddedValkey(port=server.port, options=options)
        server.start()
        await more(released, 6)
        await end(tasks)
    assert worst_window(released, 1.0 - JITTER_S) <= 5


async def test_a_fresh_server_owes_nothing(redis):
    """The first permit that a process ever asks for comes at once."""
    assert (await RateLimiter(redis).allow(RateLimit("fresh", Rate(1, per=60)))).allowed
    assert await RateLimiter(redis).wait(RateLimit("fresh too", Rate(1, per=60))) < 10


async def test_another_server_means_a_pause_also_for_those_who_never_saw_the_old_one(redis):
    """After a failover the state is there, written under another name: the newest part may be missing."""
    limit = RateLimit("failover", Rate(5, per=20), pad=0)
    elsewhere = RateLimiter(redis)
    elsewhere._server_names[redis.connection] = "somebody else"
    assert (await elsewhere.allow(limit)).allowed
    newcomer = RateLimiter(redis)
    refused = await newcomer.allow(limit)
    assert not refused.allowed
    assert 35 < refused.retry_after <= 40  # a window, and as far ahead as anybody may have reserved
    assert (await newcomer.peek(limit)).held_for > 35


async def test_an_empty_server_means_a_pause_for_those_who_knew_another(redis):
    """It cannot know that its predecessor granted anything, but its callers do."""
    limiter, limit = RateLimiter(redis), RateLimit("forgotten", Rate(5, per=20), pad=0)
    assert (await limiter.allow(limit)).allowed
    next_one = redis.connection + 1
    limiter._server_names[next_one] = "a fresh one"
    await redis.execute("FLUSHALL")
    await redis.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
    while redis.connection < next_one:
        await asyncio.sleep(0.01)
    refused = await limiter.allow(limit)
    assert not refused.allowed
    assert 35 < refused.retry_after <= 40


async def test_on_outage_allow(valkey_server):
    """Everything is granted while Redis is away, as if there were no limit; afterwards it counts again."""
    async with FaultProxy(valkey_server.url.removeprefix("redis://")) as proxy, Redis(config_of(proxy.url)) as lossy:
        limiter, limit = RateLimiter(lossy, on_outage="allow"), RateLimit("open", Rate(1, per=60))
        await limiter.wait(limit)
        proxy.refuse()
        proxy.reset()
        for _ in range(20):
            assert tuple(await limiter.allow(limit)) == (True, 1, 0.0)
            assert await limiter.wait(limit) < 20
        proxy.heal()
        while (await limiter.allow(limit)).allowed:
            await asyncio.sleep(0.02)


async def test_local_shares_never_add_up_to_more_than_the_quota(valkey_server):
    """Before, during and after an outage, over both processes; and the share is used while Redis is away."""
    limit = RateLimit("share", Rate(8, per=0.5), pad=0.05)
    released: list[float] = []
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(valkey_server.url.removeprefix("redis://")))
        clients = [await stack.enter_async_context(Redis(config_of(proxy.url))) for _ in range(2)]
        limiters = [RateLimiter(client, on_outage=LocalShare(processes=2)) for client in clients]
        tasks = [task for limiter in limiters for task in await crowd(limiter, limit, 6, released)]
        await more(released, 16)
        proxy.refuse()
        proxy.reset()
        while any(limiter._outage is None or limiter._outage.up for limiter in limiters):
            await asyncio.sleep(0.01)
        gone = len(released)
        await more(released, 16)
        assert worst_window(released[gone:], 0.5 - JITTER_S) <= 8
        proxy.heal()
        while not all(limiter._outage.up for limiter in limiters):
            await asyncio.sleep(0.01)
        await more(released, 16)
        await end(tasks)
    assert worst_window(released, 0.5 - JITTER_S) <= 8


async def test_local_share_in_allow(valkey_server):
    """A share of the permits, then a refusal that says when; what is less than one permit is nothing."""
    async with FaultProxy(valkey_server.url.removeprefix("redis://")) as proxy, Redis(config_of(proxy.url)) as lossy:
        limiter = RateLimiter(lossy, on_outage=LocalShare(processes=4))
        limit, scarce = RateLimit("small", Rate(9, per=0.2), pad=0), RateLimit("scarce", Rate(3, per=0.2), pad=0)
        slow = RateLimit("slow", Rate(9, per=20), pad=0)
        await limiter.allow(limit)
        proxy.refuse()
        proxy.reset()
        while not (first := await limiter.allow(limit)).allowed:
            assert first.retry_after > 0
            await asyncio.sleep(first.retry_after)
        assert first.remaining == 1
        assert (
            35 < (await limiter.allow(slow)).retry_after <= 40
        )  # a window, and as far ahead as Redis may have granted
        assert not (await limiter.allow(scarce)).allowed
        assert (await limiter.allow(scarce)).retry_after == float("inf")


def test_a_policy_is_one_of_three():
    """Anything else is refused where it is said."""
    with pytest.raises(ValueError, match="on_outage='never'"):
        RateLimiter(Redis(), on_outage="never")
    with pytest.raises(ValueError, match="processes=0"):
        LocalShare(processes=0)


async def test_a_hundred_thousand_a_day(redis):
    """Large limits and windows: exact, quick, and at most sixteen bytes per permit and a constant."""
    limiter, limit = RateLimiter(redis), RateLimit("daily", Rate(100_000, per=86_400), pad=0)
    for _ in range(50):
        decisions = await asyncio.gather(*(limiter.allow(limit, cost=20) for _ in range(100)))
        assert all(decision.allowed for decision in decisions)
    last = await limiter.allow(limit)
    assert (last.allowed, last.remaining) == (False, 0)
    assert 86_000 < last.retry_after <= 86_400  # the first was taken a moment ago
    sizes = [await redis.execute("MEMORY", "USAGE", key) for key in await redis.execute("KEYS", "*")]
    assert sum(sizes) <= 16 * 100_000 + 2_000
    with pytest.raises(RateLimitTimeoutError) as refused:
        await limiter.wait(limit, timeout=60)
    assert refused.value.retry_after_s > 86_000


async def test_a_changed_limit_counts_what_stands(redis):
    """Permits already given count against the new numbers, whichever is stricter; nothing given is taken back."""
    limiter = RateLimiter(redis)
    for _ in range(8):
        assert (await limiter.allow(RateLimit("changed", Rate(10, per=60), pad=0))).allowed
    assert not (await limiter.allow(RateLimit("changed", Rate(5, per=60), pad=0))).allowed
    assert (await limiter.peek(RateLimit("changed", Rate(5, per=60), pad=0))).remaining == 0
    wider = RateLimit("changed", Rate(12, per=60), pad=0)
    assert [(await limiter.allow(wider)).allowed for _ in range(5)] == [True] * 4 + [False]
    longer = RateLimit("changed", Rate(12, per=600), pad=0)
    assert (await limiter.allow(longer)).retry_after > 590
    assert (await limiter.allow(RateLimit("changed", Rate(50, per=1), pad=0))).allowed
    assert (await limiter.peek(longer)).used == 13  # the longest window that was ever used decides what is remembered


async def test_another_version_of_aegis_is_refused_and_left_alone(redis):
    """Scripts of another layout: a typed error from every call, nothing granted, and what they wrote stays as it is."""
    limit = RateLimit("versions", Rate(5, per=60))
    limiter = RateLimiter(redis)
    await limiter.allow(limit)
    state = f"{key_name('aegis', limit, '')}:state"
    newer = b"\x02" + (await redis.execute("GET", state))[1:] + b"and more"
    await redis.execute("SET", state, newer)
    calls = (limiter.allow, limiter.wait, limiter.peek, RateLimiter(redis).allow, lambda limit: limiter.hold(limit, 1))
    for call in calls:
        with pytest.raises(RateLimitLayoutError, match=r"'versions' is kept in layout 2 .* knows layout 1 and granted"):
            await call(limit)
    assert await redis.execute("GET", state) == newer
    assert await redis.execute("LLEN", state.replace(":state", ":ring")) == 1
    await limiter.reset(limit)
    assert (await limiter.allow(limit)).allowed


@pytest.mark.parametrize("lost", ["ring", "state"])
async def test_half_of_the_keys_is_lost(redis, lost):
    """Somebody deletes or evicts one of them: what the other one tells still counts, and it recovers."""
    limit = RateLimit("evicted", Rate(5, per=0.3), Rate(50, per=1.0))
    limiter, moments = RateLimiter(redis), []
    for _ in range(3):
        for _ in range(4):
            if (await limiter.allow(limit)).allowed:
                moments.append(time.monotonic())
        await redis.execute("DEL", f"{key_name('aegis', limit, '')}:{lost}")
        assert (await limiter.peek(limit)).used <= 5
        for _ in range(8):
            await limiter.wait(limit)
            moments.append(time.monotonic())
    assert worst_window(moments, 0.3 - JITTER_S) <= 5
    for name in await redis.execute("KEYS", "*"):
        assert await redis.execute("PTTL", name) > 0
