"""The limiter: exact against an oracle on any clock, gives back what is cancelled, refuses what comes too late."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aegis.errors import RateLimitTimeoutError
from aegis.redis import Rate, RateLimit, RateLimiter, Redis
from aegis.redis.ratelimit import _CANCEL, _RESERVE

RATES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5_000_000)), min_size=1, max_size=3)
#: One step: gap to the step before (may be negative: the server's clock steps back), cost, longest wait, cancel it?
STEPS = st.lists(
    st.tuples(
        st.integers(-200_000, 2_000_000),
        st.integers(1, 4),
        st.one_of(st.just(-1), st.integers(0, 10_000_000)),
        st.booleans(),
    ),
    max_size=40,
)


def earliest(due: list[int], now: int, held: int, cost: int, rates: list[tuple[int, int]]) -> int:
    """The oracle: the first moment from now on, not before the newest, at which every window has room for `cost`."""
    moments = sorted({max(now, held, *due[-1:]), *(d + per for d in due for _, per in rates)})
    for moment in moments:
        if moment < max(now, held, *due[-1:]):
            continue
        if all(sum(1 for d in due if d > moment - per) + cost <= limit for limit, per in rates):
            return moment
    raise AssertionError("an oracle always finds a moment")


async def reserve(
    redis: Redis, now: int, cost: int, longest: int, rates: list[tuple[int, int]]
) -> tuple[int, int, int]:
    args = [now, cost, longest, *(number for rate in rates for number in rate)]
    reserved, wait, due, _ = await redis.run(_RESERVE, ["{t}:ring", "{t}:hold"], args)
    return reserved, int(wait), int(due)


@example(  # found here: trimmed by time alone, a clock that steps back after a cancellation met a ring too short
    rates=[(6, 306), (10, 377)],
    steps=[(0, 1, -1, False)] * 2
    + [(0, 3, -1, False), (0, 1, -1, False), (0, 4, -1, False), (500, 3, -1, True)]
    + [(-124, 1, -1, False)],
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rates=RATES, steps=STEPS)
def test_script_and_oracle_agree(valkey_server, rates, steps):
    """Any run of costs, gaps, deadlines, cancellations and clocks that step back: the oracle's slots, to the µs."""

    async def run() -> None:
        from aegis.config import RedisConfig

        async with Redis(RedisConfig(url=valkey_server.url)) as redis:
            await redis.execute("FLUSHALL")
            due: list[int] = []
            now = 1_900_000_000_123_457
            for gap, cost, longest, cancel in steps:
                now += gap
                if cost > min(limit for limit, _ in rates):
                    continue
                expected = earliest(due, now, 0, cost, rates)
                reserved, wait, at = await reserve(redis, now, cost, longest, rates)
                assert (wait, at) == (expected - now, expected)
                assert reserved == (longest < 0 or wait <= longest)
                if not reserved:
                    continue
                due += [at] * cost
                if cancel:
                    gone = await redis.run(_CANCEL, ["{t}:ring"], [now, at, cost])
                    assert gone == (cost if at > now else 0)
                    if gone:
                        del due[-cost:]
            for limit, per in rates:
                assert all(sum(1 for d in due if start <= d < start + per) <= limit for start in due)

    asyncio.run(run())


async def test_released_callers_never_exceed_any_window(redis):
    """A crowd with timeouts and cancellations, judged on the moments at which callers went on (the server's clock)."""
    limiter, limit = RateLimiter(redis), RateLimit("crowd", Rate(20, per=0.5), Rate(3, per=0.05))
    loop = asyncio.get_running_loop()
    released: list[float] = []

    async def caller(number: int) -> None:
        try:
            await asyncio.wait_for(limiter.wait(limit, timeout=2.0), 0.05 * (number % 7) + 0.3 if number % 3 else None)
        except (TimeoutError, RateLimitTimeoutError):
            return
        released.append(loop.time())

    await asyncio.gather(*(caller(number) for number in range(120)))
    assert len(released) > 30
    for rate in limit.rates:
        for start in released:
            assert sum(1 for moment in released if start <= moment < start + rate.per) <= rate.limit


async def test_two_limiters_share_one_quota(redis):
    """Two contenders, one server: together they get the limit, and no more."""
    limit = RateLimit("shared", Rate(5, per=30))
    contenders = [RateLimiter(redis), RateLimiter(redis)]
    granted = [await contenders[n % 2].allow(limit) for n in range(12)]
    assert [decision.allowed for decision in granted] == [True] * 5 + [False] * 7
    assert [decision.remaining for decision in granted[:5]] == [4, 3, 2, 1, 0]
    assert 29 < granted[5].retry_after <= 30.05


async def test_what_cannot_be_met_raises_at_once_and_consumes_nothing(redis):
    """The refusal says when to come back, and the quota is untouched."""
    limiter, limit = RateLimiter(redis), RateLimit("late", Rate(1, per=60))
    assert await limiter.wait(limit) == pytest.approx(0.0, abs=0.2)
    with pytest.raises(RateLimitTimeoutError, match="late") as refused:
        await limiter.wait(limit, timeout=1.0)
    assert 58 < refused.value.retry_after_s <= 60.05
    usage = await limiter.peek(limit)
    assert (usage.used, usage.remaining) == (1, 0)


async def test_cancelled_waiter_gives_its_slot_to_the_next(redis):
    """Cancelling a waiter frees the slot: the next one does not wait behind a ghost."""
    limiter, limit = RateLimiter(redis), RateLimit("cancel", Rate(1, per=0.4))
    await limiter.wait(limit)
    waiters = [asyncio.create_task(limiter.wait(limit)) for _ in range(5)]
    while limiter.stats().server_calls < 6:
        await asyncio.sleep(0.005)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    assert limiter.stats().cancelled == 5
    while (await limiter.peek(limit)).next_in > 0.46:
        await asyncio.sleep(0.005)
    assert await limiter.wait(limit) < 0.6


async def test_hold_stops_everybody_and_only_extends_forward(redis):
    """A shorter hold does not shorten a longer one; `peek` says how long it lasts."""
    limiter, other, limit = RateLimiter(redis), RateLimiter(redis), RateLimit("hold", Rate(5, per=1))
    await limiter.hold(limit, 30)
    await limiter.hold(limit, 1)
    decision = await other.allow(limit)
    assert not decision.allowed
    assert 29 < decision.retry_after <= 30
    assert 29 < (await other.peek(limit)).held_for <= 30
    await limiter.reset(limit)
    assert (await other.allow(limit)).allowed


async def test_keys_separate_accounts_and_are_never_stored_in_clear(redis):
    """One account's use is not another's; the account is hashed in the key."""
    limiter, limit = RateLimiter(redis), RateLimit("kis", Rate(1, per=60))
    assert (await limiter.allow(limit, key="00123456-01")).allowed
    assert (await limiter.allow(limit, key="00999999-01")).allowed
    assert not (await limiter.allow(limit, key="00123456-01")).allowed
    names = b" ".join(await redis.execute("KEYS", "*"))
    assert b"00123456" not in names


async def test_every_key_expires_and_not_before_its_queue(redis):
    """The time to live covers the queue, not only the window."""
    limiter, limit = RateLimiter(redis), RateLimit("ttl", Rate(1, per=10))
    waiters = [asyncio.create_task(limiter.wait(limit)) for _ in range(4)]
    while limiter.stats().server_calls < 4:
        await asyncio.sleep(0.005)
    [name] = await redis.execute("KEYS", "*")
    assert 39_000 < await redis.execute("PTTL", name) <= 42_500
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)


async def test_script_flush_is_not_noticed(redis):
    """The scripts are sent again when the server forgot them."""
    limiter, limit = RateLimiter(redis), RateLimit("flush", Rate(2, per=60))
    assert (await limiter.allow(limit)).allowed
    await redis.execute("SCRIPT", "FLUSH")
    assert (await limiter.allow(limit)).allowed
    assert not (await limiter.allow(limit)).allowed


@pytest.mark.parametrize("cost", [0, -1, 6])
async def test_impossible_cost_is_refused_before_any_io(redis, cost):
    """The error names the cost, the bound and the limit."""
    limiter = RateLimiter(redis)
    with pytest.raises(ValueError, match=rf"cost={cost} .*between 1 and 5.*'kis'"):
        await limiter.wait(RateLimit("kis", Rate(5, per=1)), cost=cost)
    assert limiter.stats().server_calls == 0


@pytest.mark.parametrize(("limit", "per"), [(0, 1), (1, 0), (1, -1), (1, math.inf)])
def test_impossible_rate_is_refused(limit, per):
    """A rate must allow something in a finite time."""
    with pytest.raises(ValueError, match=f"limit={limit}"):
        Rate(limit, per=per)


async def test_a_starved_process_does_not_use_slots_that_are_long_due(redis):
    """The loop is blocked over the due moment: the slot is dropped and another one taken."""
    limiter, limit = RateLimiter(redis), RateLimit("starved", Rate(1, per=0.2))
    await limiter.wait(limit)
    waiting = asyncio.create_task(limiter.wait(limit))
    while limiter.stats().server_calls < 2:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
    time.sleep(0.4)  # noqa: ASYNC251 - this is the starvation
    await waiting
    assert limiter.stats().late >= 1
