"""The limiter as its callers see it: in one process, on a real server and its clock."""

from __future__ import annotations

import asyncio
import math
import re
import time

import pytest
from limit_fleet import given, judge, remember, worst_window

from aegis.errors import ClosedError, RateLimitTimeoutError, TooManyWaitersError
from aegis.redis import Lane, Rate, RateLimit, RateLimiter, Redis


async def waiting(limiter: RateLimiter, count: int) -> None:
    """Return when so many wait and no question is under way."""
    while limiter.stats().waiting < count or any(d._asking or d._settling for d in limiter._dispatchers.values()):
        await asyncio.sleep(0.002)


async def test_released_callers_never_exceed_any_window(redis):
    """A crowd with timeouts and cancellations: permits are exact, callers go on when theirs are due, not much later."""
    limiter, limit = RateLimiter(redis), RateLimit("fleet", Rate(20, per=0.5), Rate(3, per=0.05))
    await remember(redis)
    released: list[float] = []

    async def caller(number: int) -> None:
        try:
            await asyncio.wait_for(limiter.wait(limit, timeout=2.0), 0.05 * (number % 7) + 0.3 if number % 3 else None)
        except (TimeoutError, RateLimitTimeoutError):
            return
        released.append(time.time())

    await asyncio.gather(*(caller(number) for number in range(120)))
    assert len(released) > 30
    permits = await given(redis)
    judge(released, permits, 20, 0.5, limit.pad)
    assert worst_window(permits, 0.05 + limit.pad - 1e-6) <= 3


async def test_two_limiters_share_one_quota(redis):
    """Two contenders, one server: together they get the limit, and no more."""
    limit = RateLimit("shared", Rate(5, per=30))
    contenders = [RateLimiter(redis), RateLimiter(redis)]
    granted = [await contenders[n % 2].allow(limit) for n in range(12)]
    assert [decision.allowed for decision in granted] == [True] * 5 + [False] * 7
    assert [decision.remaining for decision in granted[:5]] == [4, 3, 2, 1, 0]
    assert 20 < granted[5].retry_after <= 30.05


async def test_what_cannot_be_met_raises_at_once_and_consumes_nothing(redis):
    """The refusal says when to come back, and the quota is untouched."""
    limiter, limit = RateLimiter(redis), RateLimit("late", Rate(1, per=60))
    assert await limiter.wait(limit) < 10
    before = [await redis.execute("DUMP", key) for key in sorted(await redis.execute("KEYS", "*"))]
    with pytest.raises(RateLimitTimeoutError, match="late") as refused:
        await limiter.wait(limit, timeout=1.0)
    assert 40 < refused.value.retry_after_s <= 60.05
    assert before == [await redis.execute("DUMP", key) for key in sorted(await redis.execute("KEYS", "*"))]
    usage = await limiter.peek(limit)
    assert (usage.used, usage.remaining) == (1, 0)


async def test_cancelled_waiter_gives_its_slot_to_the_next_one_here(redis):
    """No question, no loss: the next in line is released at the moment of the cancelled one."""
    limiter, limit = RateLimiter(redis), RateLimit("cancel", Rate(1, per=1), pad=0.5)
    await limiter.wait(limit)
    first, second = (asyncio.create_task(limiter.wait(limit)) for _ in range(2))
    await waiting(limiter, 2)
    first.cancel()
    assert await second < 2.5  # it would be 3 behind a ghost
    assert limiter.stats().cancelled == 1


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
async def test_cancellation_at_every_await_loses_no_permit(redis, turns):
    """Wherever it is hit, what it had serves the next one."""
    limiter, limit = RateLimiter(redis), RateLimit("every", Rate(1, per=30), pad=0)
    victim = asyncio.create_task(limiter.wait(limit))
    heir = asyncio.create_task(limiter.wait(limit))
    for _ in range(turns):
        await asyncio.sleep(0)
    victim.cancel()
    await asyncio.wait([victim])
    if victim.cancelled():
        assert await asyncio.wait_for(heir, 10) < 10
    else:
        heir.cancel()
    await asyncio.gather(heir, return_exceptions=True)
    assert (await limiter.peek(limit)).used == 1


async def test_cancelled_in_the_very_moment_of_its_release(redis):
    """The permit is its own already, and it never runs again: the next one gets it."""
    limiter, limit = RateLimiter(redis), RateLimit("moment", Rate(1, per=30), pad=0)
    callers = limiter._dispatcher(limit, "").callers
    tell = callers._on_change

    def trap() -> None:  # set before the victim awaits its future, so that it strikes before the victim wakes up
        next(iter(callers._queue)).future.add_done_callback(lambda _: victim.cancel())
        callers._on_change = tell
        tell()

    callers._on_change = trap
    victim, heir = (asyncio.create_task(limiter.wait(limit)) for _ in range(2))
    assert await asyncio.wait_for(heir, 10) < 10
    assert victim.cancelled()
    assert (await limiter.peek(limit)).used == 1


@pytest.mark.parametrize("lane", [Lane.URGENT, Lane.NORMAL])
async def test_cancelled_waiter_gives_its_slot_to_the_next_one_elsewhere(redis, lane):
    """
    Another contender is told at once: it does not find the free slot only when its own would have come.

    The urgent one had a slot, the other one only the place before.
    """
    here, there = sorted((RateLimiter(redis), RateLimiter(redis)), key=lambda limiter: limiter._me)
    limit = RateLimit("elsewhere", Rate(1, per=1), pad=0.5)
    await RateLimiter(redis).wait(limit)
    first = asyncio.create_task(here.wait(limit, lane=lane))
    await waiting(here, 1)
    second = asyncio.create_task(there.wait(limit))
    await waiting(there, 1)
    while not there._bell._feed._link or there._bell._feed._acks:
        await asyncio.sleep(0.002)
    first.cancel()
    assert await second < 2.4  # it would be 3 behind a ghost, and 2.6 if it came when it was told to


async def test_all_cancelled_leave_no_trace(redis):
    """What is given back while it is not due is as if it had never been."""
    limiter, limit = RateLimiter(redis), RateLimit("trace", Rate(5, per=20), pad=0)
    await asyncio.gather(*(limiter.wait(limit) for _ in range(5)))
    before = await limiter.peek(limit)
    waiters = [asyncio.create_task(limiter.wait(limit, lane=Lane.URGENT)) for _ in range(7)]
    await waiting(limiter, 7)
    assert (await limiter.peek(limit))[:2] == (5, 0)  # what is reserved is neither used nor left
    assert limiter.stats().limits["trace"].reserved == 5
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    while limiter.stats().limits["trace"].returned < 5:
        await asyncio.sleep(0.002)
    after = await limiter.peek(limit)
    assert after.next_in == pytest.approx(before.next_in, abs=2)
    assert after.used == before.used


async def test_an_urgent_caller_overtakes_everybody_not_yet_due(redis):
    """Here it takes the very next slot, whosever it was; the others move back by one."""
    limiter, limit = RateLimiter(redis), RateLimit("urgent", Rate(1, per=0.5), pad=0)
    await limiter.wait(limit)
    order: list[str] = []

    async def caller(name: str, lane: Lane) -> None:
        await limiter.wait(limit, lane=lane)
        order.append(name)

    tasks = [asyncio.create_task(caller("bulk", Lane.BULK))]
    await waiting(limiter, 1)
    tasks.append(asyncio.create_task(caller("normal", Lane.NORMAL)))
    await waiting(limiter, 2)
    tasks.append(asyncio.create_task(caller("urgent", Lane.URGENT)))
    await asyncio.gather(*tasks)
    assert order == ["urgent", "normal", "bulk"]


async def test_first_come_first_served(redis):
    """Within a lane the order of release is the order of asking, whatever the costs."""
    limiter, limit = RateLimiter(redis), RateLimit("order", Rate(6, per=0.2), pad=0)
    order: list[int] = []

    async def caller(number: int) -> None:
        await limiter.wait(limit, cost=1 + number % 3)
        order.append(number)

    await asyncio.gather(*(caller(number) for number in range(30)))
    assert order == list(range(30))


async def test_callers_of_one_turn_share_one_call(redis):
    """Two thousand callers: one question, and far less than one per grant."""
    limiter, limit = RateLimiter(redis), RateLimit("crowd", Rate(2000, per=1))
    await asyncio.gather(*(limiter.wait(limit) for _ in range(2000)))
    assert limiter.stats().server_calls == 1


async def test_a_hold_stops_those_who_have_slots_already(redis):
    """The others hear of it at once, and nobody is released before it ends; then permits come one by one."""
    here, there, limit = RateLimiter(redis), RateLimiter(redis), RateLimit("held", Rate(10, per=1), pad=0)
    loop, released = asyncio.get_running_loop(), []
    await asyncio.gather(*(there.wait(limit) for _ in range(10)))

    async def caller() -> None:
        await there.wait(limit)
        released.append(loop.time())

    tasks = [asyncio.create_task(caller()) for _ in range(10)]
    while not any(d._queue.slots for d in there._dispatchers.values()) or there._bell._feed._acks:
        await asyncio.sleep(0.002)
    await here.hold(limit, 1.5)
    said = loop.time()
    await asyncio.gather(*tasks)
    assert min(released) > said + 1.4
    assert max(sum(at <= other < at + 0.5 for other in released) for at in released) <= 6  # in a burst it would be 10
    assert there.stats().limits["held"].held_for == 0


async def test_hold_stops_everybody_and_only_extends_forward(redis):
    """A shorter hold does not shorten a longer one; `peek` says how long it lasts."""
    limiter, other, limit = RateLimiter(redis), RateLimiter(redis), RateLimit("hold", Rate(5, per=1))
    await limiter.hold(limit, 30)
    await limiter.hold(limit, 1)
    decision = await other.allow(limit)
    assert not decision.allowed
    assert 20 < decision.retry_after <= 30
    assert 20 < (await other.peek(limit)).held_for <= 30
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
    limiter, limit = RateLimiter(redis), RateLimit("ttl", Rate(1, per=10), pad=0)
    waiters = [asyncio.create_task(limiter.wait(limit, lane=Lane.URGENT)) for _ in range(4)]
    await waiting(limiter, 3)
    names = await redis.execute("KEYS", "*")
    assert len(names) == 3
    for name in names:
        assert 15_000 < await redis.execute("PTTL", name) <= 60_000
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


@pytest.mark.parametrize("cost", [1.5, True, "1", None])
async def test_a_cost_is_a_whole_number(redis, cost):
    """Anything else is refused by name; it would have broken the line of all who wait."""
    limiter, limit = RateLimiter(redis), RateLimit("whole", Rate(5, per=1))
    for ask in (limiter.allow, limiter.wait):
        with pytest.raises(TypeError, match=f"cost={cost!r} must be a whole number"):
            await ask(limit, cost=cost)
    assert limiter.stats().server_calls == 0


async def test_a_timeout_may_be_endless_but_is_a_number(redis):
    """Infinite means the same as none; what is no number is refused, and those who wait go on."""
    limiter, limit = RateLimiter(redis), RateLimit("endless", Rate(1, per=0.2))
    await limiter.wait(limit)
    waits = [asyncio.create_task(limiter.wait(limit, timeout=timeout)) for timeout in (math.inf, 1e12, None)]
    await waiting(limiter, 3)
    with pytest.raises(ValueError, match="timeout=nan is not a number"):
        await limiter.wait(limit, timeout=math.nan)
    await asyncio.gather(*waits)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 1e12])
async def test_a_hold_has_an_end(redis, seconds):
    """What would stop the fleet for good is refused, and holds nothing."""
    limiter, limit = RateLimiter(redis), RateLimit("held", Rate(5, per=1))
    with pytest.raises(ValueError, match=f"seconds={re.escape(str(seconds))} of a hold must be at most 31536000"):
        await limiter.hold(limit, seconds)
    assert (await limiter.allow(limit)).allowed


def test_a_limit_has_a_name_and_whole_numbers():
    """Said where it is written down, not where it is used."""
    with pytest.raises(TypeError, match=r"limit=1\.5.*whole number"):
        Rate(1.5, per=1)
    with pytest.raises(ValueError, match="needs a name"):
        RateLimit("", Rate(1, per=1))


async def test_so_many_wait_and_no_more(redis):
    """One too many is refused at once, by name, number and remedy; when one leaves, there is room again."""
    limiter, limit = RateLimiter(redis, waiting_max=3), RateLimit("crowded", Rate(1, per=60))
    await limiter.wait(limit)
    tasks = [asyncio.create_task(limiter.wait(limit)) for _ in range(3)]
    await waiting(limiter, 3)
    with pytest.raises(TooManyWaitersError, match=r"'crowded': 3 callers wait .* higher waiting_max"):
        await limiter.wait(limit)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    assert await limiter.wait(limit, key="another account") < 30
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with pytest.raises(ValueError, match="waiting_max=0"):
        RateLimiter(redis, waiting_max=0)


@pytest.mark.parametrize(("limit", "per"), [(0, 1), (1, 0), (1, -1), (1, math.inf)])
def test_impossible_rate_is_refused(limit, per):
    """A rate must allow something in a finite time."""
    with pytest.raises(ValueError, match=f"limit={limit}"):
        Rate(limit, per=per)


async def test_a_starved_process_does_not_use_slots_that_are_long_due(redis):
    """The loop is blocked over the due moment: the slot is dropped and another one taken."""
    limiter, limit = RateLimiter(redis), RateLimit("starved", Rate(1, per=0.2))
    await limiter.wait(limit)
    task = asyncio.create_task(limiter.wait(limit))
    while not any(d._queue.slots for d in limiter._dispatchers.values()):
        await asyncio.sleep(0.002)
    time.sleep(0.4)  # noqa: ASYNC251 - this is the starvation
    await task
    assert limiter.stats().late >= 1


async def test_close_ends_the_waiting(valkey_server):
    """Whoever waits gets ClosedError, what was held goes back, and no task is left."""
    from aegis.config import RedisConfig

    limit = RateLimit("closing", Rate(1, per=30), pad=0)
    async with Redis(RedisConfig(url=valkey_server.url)) as redis:
        await redis.execute("FLUSHALL")
        limiter = RateLimiter(redis)
        await limiter.wait(limit)
        waiters = [asyncio.create_task(limiter.wait(limit, lane=Lane.URGENT)) for _ in range(3)]
        await waiting(limiter, 3)
    for ended in await asyncio.gather(*waiters, return_exceptions=True):
        assert isinstance(ended, ClosedError)
    with pytest.raises(ClosedError):
        await limiter.wait(limit)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    async with Redis(RedisConfig(url=valkey_server.url)) as redis:
        assert (await RateLimiter(redis).peek(limit)).used == 1


async def test_decorated_functions_wait_first(redis):
    """Every call pays, keys may come from the arguments, and the function keeps its name."""
    limiter, limit = RateLimiter(redis), RateLimit("decorated", Rate(1, per=30))

    @limiter.limited(limit, key=lambda account: account, timeout=1)
    async def price(account: str) -> str:
        """The price."""
        return account.upper()

    assert await price("a") == "A"
    assert await price("b") == "B"
    with pytest.raises(RateLimitTimeoutError):
        await price("a")
    assert (price.__name__, price.__doc__) == ("price", "The price.")
    with pytest.raises(ValueError, match="cost=2"):
        limiter.limited(limit, cost=2)


async def test_stats_tell_lanes_apart(redis):
    """Granted, waiting, refused, timed out and cancelled, per limit and lane."""
    limiter, limit = RateLimiter(redis), RateLimit("counted", Rate(2, per=5), pad=0)
    await limiter.allow(limit)
    await limiter.wait(limit, lane=Lane.URGENT)
    await limiter.allow(limit)
    with pytest.raises(RateLimitTimeoutError):
        await limiter.wait(limit, timeout=0.1, lane=Lane.BULK)
    task = asyncio.create_task(limiter.wait(limit))
    await waiting(limiter, 1)
    stats = limiter.stats().limits["counted"]
    assert (stats.allowed, stats.denied, stats.lanes[Lane.URGENT].granted) == (1, 1, 1)
    assert (stats.lanes[Lane.BULK].refused, stats.lanes[Lane.NORMAL].waiting) == (1, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    total = limiter.stats()
    assert (total.granted, total.refused, total.cancelled, total.waiting) == (2, 2, 1, 0)
    await limiter.hold(limit, 40)
    assert 30 < limiter.stats().limits["counted"].held_for <= 40


async def test_a_refusal_that_needs_no_question_leaves_no_demand(redis):
    """The first waiter was told when; the second one's deadline is before that. Nothing is ever asked for it."""
    limiter, limit = RateLimiter(redis), RateLimit("known", Rate(1, per=1), pad=0)
    await limiter.wait(limit)
    first = asyncio.create_task(limiter.wait(limit))
    await waiting(limiter, 1)
    calls = limiter.stats().server_calls
    with pytest.raises(RateLimitTimeoutError):
        await limiter.wait(limit, timeout=0.05)
    await waiting(limiter, 1)
    assert limiter.stats().server_calls == calls
    assert limiter.stats().refused == 1
    await first
    [dispatcher] = limiter._dispatchers.values()
    while not dispatcher.idle:
        await asyncio.sleep(0.002)
    assert limiter.stats().late == 0
    assert (await limiter.peek(limit)).used == 1
