"""
Upsert through a temporary table and binary COPY, with exact counts.

COPY into a table of the target's types, fold duplicates (the last wins), then one INSERT ... ON CONFLICT that writes
only rows that differ. It is ordered by key, so two writers lock in the same order. Rejected: executemany (a message
per row, rewrites unchanged rows, and cannot tell inserted from updated).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from aegis.database._driver import Conn
from aegis.database._rows import tuples

_serial = count()  # two upserts in one transaction need two temporary tables


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """What became of the distinct keys of a batch."""

    inserted: int
    updated: int
    unchanged: int


def quoted(name: str) -> str:
    """An identifier, safe inside SQL; a dot separates schema and table."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


async def upsert(
    conn: Conn, table: str, rows: Iterable[Any], key: Sequence[str], columns: Sequence[str] | None
) -> UpsertResult:
    """Upsert inside the caller's transaction; `rows` is consumed lazily."""
    names, stream = tuples(rows, columns)
    if not names:
        return UpsertResult(0, 0, 0)
    absent = [name for name in key if name not in names]
    if absent or not key:
        raise ValueError(f"upsert into {table}: key columns {absent or 'are missing'} are not among {list(names)}")
    batch, order = f"aegis_batch_{next(_serial)}", "aegis_row_number"
    listed = ", ".join(map(quoted, names))
    await conn.execute(
        f"create temp table {batch} on commit drop as "  # noqa: S608 - identifiers are quoted above
        f"select {listed}, 0::bigint as {order} from {quoted(table)} with no data"
    )
    numbered = ((*row, number) for number, row in enumerate(stream))
    await conn.copy_records_to_table(batch, records=numbered, columns=[*names, order])
    counts = await conn.fetchrow(_merge(batch, order, table, names, key))
    await conn.execute(f"drop table {batch}")
    total, inserted, updated = counts
    return UpsertResult(inserted, updated, total - inserted - updated)


def _merge(batch: str, order: str, table: str, names: Sequence[str], key: Sequence[str]) -> str:
    """One statement: fold, insert or update what differs, count. `xmax = 0` marks a row version that is new."""
    listed, keys = ", ".join(map(quoted, names)), ", ".join(map(quoted, key))
    rest = [quoted(name) for name in names if name not in key]
    action = "nothing"
    if rest:
        assignments = ", ".join(f"{name} = excluded.{name}" for name in rest)
        ours, theirs = ", ".join(f"t.{name}" for name in rest), ", ".join(f"excluded.{name}" for name in rest)
        action = f"update set {assignments} where row({ours}) is distinct from row({theirs})"
    return (
        f"with folded as (select distinct on ({keys}) {listed} from {batch} order by {keys}, {order} desc), "  # noqa: S608
        f"changed as (insert into {quoted(table)} as t ({listed}) select {listed} from folded order by {keys} "
        f"on conflict ({keys}) do {action} returning xmax = 0 as is_new) "
        "select (select count(*) from folded), count(*) filter (where is_new), count(*) filter (where not is_new) "
        "from changed"
    )
