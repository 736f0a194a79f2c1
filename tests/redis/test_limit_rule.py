"""
The rule on the server: scripts on a real server with fed clocks, against an oracle of plain integers.

Exactness is judged in real time: the fed clock may step, and what counts is when permits would be used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from aegis.config import RedisConfig
from aegis.redis import Lane, Rate, RateLimit, Redis
from aegis.redis.limiting.counts import Counts
from aegis.redis.limiting.gate import Gate, Grant, LaneAsk, Run, micros

START_US = 1_900_000_000_123_457
RATES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5_000_000)), min_size=1, max_size=3)


def limit_of(rates: list[tuple[int, int]]) -> RateLimit:
    return RateLimit("rule", *(Rate(limit, per=us / 1e6) for limit, us in rates), pad=0)


def gate_of(redis: Redis, limit: RateLimit, me: str = "me") -> Gate:
    return Gate(redis, {}, limit, "{rule}", me, counts=Counts())


def on_a_server(valkey_server, run: Callable[[Redis], Awaitable[None]]) -> None:
    async def with_redis() -> None:
        async with Redis(RedisConfig(url=valkey_server.url)) as redis:
            await redis.execute("FLUSHALL")
            await run(redis)

    asyncio.run(with_redis())


async def keep(redis: Redis, gate: Gate) -> None:
    """The fed clock is not the server's: nothing shall expire because this machine is slow."""
    await redis.pipeline([("PERSIST", key) for key in gate.keys])


def earliest(due: list[int], base: int, cost: int, rates: list[tuple[int, int]]) -> int:
    """The oracle: the first moment from `base` on at which every window has room for `cost`; none before the newest."""
    base = max([base, *due])
    for moment in sorted({base, *(d + per for d in due for _, per in rates if d + per > base)}):
        if all(sum(d > moment - per for d in due) + cost <= limit for limit, per in rates):
            return moment
    raise AssertionError("an oracle always finds a moment")


def worst(moments: list[int], per: int) -> int:
    """The most moments in any half-open window of that length."""
    return max((sum(start <= moment < start + per for moment in moments) for start in moments), default=0)


# One process: gap to the step before (negative: the clock steps back), what it does, and a number for it.
ALONE = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 2_000_000), st.integers(-3_000_000, 0)),
        st.sampled_from(["take", "turn", "turn", "return", "peek", "change"]),
        st.integers(1, 6),
        st.integers(1, 4),
    ),
    max_size=40,
)


@example(
    rates=[(6, 306), (10, 377)],
    others=[(1, 1)],
    steps=[(0, "turn", 6, 1), (0, "turn", 4, 1), (500, "return", 1, 1), (-124, "take", 1, 1)],
)
@example(  # what is one window old, to the microsecond, is out of it; how many that are is found in the middle, too
    rates=[(20, 1000)],
    others=[(1, 1)],
    steps=[(0, "take", 5, 1), (1, "take", 5, 1), (1, "take", 5, 1), *[(gap, "peek", 1, 1) for gap in (998, 1, 1)]],
)
@example(  # two in the middle are given back: what comes next is still not due before the newest
    rates=[(3, 1_000_000)],
    others=[(1, 1)],
    steps=[(300_000, "take", 1, 1)] * 3
    + [(0, "turn", 3, 1), (0, "return", 3, 1), (0, "return", 2, 1), (0, "turn", 1, 1)],
)
@settings(max_examples=80, deadline=None)
@given(rates=RATES, others=RATES, steps=ALONE)
def test_one_process_gets_what_the_oracle_gives(valkey_server, rates, others, steps):
    """
    Takes, turns, returns, clocks that step back, and limits that change while reservations stand: who is served, when,
    what is left and when the next is due.
    """
    changed = any(action == "change" for _, action, _, _ in steps)

    async def run(redis: Redis) -> None:
        nonlocal rates, others
        widest = max(per for _, per in rates + others)
        remembering = gate_of(redis, limit_of([(1, widest)]))  # else the wider ones would find what was trimmed missing
        remembering.now_us = START_US - 1_000_000_000
        await remembering.take([(1, 1)])
        gates = {each: gate_of(redis, limit_of(list(each))) for each in (tuple(rates), tuple(others))}
        await keep(redis, remembering)
        due: list[int] = []  # in the order of grants, on the clock that never steps back
        clock, last, skew = START_US, 0, 0
        for gap, action, number, wanted in steps:
            if action == "change":
                rates, others = others, rates
            gate = gates[tuple(rates)]
            horizon = micros(gate.limit.horizon_s(Lane.URGENT))
            cost = min(wanted, *(limit for limit, _ in rates))
            clock += gap
            now = clock + skew
            if now < last:
                now, stepped = last, skew + last - now
            else:
                stepped = skew
            gate.now_us = clock
            wrote = False
            if action == "take":
                served = 0
                while served < number and earliest(due, now, cost, rates) <= now:
                    due += [now] * cost
                    served += 1
                took = (await gate.take([(number, cost)]))[0]
                assert took.served == served
                assert took.left == max(0, rates[0][0] - sum(d > now - rates[0][1] for d in due))
                assert took.retry_us == (earliest(due, now, cost, rates) - now if served < number else 0)
                wrote = served > 0
            elif action == "turn":
                expected = []
                while len(expected) < number and (at := earliest(due, now, cost, rates)) <= now + horizon:
                    expected.append(at)
                    due += [at] * cost
                turn = await gate.turn([LaneAsk(Lane.URGENT, number * cost, [Run(number, cost, -1)])])
                assert (turn.now_us, turn.skew_us) == (now, stepped)
                assert [g.due_us for g in turn.grants for _ in range(g.permits)] == [
                    at for at in expected for _ in range(cost)
                ]
                left = (number - len(expected)) * cost
                assert [told.permits for told in turn.told] == [left] * (left > 0)
                for told in turn.told:
                    assert told.first_us == earliest(due, now, 1, rates)
                    assert told.back_us == max(now + 5000, earliest(due, now, cost, rates) - horizon)
                await gate.turn([])  # it gives up what it still waits for, else nobody could take that
                wrote = True
            elif action == "return" and due:
                back = due[-number:][0]
                held = min(cost, due.count(back))
                gone = await gate.give_back([Grant(Lane.URGENT, back, held)], [])
                assert gone == (held if back > now else 0)
                for _ in range(gone):
                    due.remove(back)
                wrote = gone > 0
            else:
                usage = await gate.peek()
                assert usage.used == sum(now - rates[0][1] < d <= now for d in due)
                assert usage.remaining == max(0, rates[0][0] - sum(d > now - rates[0][1] for d in due))
                assert usage.next_in == (earliest(due, now, 1, rates) - now) / 1e6
            if wrote:
                last, skew = now, stepped
            await keep(redis, gate)
        for allowed, per in [] if changed else rates:
            assert worst(due, per) <= allowed

    on_a_server(valkey_server, run)


# Several processes: who, how much real time later, how much the server's clock steps meanwhile, and what.
CROWD = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 1_500_000),
        st.one_of(st.just(0), st.just(0), st.integers(-4_000_000, 0)),
        st.sampled_from(["take", "turn", "turn", "turn", "return", "hold"]),
        st.sampled_from(list(Lane)),
        st.integers(1, 15),
        st.integers(1, 4),
        st.one_of(st.just(-1), st.integers(0, 5_000_000)),
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(rates=RATES, steps=CROWD)
def test_no_window_of_any_rate_holds_more_than_its_limit(valkey_server, rates, steps):
    """Any mix of processes, lanes, costs, patience, returns, holds, and clocks that step back: exact in real time."""
    limit, most = limit_of(rates), min(limit for limit, _ in rates)

    async def run(redis: Redis) -> None:
        gates = [gate_of(redis, limit, f"p{number}") for number in range(4)]
        released: list[tuple[int, int]] = []  # real moment, and the due time that the server calls it by
        real, clock, held_until = START_US, START_US + 77, 0
        for who, gap, step, action, lane, number, wanted, patience in steps:
            real, clock, cost = real + gap, clock + gap + step, min(wanted, most)
            gate = gates[who]
            gate.now_us = clock
            if action == "take":
                took = (await gate.take([(number, cost)]))[0]
                released += [(real, 0)] * (took.served * cost)
                assert not (took.served and real < held_until)
            elif action == "turn":
                turn = await gate.turn([LaneAsk(lane, number * cost, [Run(number, cost, patience)])])
                for grant in turn.grants:
                    moment = real + grant.due_us - turn.now_us
                    assert moment >= max(real, held_until)
                    assert patience < 0 or grant.due_us - turn.now_us <= patience + limit.horizon_s(lane) * 1e6
                    released += [(moment, grant.due_us)] * grant.permits
                for refusal in turn.refused:
                    assert refusal.wait_us > patience >= 0
            elif action == "return" and released:
                moment, due = released[-min(number, len(released))]
                same = released.count((moment, due))
                gone = await gate.give_back([Grant(lane, due, same)], []) if moment > real else 0
                for _ in range(gone):
                    released.remove((moment, due))
            elif action == "hold":
                left_s = await gate.hold(number / 10)
                assert left_s >= number / 10
                held_until = max(held_until, real + number * 100_000)
            await keep(redis, gate)
        for allowed, per in rates:
            assert worst([moment for moment, _ in released], per) <= allowed

    on_a_server(valkey_server, run)
