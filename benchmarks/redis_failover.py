"""
What do limits, cache and broadcast go through when servers of a group fail under load?

Three clients, as of three processes, share one limit (10 per second, always more demand), one token that each loads
when it has expired, and one topic. Faults, each on a fresh group of real servers on the loopback:

kill      the primary is killed (SIGKILL); Sentinel and cluster
pause     the primary is stopped (SIGSTOP) until it has been replaced, then goes on; Sentinel and cluster
cut off   a proxy in front of one primary goes deaf for 5 s, the cluster itself sees nothing; cluster
move      the slot of the token moves to another node all the time, that of the limit three times; cluster

Told for each: the longest time without a grant, the most grants that began in any half-open second, loads of the token
at the same time, gaps reported, whether the last values arrived, and whether every task ended.

    python -m benchmarks.redis_failover [--smoke] [--json] [--only "sentinel kill,cluster move"]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedCluster, EmbeddedSentinel, EmbeddedValkey
from aegis.errors import AegisError
from aegis.redis import Cache, Gap, PubSub, Rate, RateLimit, RateLimiter, Redis
from aegis.redis._limit_gate import key_name
from aegis.redis._slots import slot_of_key
from aegis.testing import FaultProxy

CLIENTS, WAITERS = 3, 5
LIMIT = RateLimit("upstream", Rate(10, per=1))
LIMIT_SLOT = slot_of_key(key_name("aegis", LIMIT, "") + ":ring")
TOKEN_TTL_S = 1.0
REPLACED_AFTER_MS = 3000
SETTINGS = {"hang_timeout": 1.0, "connect_timeout": 1.0}  # below the time after which a silent primary is replaced
END_MAX_S = 30.0
Group = EmbeddedCluster | EmbeddedSentinel


@dataclass
class Seen:
    """What happened, in monotonic seconds."""

    grants: list[float] = field(default_factory=list)
    loads: list[tuple[float, float]] = field(default_factory=list)
    gaps: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)
    over: bool = False

    def note(self, exc: BaseException) -> None:
        name = type(exc).__name__
        self.errors[name] = self.errors.get(name, 0) + 1


async def take_permits(redis: Redis, seen: Seen) -> None:
    """Waiters who come back at once."""
    limiter = RateLimiter(redis)

    async def take() -> None:
        while not seen.over:
            try:
                await limiter.wait(LIMIT, timeout=20)
            except AegisError as exc:
                seen.note(exc)
                continue
            seen.grants.append(time.monotonic())

    await asyncio.gather(*(take() for _ in range(WAITERS)))


async def read_token(redis: Redis, seen: Seen) -> None:
    """A value that expires, wanted all the time."""
    cache = Cache(redis)

    async def load() -> str:
        began = time.monotonic()
        await asyncio.sleep(0.2)
        seen.loads.append((began, time.monotonic()))
        return "token"

    while not seen.over:
        try:
            await cache.get_or_set("token", load, str, ttl=TOKEN_TTL_S)
        except AegisError as exc:
            seen.note(exc)
        await asyncio.sleep(0.02)


async def publish(bus: PubSub, seen: Seen) -> None:
    """Numbers that count up, for 40 keys."""
    number = 0
    while not seen.over:
        number += 1
        key = f"{number % 40:06d}"
        try:
            await bus.publish(key, number, timeout=10)
            seen.published[key] = number
        except AegisError as exc:
            seen.note(exc)
        await asyncio.sleep(0.005)
    await bus.flush(END_MAX_S)


async def listen(bus: PubSub, seen: Seen) -> None:
    """Every update and every gap, until all last values are there."""
    async with bus.subscribe(type=int, policy="all") as updates:
        async for event in updates:
            if isinstance(event, Gap):
                seen.gaps += 1
            else:
                seen.arrived[event.key] = event.value
            if seen.over and seen.arrived == seen.published:
                return


async def run(group: Group, fault: Callable[[Seen], Any], calm_s: float) -> dict[str, Any]:
    """The load, the fault in its middle, and what came of it."""
    seen = Seen()
    async with contextlib.AsyncExitStack() as stack:
        config = RedisConfig(url=group.url, **SETTINGS)
        clients = [await stack.enter_async_context(Redis(config)) for _ in range(CLIENTS)]
        buses = [await stack.enter_async_context(PubSub(client)) for client in clients[:2]]
        work = [asyncio.create_task(take_permits(client, seen)) for client in clients]
        work += [asyncio.create_task(read_token(client, seen)) for client in clients]
        work += [asyncio.create_task(publish(buses[0], seen)), asyncio.create_task(listen(buses[1], seen))]
        await asyncio.sleep(calm_s)
        began = time.monotonic()
        replaced_s = await fault(seen)
        await asyncio.sleep(calm_s)
        ended = time.monotonic()
        seen.over = True
        _, pending = await asyncio.wait(work, timeout=END_MAX_S)
        for task in pending:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
    return {
        "ok": not pending and seen.arrived == seen.published and most_per_second(seen.grants) <= 10,
        "fault_s": round(ended - began - calm_s, 1),
        "replaced_after_s": replaced_s,
        "longest_without_grant_s": round(longest_gap(seen.grants), 2),
        "grants": len(seen.grants),
        "most_grants_in_a_second": most_per_second(seen.grants),
        "loads": len(seen.loads),
        "most_loads_at_once": most_at_once(seen.loads),
        "gaps_reported": seen.gaps,
        "last_values_arrived": seen.arrived == seen.published,
        "tasks_that_hang": len(pending),
        "errors": seen.errors,
    }


def most_per_second(moments: list[float]) -> int:
    """In any half-open second; what a loop that woke up late adds is in it."""
    moments = sorted(moments)
    first = most = 0
    for at, moment in enumerate(moments):
        while moment - moments[first] >= 1.0:
            first += 1
        most = max(most, at - first + 1)
    return most


def longest_gap(moments: list[float]) -> float:
    moments = sorted(moments)
    return max((after - before for before, after in itertools.pairwise(moments)), default=0.0)


def most_at_once(spans: list[tuple[float, float]]) -> int:
    events = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    now = most = 0
    for _, step in events:
        now += step
        most = max(most, now)
    return most


# --- the faults ---


def owner(group: Group) -> EmbeddedValkey:
    """The server that keeps the limit."""
    return group.primary if isinstance(group, EmbeddedSentinel) else group.primary_of(LIMIT_SLOT)


async def until_replaced(group: Group, old: EmbeddedValkey) -> float:
    began = time.monotonic()
    while await asyncio.to_thread(owner, group) is old:  # noqa: ASYNC110 - the group has no event for it
        await asyncio.sleep(0.05)
    return round(time.monotonic() - began, 2)


async def kill(group: Group) -> float:
    old = await asyncio.to_thread(owner, group)
    old.kill()
    return await until_replaced(group, old)


async def pause(group: Group) -> float:
    old = await asyncio.to_thread(owner, group)
    old.pause()
    replaced_s = await until_replaced(group, old)
    old.resume()
    return replaced_s


async def move(group: EmbeddedCluster, seconds: float) -> None:
    over, moved = time.monotonic() + seconds, 0
    token_slot = slot_of_key("aegis:cache:{token}")
    while time.monotonic() < over:
        slot = LIMIT_SLOT if time.monotonic() > over - seconds + moved * seconds / 3 else token_slot
        moved += slot == LIMIT_SLOT
        source = await asyncio.to_thread(group.primary_of, slot)
        target = random.choice([node for node in group.nodes[:3] if node is not source])
        await asyncio.to_thread(group.move_slot, slot, target)
        await asyncio.sleep(0.3)


@contextlib.asynccontextmanager
async def announced(group: EmbeddedCluster) -> AsyncIterator[FaultProxy]:
    """A proxy that stands, for clients, in the place of the node that keeps the limit."""
    node = group.primary_of(LIMIT_SLOT)
    async with FaultProxy(f"127.0.0.1:{node.port}") as proxy:
        with group.asking(node) as ask:
            ask("CONFIG", "SET", "cluster-announce-port", proxy.port)
        await asyncio.sleep(3)  # gossip
        yield proxy


async def case(name: str, calm_s: float) -> dict[str, Any]:
    """One fault on a fresh group."""
    kind, _, fault = name.partition(" ")
    make: Callable[[], Group] = (
        (lambda: EmbeddedSentinel(down_after_ms=REPLACED_AFTER_MS))
        if kind == "sentinel"
        else (lambda: EmbeddedCluster(node_timeout_ms=REPLACED_AFTER_MS))
    )
    group = make()
    await asyncio.to_thread(group.start)
    try:
        match fault:
            case "kill":
                return await run(group, lambda _: kill(group), calm_s)
            case "pause":
                return await run(group, lambda _: pause(group), calm_s)
            case "move":
                return await run(group, lambda _: move(group, 2 * calm_s), calm_s)
            case _:
                async with announced(group) as proxy:

                    async def cut(_: Seen) -> None:
                        proxy.freeze()
                        await asyncio.sleep(5)
                        proxy.reset()
                        proxy.heal()

                    return await run(group, cut, calm_s)
    finally:
        await asyncio.to_thread(group.stop)


CASES = ("sentinel kill", "sentinel pause", "cluster kill", "cluster pause", "cluster cut off", "cluster move")


def main() -> int:
    """Read the options, run, print JSON; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one case, short, to see that it runs")
    parser.add_argument("--json", action="store_true", help="print the JSON in one line")
    parser.add_argument("--only", default=",".join(CASES), help="cases, comma separated")
    options = parser.parse_args()
    cases, calm_s = (["cluster move"], 1.5) if options.smoke else (options.only.split(","), 5.0)
    report = {name: asyncio.run(case(name, calm_s)) for name in cases}
    print(json.dumps(report, indent=None if options.json else 2))
    return 0 if all(result["ok"] for result in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
