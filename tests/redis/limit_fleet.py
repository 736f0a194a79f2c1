"""
Processes that share one limit: real ones, killed with real signals.

Each does what a `Contender` says: so many callers that wait again and again, and tell the moment of every release, in
the time of day, which is also the server's clock. They are forked by a server that has imported aegis.

How a run is judged, so that a loaded machine cannot bend it: the ring on the server has every permit that was ever
given and not taken back (`remember` makes it keep them), and those are exact to the microsecond; releases come after
their permits, and not much later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from typing import Any, Self

from aegis.config import RedisConfig
from aegis.errors import RateLimitTimeoutError
from aegis.redis import Lane, Rate, RateLimit, RateLimiter, Redis
from aegis.redis.limiting.gate import key_name

_processes = get_context("forkserver")
_processes.set_forkserver_preload(["aegis.config", "aegis.redis"])


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
    clock_off_s: float = 0.0  #: how wrong its time of day is
    hold_s: float = 0.0  #: said before anybody waits; its end, or a moment before, is told first
    options: dict[str, Any] = field(default_factory=dict)


def contend(pipe: connection.Connection, url: str, job: Contender) -> None:
    """What runs in the process."""
    warnings.simplefilter("error")
    pipe.send(asyncio.run(_contend(pipe, url, job)))


async def _contend(pipe: connection.Connection, url: str, job: Contender) -> dict[str, int]:
    now, now_ns = time.time, time.time_ns
    time.time, time.time_ns = lambda: now() + job.clock_off_s, lambda: now_ns() + int(job.clock_off_s * 1e9)
    limit = RateLimit("fleet", *(Rate(*rate) for rate in job.rates), pad=job.pad)
    async with Redis(RedisConfig(url=url)) as redis:
        limiter = RateLimiter(redis, **job.options)

        if job.hold_s:
            await limiter.hold(limit, job.hold_s)
            asked = now()
            pipe.send(asked + (await limiter.peek(limit)).held_for)

        async def caller() -> None:
            while True:
                with contextlib.suppress(RateLimitTimeoutError):
                    await limiter.wait(limit, cost=job.cost, timeout=job.timeout, lane=Lane(job.lane))
                    pipe.send(now())

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
    return {"server_calls": stats.server_calls, "got": stats.granted + stats.late}


class Fleet:
    """`with Fleet(url) as fleet: fleet.start(Contender(...)); await fleet.ended()`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._running: list[tuple[Any, connection.Connection]] = []
        self.released: list[list[float]] = []
        self.stats: list[dict[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for process, pipe in self._running:
            process.kill()
            process.join()
            pipe.close()

    def start(self, job: Contender) -> None:
        pipe, theirs = _processes.Pipe()
        process = _processes.Process(target=contend, args=(theirs, self._url, job), daemon=True)
        process.start()
        theirs.close()
        self._running.append((process, pipe))

    def signal(self, number: int, kind: signal.Signals) -> None:
        os.kill(self._running[number][0].pid, kind)

    async def first_release(self, number: int) -> float:
        """The moment of the process's first release; it is not told again."""
        return await asyncio.to_thread(self._running[number][1].recv)

    async def end_of(self, number: int) -> None:
        await asyncio.to_thread(self._running[number][0].join)

    async def ended(self) -> list[list[float]]:
        """Wait for all; the moments of release of each. One that was killed has no statistics."""
        for _, pipe in self._running:
            moments: list[float] = []
            with contextlib.suppress(EOFError):
                while isinstance(told := await asyncio.to_thread(pipe.recv), float):
                    moments.append(told)
                self.stats.append(told)
            self.released.append(moments)
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
