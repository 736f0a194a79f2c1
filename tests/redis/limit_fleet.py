"""
Processes that share one limit: real ones, killed with real signals.

Each is `python limit_fleet.py URL JSON`, where JSON is a `Contender`. It runs so many callers that wait again and
again, and prints the moment of every release, in the time of day, which is also the server's clock.

How a run is judged, so that a loaded machine cannot bend it: the ring on the server has every permit that was ever
given and not taken back (`remember` makes it keep them), and those are exact to the microsecond; releases come after
their permits, and not much later.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from aegis.config import RedisConfig
from aegis.errors import RateLimitTimeoutError
from aegis.redis import Lane, Rate, RateLimit, RateLimiter, Redis
from aegis.redis._limit_gate import key_name


@dataclass
class Contender:
    """What one process does."""

    rates: Sequence[tuple[int, float]]
    callers: int = 1
    seconds: float = 5.0
    pad: float = 0.0
    lane: int = Lane.NORMAL
    cost: int = 1
    timeout: float | None = None
    cancel_per_s: float = 0.0  #: callers cancelled at random, and begun anew
    hold_s: float = 0.0  #: said before anybody waits; its end, or a moment before, is printed first
    options: dict[str, Any] = field(default_factory=dict)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def contend(url: str, job: Contender) -> None:
    limit = RateLimit("fleet", *(Rate(*rate) for rate in job.rates), pad=job.pad)
    released: list[float] = []
    async with Redis(RedisConfig(url=url)) as redis:
        limiter = RateLimiter(redis, **job.options)

        if job.hold_s:
            await limiter.hold(limit, job.hold_s)
            asked = time.time()
            say(f"{asked + (await limiter.peek(limit)).held_for:.6f}")

        async def caller() -> None:
            while True:
                with contextlib.suppress(RateLimitTimeoutError):
                    await limiter.wait(limit, cost=job.cost, timeout=job.timeout, lane=Lane(job.lane))
                    released.append(time.time())
                    say(f"{released[-1]:.6f}")

        async def canceller() -> None:
            while job.cancel_per_s:
                await asyncio.sleep(random.expovariate(job.cancel_per_s))
                victim = random.choice(tasks)
                victim.cancel()
                tasks.remove(victim)
                tasks.append(asyncio.create_task(caller()))

        tasks = [asyncio.create_task(caller()) for _ in range(job.callers)]
        cancelling = asyncio.create_task(canceller())
        await asyncio.sleep(job.seconds)
        cancelling.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(cancelling, *tasks, return_exceptions=True)
        stats = limiter.stats()
    say(json.dumps({"server_calls": stats.server_calls, "got": stats.granted + stats.late}))


class Fleet:
    """`with Fleet(url) as fleet: fleet.start(Contender(...)); await fleet.ended()`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.processes: list[subprocess.Popen[str]] = []
        self.released: list[list[float]] = []
        self.stats: list[dict[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()

    def start(self, job: Contender) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, self._url, json.dumps(asdict(job))],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def signal(self, number: int, kind: signal.Signals) -> None:
        os.kill(self.processes[number].pid, kind)

    async def first_release(self, number: int) -> float:
        """The moment of the process's first release; it is not told again."""
        return float(await asyncio.to_thread(self.processes[number].stdout.readline))

    async def ended(self) -> list[list[float]]:
        """Wait for all; the moments of release of each. One that was killed has no statistics."""
        for output in await asyncio.gather(*(asyncio.to_thread(p.stdout.read) for p in self.processes)):
            lines = output.split()
            at = output.find("{")
            self.released.append([float(line) for line in (lines if at < 0 else output[:at].split())])
            if at >= 0:
                self.stats.append(json.loads(output[at:]))
        return self.released

    @property
    def everything(self) -> list[float]:
        """All moments of release, sorted."""
        return sorted(moment for moments in self.released for moment in moments)

    @property
    def calls_per_grant(self) -> float:
        return sum(s["server_calls"] for s in self.stats) / max(1, sum(s["got"] for s in self.stats))


async def remember(redis: Redis) -> None:
    """Let the ring keep every permit of ten minutes. It costs one."""
    assert (await RateLimiter(redis).allow(RateLimit("fleet", Rate(1_000_000, per=600)))).allowed


async def given(redis: Redis) -> list[float]:
    """When the permits on the server are due, first to last."""
    ring = key_name("aegis", RateLimit("fleet", Rate(1, per=1)), "") + ":ring"
    return [int(entry) / 1e6 for entry in reversed(await redis.execute("LRANGE", ring, 0, -1))]


def judge(released: Sequence[float], given: Sequence[float], limit: int, per: float, pad: float) -> None:
    """
    No window of permits holds more than the limit; nobody goes before his permit; and nobody uses an old one: then
    there would be more releases in most of a window than a whole one may have.
    """
    assert worst_window(given, per + pad - 1e-6) <= limit
    assert all(went >= due - 0.005 for went, due in zip(sorted(released), given, strict=False))
    assert len(released) <= len(given)
    assert worst_window(released, 0.7 * per) <= limit


def worst_window(moments: Sequence[float], per: float) -> int:
    """The most moments in any half-open window of that length."""
    moments = sorted(moments)
    worst, first = 0, 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - per:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


if __name__ == "__main__":
    arguments = json.loads(sys.argv[2])
    asyncio.run(contend(sys.argv[1], Contender(**arguments)))
