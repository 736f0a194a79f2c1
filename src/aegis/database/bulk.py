"""
Many rows to the server at once: plain COPY, and an upsert with exact counts.

The upsert copies into a temporary table of the target's types, folds duplicates (the last wins), leaves out what the
target holds already, and sends the rest through one INSERT ... ON CONFLICT in the order of the key, so that two writers
lock in the same order. A few rows travel as arrays instead, in one statement without a transaction.

Rejected: executemany (a message per row, rewrites unchanged rows, cannot tell inserted from updated), ON CONFLICT alone
(it locks, and so writes, rows that do not change).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from aegis.database._driver import Conn, in_sync, milliseconds
from aegis.database._feed import Feed, Row
from aegis.database._table import Target, listed, quoted
from aegis.errors import QueryError

FEW = 200  # rows that travel as arrays: one round trip; a temporary table takes five, and leaves dead catalog rows
_BAD_VALUE = "22000"  # data_exception
_OLD_AND_NEW = 180_000  # the version from which RETURNING tells old rows from new ones
_SLACK_S = 2.0  # the server ends a statement; the driver does when even that does not arrive
_serial = count()  # two upserts in one transaction need two temporary tables


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """What became of the distinct keys of a batch."""

    inserted: int
    updated: int
    unchanged: int


async def copy_in(conn: Conn, target: Target, feed: Feed, timeout: float) -> int:
    """COPY every row of `feed` into the table, inside the caller's transaction; returns how many."""
    await conn.execute(f"set local statement_timeout = {milliseconds(timeout)}")
    await _copy(conn, target, feed, timeout)
    await conn.execute(f"set local statement_timeout = '{target.statement_timeout}'")
    return feed.count


async def upsert_few(conn: Conn, target: Target, rows: Sequence[Row]) -> UpsertResult:
    """One statement; the rows travel as an array per column."""
    picked = zip(*(_written(row, target) for row in rows), strict=True)
    arrays = ", ".join(f"${at}::{column.type}[]" for at, column in enumerate(target.columns, 1))
    source = f"unnest({arrays}) with ordinality as batch ({listed(target.names)}, aegis_row)"
    return _result(await conn.fetchrow(_merge(source, target), *map(list, picked)))


def fits_few(target: Target) -> bool:
    """Whether its columns can travel as arrays; an array of arrays would fall apart. Partitions may need a lock."""
    return not any(column.is_array for column in target.columns) and not _needs_lock(target)


async def upsert_many(conn: Conn, target: Target, feed: Feed, timeout: float) -> UpsertResult:
    """Through a temporary table, inside the caller's transaction; `timeout` bounds each statement."""
    batch = f"aegis_batch_{next(_serial)}"
    await conn.execute(
        f"set local statement_timeout = {milliseconds(timeout)}; "  # noqa: S608 - all quoted
        f"create temp table {batch} on commit drop as "
        f"select {listed(target.names)}, 0::bigint as aegis_row from {target.name} with no data"
    )
    await _copy(conn, target, feed, timeout, batch=batch)
    if _needs_lock(target):
        await conn.execute(f"lock table {target.name} in share row exclusive mode")
    counts = await conn.fetchrow(_merge(f"{batch} as batch", target), timeout=timeout + _SLACK_S)
    await conn.execute(f"drop table {batch}; set local statement_timeout = '{target.statement_timeout}'")
    return _result(counts)


async def _copy(conn: Conn, target: Target, feed: Feed, timeout: float, batch: str = "") -> None:
    """Into the table, or numbered into the temporary table `batch`."""
    rows, names, picks = feed.rows(numbered=bool(batch)), target.names, target.picks
    if batch:
        names = (*names, "aegis_row")
        picks = None if picks is None else (*picks, len(feed.columns))
    if picks is not None:
        rows = (tuple(row[at] for at in picks) async for row in rows)
    table, schema = (batch, None) if batch else (target.name.table, target.name.schema)
    try:
        await conn.copy_records_to_table(
            table, schema_name=schema, records=rows, columns=names, timeout=timeout + _SLACK_S
        )
    except Exception as exc:
        if feed.failure is not None:  # the driver takes a TimeoutError of the caller's for its own
            raise feed.failure from feed.failure.__cause__
        if in_sync(exc) or isinstance(exc, OSError | TimeoutError):
            raise
        # What remains is a value that the driver could not encode.
        raise QueryError(_BAD_VALUE, f"{target.name}, row {feed.count}: {exc}") from exc


def _written(row: Row, target: Target) -> Row:
    return row if target.picks is None else tuple(row[at] for at in target.picks)


def _result(counts: Sequence[int]) -> UpsertResult:
    total, inserted, updated = counts
    return UpsertResult(inserted, updated, total - inserted - updated)


def _needs_lock(target: Target) -> bool:
    """A partitioned table shows no xmax, so before RETURNING OLD only a lock keeps the counts exact."""
    return target.is_partitioned and target.server < _OLD_AND_NEW


def _merge(source: str, target: Target) -> str:
    """One statement: fold, leave out what the table holds already, insert or update the rest, count."""
    names, keys = listed(target.names), listed(target.key)
    rest = [name for name in target.names if name not in target.key]
    # Images, not `=`: they tell json, points and 1.0 from 1.00 apart, where `=` does not exist or says equal.
    held, batch, given = (f"row({listed(rest, prefix)})::record" for prefix in ("t.", "folded.", "excluded."))
    same = " and ".join(f"t.{quoted(name)} = folded.{quoted(name)}" for name in target.key)
    same_row = f"{same} and {held} *= {batch}" if rest else same
    assignments = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in rest)
    action = f"update set {assignments} where {held} *<> {given}" if rest else "nothing"
    # Byte order is the same for every writer, and quicker than a language's.
    keyed = [column for column in target.columns if column.name in target.key]
    order = ", ".join(quoted(column.name) + (' collate "C"' if column.is_text else "") for column in keyed)
    # Rows with a NULL in their key never meet, unless the index says so: each stays a row of its own.
    without_key = " or ".join(f"{quoted(name)} is null" for name in target.key)
    apart = order if target.nulls_match else f"{order}, case when {without_key} then aegis_row end"
    # `xmax = 0` marks a row version that is new.
    is_new = "null" if _needs_lock(target) else "old is null" if target.is_partitioned else "xmax = 0"
    fresh = "(select count(*) from changed where is_new)"
    if _needs_lock(target):
        met = " and ".join(f"t.{quoted(name)} is not distinct from folded.{quoted(name)}" for name in target.key)
        met = f"select from {target.name} as t where {met}"
        fresh = f"(select count(*) from folded where not exists ({met}))"  # noqa: S608 - all quoted
    return (
        f"with folded as materialized (select distinct on ({apart}) {names} from {source} "  # noqa: S608 - all quoted
        f"order by {apart}, aegis_row desc), "
        f"changed as (insert into {target.name} as t ({names}) select {names} from folded "
        f"where not exists (select from {target.name} as t where {same_row}) order by {order} "
        f"on conflict ({keys}) do {action} returning {is_new} as is_new), "
        f"inserted as (select {fresh} as n) "
        "select (select count(*) from folded), n, (select count(*) from changed) - n from inserted"
    )
