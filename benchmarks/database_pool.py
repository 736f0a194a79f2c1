"""
What does `select 1` cost through a pool, with 1 and with 32 tasks that share it?

floor  a plain list of asyncpg connections, popped and pushed: no order, no bound, no check. Nobody who uses this driver
       can be faster.
rival  asyncpg.Pool, and psycopg_pool with autocommit (without it each call would be a transaction of three statements);
       each in a process of its own, each as its documentation has it, with as many connections as tasks.
ours   `Database.fetch_value`.

Every answer is compared in the loop, so a wrong one cannot look fast. Rounds are interleaved, figures are medians, and
ratios are medians of the ratios within a round. One embedded server for all, on a unix socket.

    python -m benchmarks.database_pool [--smoke] [--json] [--rounds 7] [--seconds 1.0] [--only aegis,asyncpg.Pool]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from benchmarks._database import in_process, versions

SQL = "select 1"
TASKS = (1, 32)
RIVALS = ("floor", "aegis", "asyncpg.Pool", "psycopg_pool")
Ask = Callable[[], Awaitable[Any]]


async def open_floor(url: str, size: int, stack: AsyncExitStack, sql: str = SQL) -> Ask:
    import asyncpg

    free = [await asyncpg.connect(url) for _ in range(size)]
    for conn in free:
        stack.push_async_callback(conn.close)

    async def ask() -> Any:
        conn = free.pop()
        try:
            return await conn.fetchval(sql)
        finally:
            free.append(conn)

    return ask


async def open_aegis(url: str, size: int, stack: AsyncExitStack, sql: str = SQL) -> Ask:
    from aegis.config import DatabaseConfig
    from aegis.database import Database

    db = await stack.enter_async_context(Database(DatabaseConfig(url=url, min_conns=size, max_conns=size)))
    while db.stats().idle < size:  # noqa: ASYNC110 - the pool announces nothing
        await asyncio.sleep(0.01)
    return lambda: db.fetch_value(sql)


async def open_asyncpg(url: str, size: int, stack: AsyncExitStack, sql: str = SQL) -> Ask:
    import asyncpg

    pool = await stack.enter_async_context(asyncpg.create_pool(url, min_size=size, max_size=size))
    return lambda: pool.fetchval(sql)


async def open_psycopg(url: str, size: int, stack: AsyncExitStack, sql: str = SQL) -> Ask:
    from psycopg_pool import AsyncConnectionPool

    pool = AsyncConnectionPool(url, min_size=size, max_size=size, open=False, kwargs={"autocommit": True})
    await stack.enter_async_context(pool)
    await pool.wait()

    async def ask() -> Any:
        async with pool.connection() as conn:
            row = await (await conn.execute(sql)).fetchone()
            return row[0]

    return ask


OPEN = {"floor": open_floor, "aegis": open_aegis, "asyncpg.Pool": open_asyncpg, "psycopg_pool": open_psycopg}


async def run(rival: str, url: str, tasks: int, seconds: float) -> dict[str, float]:
    """Queries per second of `tasks` tasks; with one task also the distribution of its latency."""
    async with AsyncExitStack() as stack:
        ask = await OPEN[rival](url, tasks, stack)
        took: list[float] = []
        over = False

        async def work() -> int:
            count = 0
            while not over:
                if await ask() != 1:
                    raise AssertionError("wrong answer")
                count += 1
            return count

        async def work_and_time() -> int:
            clock, note = time.perf_counter, took.append
            while not over:
                started = clock()
                if await ask() != 1:
                    raise AssertionError("wrong answer")
                note(clock() - started)
            return len(took)

        async def burst(seconds: float) -> tuple[int, float]:
            nonlocal over
            over = False
            started = time.perf_counter()
            running = [asyncio.create_task(work_and_time() if tasks == 1 else work()) for _ in range(tasks)]
            await asyncio.sleep(seconds)
            over = True
            return sum(await asyncio.gather(*running)), time.perf_counter() - started

        await burst(seconds / 4)  # statements are prepared, code is warm
        took.clear()
        cpu = time.process_time()
        count, elapsed = await burst(seconds)
        cpu = time.process_time() - cpu
    took.sort()
    tail = {"p50_us": took[len(took) // 2] * 1e6, "p99_us": took[len(took) * 99 // 100] * 1e6} if took else {}
    return {"queries_per_s": count / elapsed, "client_cpu_us": cpu / count * 1e6, **tail}


def compare(rivals: list[str], rounds: int, seconds: float, tasks: tuple[int, ...]) -> list[dict[str, Any]]:
    """All measurements, interleaved; medians, spreads, and our ratio to each other."""
    from aegis.embedded import EmbeddedPostgres

    seen: dict[tuple[str, int], list[dict[str, float]]] = {}
    with EmbeddedPostgres() as server:
        for at in range(rounds):
            for count in tasks:
                for rival in rivals if at % 2 == 0 else rivals[::-1]:
                    result = in_process(
                        "benchmarks.database_pool", [rival, server.url, count, seconds], 60 + 5 * seconds
                    )
                    seen.setdefault((rival, count), []).append(result)
                    print(f"round {at + 1}/{rounds} {count} tasks {rival}: {result}", file=sys.stderr)
    return [row(rival, count, seen) for rival, count in seen]


def row(rival: str, tasks: int, seen: dict[tuple[str, int], list[dict[str, float]]]) -> dict[str, Any]:
    """One line of the table."""
    rates = [result["queries_per_s"] for result in seen[rival, tasks]]
    line: dict[str, Any] = {
        "rival": rival,
        "tasks": tasks,
        "queries_per_s": round(statistics.median(rates)),
        "spread": [round(min(rates)), round(max(rates))],
    }
    for field in ("client_cpu_us", "p50_us", "p99_us"):
        if field in seen[rival, tasks][0]:
            line[field] = round(statistics.median(result[field] for result in seen[rival, tasks]), 1)
    if ("aegis", tasks) in seen:
        ours = [result["queries_per_s"] for result in seen["aegis", tasks]]
        line["aegis_is_times"] = round(statistics.median(a / b for a, b in zip(ours, rates, strict=True)), 2)
    return line


def main() -> None:
    """Read the options, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one short round, to see that it runs")
    parser.add_argument("--json", action="store_true", help="print the JSON in one line")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--tasks", default=",".join(map(str, TASKS)))
    parser.add_argument("--only", default=",".join(RIVALS), help="rivals, comma separated")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        rival, url, tasks, seconds = json.loads(options.worker)
        print(json.dumps(asyncio.run(run(rival, url, tasks, seconds))))
        return
    rounds, seconds = (1, 0.1) if options.smoke else (options.rounds, options.seconds)
    counts = tuple(int(count) for count in options.tasks.split(","))
    rows = compare(options.only.split(","), rounds, seconds, counts)
    question = "select 1 per second"
    report = {"question": question, "rounds": rounds, "seconds": seconds, "versions": versions(), "rows": rows}
    print(json.dumps(report, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
