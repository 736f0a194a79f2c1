"""Real processes on one limit: exact, full, fair, cheap; also when one of them is killed or stopped."""

from __future__ import annotations

import signal
import time

import pytest
from limit_fleet import Contender, Fleet, worst_window

from aegis.redis import Lane


@pytest.fixture
def fleet(valkey_server, redis):
    """On an empty server."""
    del redis
    with Fleet(valkey_server.url) as fleet:
        yield fleet


async def test_processes_share_one_quota_fairly_and_cheaply(fleet):
    """Four processes of ten callers: no window over the limit, the quota used, equal shares, few questions."""
    for _ in range(4):
        fleet.start(Contender([(20, 1.0)], callers=10, seconds=5, pad=0.05))
    released = await fleet.ended()
    everything = sorted(moment for moments in released for moment in moments)
    assert worst_window(everything, 1.0) <= 20
    together = max(moments[0] for moments in released)
    steady = [moment for moment in everything if together <= moment]
    assert len(steady) >= 0.9 * 20 / 1.05 * (steady[-1] - steady[0])
    assert min(map(len, released)) >= 0.7 * len(everything) / 4
    assert fleet.calls_per_grant <= 1.5


async def test_cancelling_at_random_breaks_nothing(fleet):
    """Callers cancelled all the time: still exact, and what they had serves others."""
    for _ in range(3):
        fleet.start(Contender([(20, 1.0), (8, 0.25)], callers=30, seconds=4, pad=0.05, cancel_per_s=100, timeout=4.0))
    released = await fleet.ended()
    everything = sorted(moment for moments in released for moment in moments)
    assert worst_window(everything, 1.0) <= 20
    assert worst_window(everything, 0.25) <= 8
    assert len(everything) >= 0.85 * 20 / 1.05 * (everything[-1] - everything[0])


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("lane", [Lane.NORMAL, Lane.URGENT])
async def test_a_dead_or_stopped_process_costs_one_window_at_most(fleet, kind, lane):
    """What it had reserved is lost; nobody waits for it; stopped, it does not use old permits when it goes on."""
    victim = Contender([(5, 1.0)], callers=10, seconds=30 if kind == signal.SIGKILL else 4, pad=0.05, lane=lane)
    fleet.start(victim)
    await fleet.first_release(0)
    fleet.start(Contender([(5, 1.0)], callers=10, seconds=4, pad=0.05, lane=lane))
    await fleet.first_release(1)
    fleet.signal(0, kind)
    stopped = time.monotonic()
    if kind == signal.SIGSTOP:
        fleet.processes[1].wait()
        fleet.signal(0, signal.SIGCONT)
    released = await fleet.ended()
    everything = sorted(moment for moments in released for moment in moments)
    assert worst_window(everything, 1.0) <= 5
    after = [moment for moment in released[1] if moment >= stopped]
    assert after[0] - stopped <= 2 * 1.05 + 0.3
    assert len(after) >= 5 / 1.05 * (after[-1] - stopped - 1.3) - 5
