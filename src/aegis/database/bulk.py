"""
Many rows to the server at once: plain COPY, and an upsert with exact counts.

The upsert copies into a temporary table of the target's types, folds duplicates (the last wins), inserts what is new,
and updates what differs, in the order of the key (`_merge.py` has the SQL and the reason). A few rows travel as arrays,
in one statement without a transaction.

Rejected: executemany (a message per row, rewrites unchanged rows, cannot tell inserted from updated), one INSERT ... ON
CONFLICT for all (twice as slow for new rows, and it locks, that is writes, rows that do not change).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from aegis.backoff import Backoff
from aegis.database._driver import Conn, in_sync, milliseconds, sqlstate_of, was_not_sent
from aegis.database._feed import Feed, Row
from aegis.database._merge import Merge
from aegis.database._table import Name, Target
from aegis.errors import QueryError

FEW = 200  # rows that travel as arrays: one round trip; a temporary table takes five, and leaves dead catalog rows
_WORK_MEM = "64MB"  # sorts a few hundred thousand rows without a detour over the disk
_SLACK_S = 2.0  # the server ends a statement; the driver does when even that does not arrive
_BAD_VALUE, _DUPLICATE, _DEADLOCK = "22000", "23505", "40P01"
_ATTEMPTS = 6
_BACKOFF = Backoff(base_s=0.02, cap_s=0.5, floor_s=0.005)
_serial = count()  # two upserts in one transaction need two pairs of temporary tables


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """What became of the distinct keys of a batch."""

    inserted: int
    updated: int
    unchanged: int


async def copy_in(conn: Conn, target: Target, feed: Feed, timeout: float) -> int:
    """COPY every row of `feed` into the table, inside the caller's transaction; returns how many."""
    await conn.execute(f"set local statement_timeout = {milliseconds(timeout)}")
    await _copy(conn, target, feed, timeout, into=target.name)
    await conn.execute(f"set local statement_timeout = '{target.statement_timeout}'")
    return feed.count


def fits_few(target: Target) -> bool:
    """Whether its columns can travel as arrays; an array of arrays would fall apart. A lock needs a transaction."""
    return not any(column.is_array for column in target.columns) and not Merge(target).needs_lock


async def upsert_few(conn: Conn, target: Target, rows: Sequence[Row]) -> UpsertResult | None:
    """
    One statement; the rows travel as an array per column. Alone, it is repeated when it was a deadlock's victim.

    None: a value cannot be encoded, and nothing was sent. The driver would show all values of its column; COPY knows
    the row.
    """
    columns = [list(values) for values in zip(*(_written(row, target) for row in rows), strict=True)]
    sql, attempt = Merge(target).few(), 1
    while True:
        try:
            total, inserted, updated = await conn.fetchrow(sql, *columns)
        except Exception as exc:
            if was_not_sent(exc):
                return None
            if sqlstate_of(exc) != _DEADLOCK or conn.is_in_transaction() or attempt == _ATTEMPTS:
                raise
        else:
            return UpsertResult(inserted, updated, total - inserted - updated)
        await asyncio.sleep(_BACKOFF.delay_s(attempt))
        attempt += 1


async def upsert_many(conn: Conn, target: Target, feed: Feed, timeout: float) -> UpsertResult:
    """Through temporary tables, inside the caller's transaction; `timeout` bounds each statement."""
    merge, number = Merge(target), next(_serial)
    batch, folded = Name("pg_temp", f"aegis_batch_{number}"), Name("pg_temp", f"aegis_folded_{number}")
    bound_s = timeout + _SLACK_S
    await conn.execute(
        f"set local statement_timeout = {milliseconds(timeout)}; set local work_mem = '{_WORK_MEM}'; "
        + merge.batch(batch)
    )
    await _copy(conn, target, feed, timeout, into=batch, order=merge.order)
    total = _counted(await conn.execute(merge.fold(batch, folded), timeout=bound_s))
    if merge.needs_lock:
        await conn.execute(merge.lock, timeout=bound_s)
    inserted, updated = await _merged(conn, merge, folded, total, bound_s)
    await conn.execute(
        f"drop table {batch}, {folded}; set local work_mem = '{target.work_mem}'; "
        f"set local statement_timeout = '{target.statement_timeout}'"
    )
    return UpsertResult(inserted, updated, total - inserted - updated)


async def _merged(conn: Conn, merge: Merge, folded: Name, total: int, bound_s: float) -> tuple[int, int]:
    """
    Inserted and updated; all of it again when another writer came first or a deadlock chose us.

    The rows are at the server, and a savepoint keeps them while it frees our locks.
    """
    attempt = 1
    while True:
        await conn.execute("savepoint aegis_merge")
        try:
            inserted = _counted(await conn.execute(merge.insert(folded, wary=attempt > 1), timeout=bound_s))
            again = updated = 0
            if inserted < total and merge.has_more:
                again, updated = await conn.fetchrow(merge.update(folded), timeout=bound_s)
        except Exception as exc:
            other_came_first = sqlstate_of(exc) == _DUPLICATE and attempt == 1
            if not other_came_first and (sqlstate_of(exc) != _DEADLOCK or attempt == _ATTEMPTS):
                raise
        else:
            await conn.execute("release savepoint aegis_merge")
            return inserted + again, updated
        await conn.execute("rollback to savepoint aegis_merge")
        await asyncio.sleep(_BACKOFF.delay_s(attempt))
        attempt += 1


async def _copy(conn: Conn, target: Target, feed: Feed, timeout: float, *, into: Name, order: str = "") -> None:
    """Into a table with the target's columns; with `order`, the row's number goes into the column of that name."""
    rows, names, picks = feed.rows(numbered=bool(order)), target.names, target.picks
    if order:
        names = (*names, order)
        picks = None if picks is None else (*picks, len(feed.columns))
    if picks is not None:
        rows = (tuple(row[at] for at in picks) async for row in rows)
    try:
        await conn.copy_records_to_table(
            into.table, schema_name=into.schema, records=rows, columns=names, timeout=timeout + _SLACK_S
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


def _counted(tag: str) -> int:
    """The number of rows in the server's tag: `SELECT 5`, `INSERT 0 5`."""
    return int(tag.rpartition(" ")[2])
