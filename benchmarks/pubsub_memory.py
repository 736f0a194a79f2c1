"""
Does a subscriber grow? Two questions, both answered with an exit code.

never   subscribers that never read, one per policy: resident memory after 100,000 ticks of 2,000 keys, and a million.
frames  a subscriber that reads a million ticks in a million frames, of 64 partitions: the leak of hiredis (97 bytes for
        every push on RESP3) would be 90 MB.

    python -m benchmarks.pubsub_memory [--smoke] [--json] [--ticks 1000000]
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

from benchmarks._report import options, report, show
from benchmarks.pubsub_throughput import KEYS, PACKAGES, quote
from benchmarks.redis_soak import rss_kib

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.redis import PubSub, Redis
from aegis.redis.broadcast.buffers import RING
from aegis.redis.broadcast.wire import Names

GROWTH_MAX_KIB = 4096
POLICIES = ("latest", "merge", "trade_safe", "all")
PARTITIONS = 64  # of the topic whose frames hold one tick each


def connect(port: int, partitions: int) -> Redis:
    """A client of the server, for topics with so many partitions."""
    return Redis(RedisConfig(host="127.0.0.1", port=port, topic_partitions=partitions))


async def listen(port: int, policy: str, ring: int, partitions: int) -> None:
    """Subscribe; say on every line from the parent what has come and what it costs. `read` takes everything."""
    async with (
        connect(port, partitions) as redis,
        PubSub(redis, topic=f"bench in {partitions}") as bus,
        bus.subscribe(policy="latest" if policy == "read" else policy, ring=ring) as updates,
    ):

        async def read() -> None:
            async for _ in updates:
                pass

        reading = asyncio.create_task(read()) if policy == "read" else None
        print("ready", flush=True)
        while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
            stats = bus.stats()
            said = {"received": stats.received, "frames": stats.frames_received, "pending": updates.pending}
            print(json.dumps({**said, "rss_kib": rss_kib()}), flush=True)
        if reading is not None:
            reading.cancel()


class Listener:
    """A process that listens."""

    def __init__(self, port: int, policy: str, ring: int, partitions: int) -> None:
        plan = json.dumps([port, policy, ring, partitions])
        command = [sys.executable, "-m", "benchmarks.pubsub_memory", "--worker", plan]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.child.stdout is not None
        if self.child.stdout.readline() != "ready\n":
            raise SystemExit(f"{policy}: it did not start")

    async def after(self, ticks: int) -> dict[str, int]:
        """What it says once it has received so many."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        while True:
            self.child.stdin.write("\n")
            self.child.stdin.flush()
            said: dict[str, int] = json.loads(await asyncio.to_thread(self.child.stdout.readline))
            if said["received"] >= ticks:
                return said
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """End it."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        self.child.wait(10)


async def publish(bus: PubSub, numbers: range, keys: list[str], flush_every: int) -> None:
    """These ticks."""
    for number in numbers:
        await bus.publish(keys[number % len(keys)], quote(number))
        if number % flush_every == 0:
            await bus.flush()
    await bus.flush()


async def run(port: int, ticks: int, policies: tuple[str, ...], partitions: int) -> list[dict[str, Any]]:
    """
    Publish by the tenth, and look what that costs. With several partitions every tick has a frame of its own.

    Listeners are waited for: one that falls 32 MB behind is closed by Redis.
    """
    rows = []
    async with connect(port, partitions) as redis, PubSub(redis, topic=f"bench in {partitions}") as bus:
        by_partition = {Names("", "", partitions).partition_of(key): key for key in KEYS}
        keys, flush_every = (KEYS, ticks) if partitions == 1 else (list(by_partition.values()), len(by_partition))
        ring = min(RING, ticks // 20)  # full at the first look
        listeners = {policy: Listener(port, policy, ring, partitions) for policy in policies}
        marks: dict[str, list[dict[str, int]]] = {policy: [] for policy in policies}
        done = 0
        for goal in range(ticks // 10, ticks + 1, ticks // 10):
            await publish(bus, range(done, goal), keys, flush_every)
            done = goal
            for policy, listener in listeners.items():
                marks[policy].append(await listener.after(goal))
        for policy, listener in listeners.items():
            listener.close()
            early, *_, late = marks[policy]
            rows.append(
                {
                    "subscriber": "reads" if policy == "read" else f"never reads, {policy}",
                    "rss_kib": [early["rss_kib"], late["rss_kib"]],
                    "growth_kib": late["rss_kib"] - early["rss_kib"],
                    "frames": late["frames"],
                    "frames_sent": bus.stats().frames,
                    "pending": late["pending"],
                }
            )
    return rows


def main() -> None:
    """Read the options, measure, say it; exit with 1 if anything grew."""
    parser = options(__doc__, smoke="short, to see that it runs")
    parser.add_argument("--ticks", type=int, default=1_000_000)
    args = parser.parse_args()
    if args.worker:
        asyncio.run(listen(*args.worker))
        return
    ticks = 4000 if args.smoke else args.ticks
    with EmbeddedValkey(port=0) as server:
        rows = asyncio.run(run(server.port, ticks, POLICIES, 1))
        rows += asyncio.run(run(server.port, ticks, ("read",), PARTITIONS))
    ok = args.smoke or max(row["growth_kib"] for row in rows) <= GROWTH_MAX_KIB
    show(report("memory of a subscriber", rows, PACKAGES, ok=ok, ticks=ticks), as_json=args.json)
    sys.exit(not ok)


if __name__ == "__main__":
    main()
