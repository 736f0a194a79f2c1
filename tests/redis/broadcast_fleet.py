"""Processes of the broadcast's contract tests: `python broadcast_fleet.py ROLE URL ARGUMENTS...`; JSON lines out."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path
from typing import Any

from aegis.config import RedisConfig
from aegis.redis import Gap, PubSub, Redis


def tell(**fields: Any) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def told() -> bool:
    """A line from the parent; False when it is gone."""
    return bool(await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline))


async def publish(redis: Redis, name: str, ticks: str) -> None:
    """On a line: count up on twenty keys of its own, and on one that all producers share."""
    async with PubSub(redis, producer=name) as bus:
        tell(ready=True)
        await told()
        for number in range(1, int(ticks) + 1):
            await bus.publish(f"{name}-{number % 20}", [name, number])
            if number % 10 == 0:
                await bus.publish("shared", [name, number])
                await asyncio.sleep(0.002)
        await bus.flush()
        tell(published=bus.stats().published)


async def subscribe(redis: Redis, policy: str) -> None:
    """Everything, until a line says that all has been published, and two heartbeats more: what came, what was lost."""
    numbers: dict[str, list[int]] = {}
    versions: dict[str, int] = {}
    newest: dict[str, Any] = {}
    gaps: list[list[Any]] = []
    backwards = 0
    async with PubSub(redis) as bus, bus.subscribe(policy=policy, ring=200_000) as updates:
        tell(ready=True)
        over = asyncio.create_task(told())
        while True:
            try:
                event = await asyncio.wait_for(anext(updates), 2.0)
            except TimeoutError:
                if over.done() and updates.live:
                    break
                continue
            if isinstance(event, Gap):
                gaps.append([event.stream, event.from_seq, event.to_seq, event.lost])
                continue
            backwards += event.version <= versions.get(event.key, 0)
            versions[event.key], newest[event.key] = event.version, event.value
            if not event.snapshot:
                numbers.setdefault(event.key, []).append(event.value[1])
        tell(numbers=numbers, gaps=gaps, backwards=backwards, newest=newest)


async def never_read(redis: Redis, policy: str) -> None:
    """Subscribe and never take; on a line: what that costs."""
    async with PubSub(redis) as bus, bus.subscribe(policy=policy, ring=1000) as updates:
        tell(ready=True)
        while await told():
            stats = bus.stats()
            heard = stats.received + stats.heartbeats
            tell(rss_kib=rss_kib(), pending=updates.pending, heard=heard, evicted=stats.evicted)


def rss_kib() -> int:
    """Resident memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


async def main(role: str, url: str, *arguments: str) -> None:
    """Play the role."""
    async with Redis(RedisConfig(url=url)) as redis:
        await {"publish": publish, "subscribe": subscribe, "never_read": never_read}[role](redis, *arguments)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
