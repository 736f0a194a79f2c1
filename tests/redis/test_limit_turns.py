"""
Turns between processes and lanes, on a real server with a fed clock: minutes pass without waiting, and nothing depends
on this machine.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aegis.config import RedisConfig
from aegis.redis import Lane, Rate, RateLimit, Redis
from aegis.redis.limiting.counts import Counts
from aegis.redis.limiting.gate import Gate, LaneAsk, Run

START_US = 1_900_000_000_000_000


@dataclass
class Process:
    """Callers who wait again as soon as they are released; asks when it was told to, or when it has nothing."""

    callers: int
    lane: Lane = Lane.NORMAL
    begins_us: int = 0
    every_us: int = 0  #: callers come one by one, so far apart, and do not come again
    dies_us: int | None = None
    late_us: int = 0  #: it always comes so much later than it was told
    released: list[int] = field(default_factory=list)
    calls: int = 0
    held: list[int] = field(default_factory=list)
    came: list[int] = field(default_factory=list)


class World:
    """One limit, and what time it is."""

    def __init__(self, redis: Redis, limit: RateLimit, processes: list[Process]) -> None:
        self.processes = processes
        self._gates = [
            Gate(redis, {}, limit, "{turns}", f"p{number}", counts=Counts()) for number in range(len(processes))
        ]
        self._redis = redis

    async def run(self, seconds: float) -> None:
        """Let everybody ask when it is time."""
        until = int(seconds * 1e6)
        asking = [(process.begins_us, number) for number, process in enumerate(self.processes)]
        heapq.heapify(asking)
        while asking[0][0] < until:
            now, number = heapq.heappop(asking)
            process = self.processes[number]
            if process.dies_us is None or now < process.dies_us:
                heapq.heappush(asking, (await self._ask(number, process, now), number))
            elif len(asking) == 0:
                break

    async def _ask(self, number: int, process: Process, now: int) -> int:
        process.released += [due for due in process.held if due <= now]
        process.held = [due for due in process.held if due > now]
        wanted = process.callers - len(process.held)
        if process.every_us:
            here = (now - process.begins_us) // process.every_us + 1
            wanted = min(here, process.callers) - len(process.held) - len(process.released)
        if wanted <= 0:
            after = process.begins_us + len(process.came) * process.every_us if process.every_us else now + 10**9
            return min([*process.held, max(after, now + 1)])
        gate = self._gates[number]
        gate.now_us = START_US + now
        process.calls += 1
        turn = await gate.turn([LaneAsk(process.lane, wanted, [Run(wanted, 1, -1)])])
        await self._redis.pipeline([("PERSIST", key) for key in gate.keys])
        got = [grant.due_us - START_US for grant in turn.grants for _ in range(grant.permits)]
        process.held += got
        process.came += [now] * len(got)
        back = [told.back_us - START_US + process.late_us for told in turn.told]
        return max(now + 1, min([*back, *(process.held if not back else [])], default=now + 1))

    @property
    def calls_per_grant(self) -> float:
        return sum(each.calls for each in self.processes) / sum(map(len, map(moments, self.processes)))


def moments(process: Process) -> list[int]:
    """When its permits are used; those of a dead one are not."""
    every = sorted(process.released + process.held)
    return every if process.dies_us is None else [due for due in every if due < process.dies_us]


def between(process: Process, begin_s: float, end_s: float) -> int:
    return sum(begin_s * 1e6 <= due < end_s * 1e6 for due in moments(process))


def run_world(valkey_server, limit: RateLimit, processes: list[Process], seconds: float) -> World:
    async def run() -> World:
        async with Redis(RedisConfig(url=valkey_server.url)) as redis:
            await redis.execute("FLUSHALL")
            world = World(redis, limit, processes)
            await world.run(seconds)
            return world

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("limit", "per", "processes", "callers", "calls"),
    [
        (5, 1, 4, 5, 1.5),
        (20, 1, 4, 5, 1.5),
        (20, 1, 8, 50, 1.5),
        (50, 1, 2, 1000, 0.3),
        (1, 1, 8, 1, 2.5),
        (100, 60, 8, 50, 1.5),
    ],
)
def test_full_fair_and_cheap(valkey_server, limit, per, processes, callers, calls):
    """The whole quota, equal shares, few questions; whoever came first took a burst and is level in the end."""
    crowd = [Process(callers, begins_us=number * 7_000) for number in range(processes)]
    length = max(12, 3 * per, 24 if limit == 1 else 0)
    world = run_world(valkey_server, RateLimit("turns", Rate(limit, per=per), pad=0), crowd, length)
    total = sum(between(process, 0, length) for process in crowd)
    assert total >= 0.98 * limit * length / per
    assert min(between(process, 0, length) for process in crowd) >= 0.9 * (total - limit) / processes
    assert world.calls_per_grant <= calls


def test_urgent_waits_at_most_a_window_and_a_quarter(valkey_server):
    """Behind 200 BULK and NORMAL callers on 5/s, at any moment; and they get what is left."""
    urgent = Process(20, Lane.URGENT, begins_us=3_130_000, every_us=1_370_000)
    bulk, normal = Process(200, Lane.BULK), Process(3, Lane.NORMAL, begins_us=10_000)
    run_world(valkey_server, RateLimit("lanes", Rate(5, per=1), pad=0), [bulk, normal, urgent], 30)
    waits = [due - urgent.begins_us - number * urgent.every_us for number, due in enumerate(moments(urgent))]
    assert len(waits) >= 18
    assert max(waits) <= 1_250_000
    assert sum(between(process, 4, 29) for process in (bulk, normal, urgent)) >= 0.98 * 5 * 25


def test_normal_overtakes_bulk_and_bulk_gets_what_is_left(valkey_server):
    """NORMAL callers who ask for less than the limit get all they ask for; BULK has the rest."""
    normal, bulk = Process(60, begins_us=2_000_000, every_us=500_000), Process(200, Lane.BULK)
    run_world(valkey_server, RateLimit("lanes", Rate(5, per=1), pad=0), [bulk, normal], 30)
    assert between(normal, 4, 28) >= 2 * 24 - 4
    assert between(normal, 4, 28) + between(bulk, 4, 28) >= 0.98 * 5 * 24


@pytest.mark.parametrize("lane", [Lane.NORMAL, Lane.BULK])
def test_no_lane_starves(valkey_server, lane):
    """Twenty permits may pass a lane by; the next one is its own (here they come ten at a time)."""
    greedy, patient = Process(500, Lane.URGENT), Process(5, lane, begins_us=100_000)
    run_world(valkey_server, RateLimit("lanes", Rate(10, per=1), pad=0), [greedy, patient], 60)
    assert 60 * 10 / 32 <= between(patient, 0, 60) <= 60 * 10 / 15


@pytest.mark.parametrize("lane", list(Lane))
def test_a_dead_process_costs_one_window_at_most(valkey_server, lane):
    """What it had reserved, and its place: afterwards the other has the whole quota."""
    victim, heir = Process(50, lane, dies_us=5_000_000), Process(50, lane, begins_us=3_000)
    run_world(valkey_server, RateLimit("dead", Rate(5, per=1), pad=0), [victim, heir], 30)
    assert between(heir, 5, 29) >= 5 * (24 - 1) * 0.98 - 1


def test_a_process_that_always_comes_late_holds_nobody_up(valkey_server):
    """It loses its place each time; the others use the quota."""
    late, others = Process(10, late_us=400_000), [Process(10, begins_us=number * 1000) for number in (1, 2)]
    run_world(valkey_server, RateLimit("late", Rate(10, per=1), pad=0), [late, *others], 30)
    assert sum(between(process, 2, 29) for process in (late, *others)) >= 0.97 * 10 * 27


@example(  # more urgent ones die with a long queue: the others come sooner than after all of it
    limit=1,
    crowd=[Process(1, Lane.URGENT, dies_us=1_000_000), Process(1), Process(11, Lane.URGENT, dies_us=1_000_000)],
)
@settings(max_examples=20, deadline=None)
@given(
    limit=st.integers(1, 12),
    crowd=st.lists(
        st.builds(
            Process,
            callers=st.integers(1, 30),
            lane=st.sampled_from(list(Lane)),
            begins_us=st.integers(0, 2_000_000),
            late_us=st.integers(0, 100_000),
            dies_us=st.one_of(st.none(), st.integers(1_000_000, 9_000_000)),
        ),
        min_size=2,
        max_size=6,
    ),
)
def test_any_crowd_uses_the_quota_and_never_more(valkey_server, limit, crowd):
    """Whoever lives gets everything; no window holds more than the limit."""
    crowd = [Process(p.callers, p.lane, p.begins_us, 0, p.dies_us, p.late_us) for p in crowd]
    crowd.append(Process(30))
    run_world(valkey_server, RateLimit("any", Rate(limit, per=1), pad=0), crowd, 14)
    everything = sorted(due for process in crowd for due in moments(process))
    for start in everything:
        assert sum(start <= due < start + 1_000_000 for due in everything) <= limit
    assert sum(between(process, 10.5, 13.5) for process in crowd) >= 0.9 * limit * 3 - 1
