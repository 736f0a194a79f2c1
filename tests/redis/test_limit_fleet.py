"""Real processes on one limit: exact, full, fair, cheap; also when one of them is killed or stopped."""

from __future__ import annotations

import itertools
import signal
import time
from dataclasses import replace

import pytest
from limit_fleet import Contender, Fleet, given, judge, remember

from aegis.redis import Lane

PAD_S = 0.05


@pytest.fixture
async def fleet(valkey_server, redis):
    """On an empty server that remembers every permit."""
    await remember(redis)
    with Fleet(valkey_server.url) as fleet:
        yield fleet


async def test_processes_share_one_quota_fairly_and_cheaply(fleet, redis):
    """Four processes of ten callers: no window over the limit, the quota used, everybody served, few questions."""
    for _ in range(4):
        fleet.start(Contender([(20, 0.5)], callers=10, seconds=3, pad=PAD_S))
    released = await fleet.ended()
    judge(fleet.everything, await given(redis), 20, 0.5, PAD_S)
    began, ended = max(moments[0] for moments in released), min(moments[-1] for moments in released)
    together = sum(began <= moment <= ended for moment in fleet.everything)
    assert together >= 0.6 * 20 / (0.5 + PAD_S) * (ended - began)  # how full and how fair: test_limit_turns.py
    got = [each["got"] for each in fleet.stats]
    assert min(got) >= 0.5 * sum(got) / 4
    assert fleet.calls_per_grant <= 1.5


async def test_cancelling_at_random_breaks_nothing(fleet, redis):
    """Callers cancelled all the time, two rates, clocks seconds apart: exact, and what they had serves others."""
    for off_s in (-3.0, 0.0, 5.0):
        churn = Contender([(20, 1.0), (8, 0.25)], callers=30, seconds=3, pad=PAD_S, cancel_per_s=100, timeout=4.0)
        fleet.start(replace(churn, clock_off_s=off_s))
    await fleet.ended()
    permits = await given(redis)
    judge(fleet.everything, permits, 20, 1.0, PAD_S)
    judge(fleet.everything, permits, 8, 0.25, PAD_S)
    assert len(fleet.everything) >= 0.6 * 20 / (1 + PAD_S) * (fleet.everything[-1] - fleet.everything[0])


@pytest.mark.parametrize(("kind", "lane"), [(signal.SIGKILL, Lane.URGENT), (signal.SIGSTOP, Lane.NORMAL)])
async def test_a_dead_or_stopped_process_costs_one_window_at_most(fleet, redis, kind, lane):
    """What it had reserved is lost; nobody waits for it; stopped, it does not use old permits when it goes on."""
    seconds = 30 if kind == signal.SIGKILL else 3
    fleet.start(Contender([(5, 0.5)], callers=10, seconds=seconds, pad=PAD_S, lane=lane))
    await fleet.first_release(0)
    fleet.start(Contender([(5, 0.5)], callers=10, seconds=3, pad=PAD_S, lane=lane))
    await fleet.first_release(1)
    fleet.signal(0, kind)
    stopped = time.time()
    if kind == signal.SIGSTOP:
        await fleet.end_of(1)
        fleet.signal(0, signal.SIGCONT)
    released = await fleet.ended()
    permits = await given(redis)
    judge(fleet.everything, permits, 5, 0.5, PAD_S)
    window = 0.5 + PAD_S
    survivor = [moment for moment in released[1] if moment >= stopped]
    assert survivor[0] <= stopped + 2 * window + 1.0  # one for what is lost, one for its own turn, one for this machine
    assert len(survivor) >= 0.5 * 5 / window * (survivor[-1] - survivor[0])


async def test_a_hold_outlives_every_process(fleet, redis):
    """Said by one that is killed; new ones, of which one says less, wait for its end; then permits come one by one."""
    fleet.start(Contender([(5, 0.5)], callers=0, seconds=30, pad=PAD_S, hold_s=2.5))
    ends = await fleet.first_release(0)
    fleet.signal(0, signal.SIGKILL)
    for hold_s in (0.0, 0.1):
        fleet.start(Contender([(5, 0.5)], callers=5, seconds=3, pad=PAD_S, hold_s=hold_s))
    await fleet.first_release(2)  # which is no release
    await fleet.ended()
    permits = (await given(redis))[1:]
    assert min(permits) >= ends
    judge(fleet.everything, permits, 5, 0.5, PAD_S)
    spread = [due for due in permits if due < permits[0] + 0.5]
    assert min(after - before for before, after in itertools.pairwise(spread)) >= 0.1
