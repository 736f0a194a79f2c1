"""Many rows at once: exact counts, nothing half done, bounded memory, and errors that name the row."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import resource
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.config import DatabaseConfig
from aegis.database import Database, UpsertResult
from aegis.database.bulk import FEW
from aegis.embedded import EmbeddedPostgres
from aegis.errors import QueryError, RowShapeError
from aegis.testing import until

DAY = dt.date(2026, 1, 2)
KEY = ("code", "date")


@dataclass
class Bar:
    code: str
    date: dt.date
    close: int | None


class Price(msgspec.Struct):
    code: str
    date: dt.date
    close: int | None = None


class Tick(NamedTuple):
    code: str
    date: dt.date
    close: int


async def bars(db: Database) -> None:
    await db.execute("create table bars (code text, date date, close bigint, primary key (code, date))")


def padded(rows: list[tuple], size: int) -> list[tuple]:
    """The same rows and others, so that there are `size`: few travel another way than many."""
    return [(f"pad{n}", DAY, n) for n in range(size - len(rows))] + rows


SIZES = pytest.mark.parametrize("size", [0, FEW + 1], ids=["few", "many"])


@SIZES
async def test_counts_are_exact_and_the_last_duplicate_wins(db, size):
    """Inserted, updated and unchanged count distinct keys; a duplicate inside the batch counts once."""
    await bars(db)
    pad = max(0, size - 3)
    first = padded([("a", DAY, 1), ("b", DAY, None), ("a", DAY, 2)], size)
    assert await db.upsert("bars", first, KEY, columns=("code", "date", "close")) == UpsertResult(2 + pad, 0, 0)
    second = padded([("a", DAY, 2), ("b", DAY, 5), ("c", DAY, 1)], size)
    assert await db.upsert("bars", second, KEY, columns=("code", "date", "close")) == UpsertResult(1, 1, 1 + pad)
    rows = await db.fetch("select * from bars where code !~ 'pad' order by code", type=Bar)
    assert rows == [Bar("a", DAY, 2), Bar("b", DAY, 5), Bar("c", DAY, 1)]


keys = st.one_of(st.none(), st.integers(0, 4))
batches = st.lists(st.lists(st.tuples(keys, keys, st.integers(0, 2)), max_size=12), min_size=1, max_size=4)


@pytest.mark.parametrize("nulls", ["distinct", "not distinct"])
@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches=batches)
async def test_upsert_and_oracle_agree(db, batches, few, nulls, monkeypatch):
    """Any run of batches, NULLs in the key and duplicates included: the oracle's counts and the oracle's table."""
    monkeypatch.setattr("aegis.database.bulk.FEW", FEW if few else 0)
    await db.execute("drop table if exists pairs")
    await db.execute(f"create table pairs (a int, b int, v int, unique nulls {nulls} (a, b))")
    table: dict[object, int] = {}
    for batch in batches:
        folded: dict[object, tuple] = {}
        for row in batch:
            keyless = None in row[:2] and nulls == "distinct"
            folded[object() if keyless else row[:2]] = row
        inserted = sum(key not in table for key in folded)
        updated = sum(key in table and table[key] != row for key, row in folded.items())
        table |= folded
        given = await db.upsert("pairs", batch, key=("a", "b"), columns=("a", "b", "v"))
        assert given == UpsertResult(inserted, updated, len(folded) - inserted - updated)
    held = sorted(map(repr, [tuple(row) for row in await db.fetch("select a, b, v from pairs")]))
    assert held == sorted(map(repr, table.values()))


@pytest.mark.parametrize(
    "rows",
    [
        [{"code": "a", "date": DAY, "close": 1}],
        [Bar("a", DAY, 1)],
        [Price("a", DAY, 1)],
        [Tick("a", DAY, 1)],
        (Bar("a", DAY, 1),),
    ],
    ids=["mapping", "dataclass", "struct", "named tuple", "tuple of rows"],
)
async def test_rows_are_mappings_dataclasses_structs_or_tuples(db, rows):
    """Each kind brings its own column names."""
    await bars(db)
    assert await db.upsert("bars", iter(rows), KEY) == UpsertResult(1, 0, 0)
    assert await db.upsert("bars", rows, KEY) == UpsertResult(0, 0, 1)
    assert await db.fetch("select * from bars", type=Bar) == [Bar("a", DAY, 1)]


async def test_a_key_of_one_column_may_be_its_name(db):
    """`key="code"` is not four columns; a key of no column is refused."""
    await db.execute("create table stocks (code text primary key, name text)")
    assert await db.upsert("stocks", [{"code": "a", "name": "x"}], "code") == UpsertResult(1, 0, 0)
    with pytest.raises(ValueError, match="needs the columns of a key"):
        await db.upsert("stocks", [{"code": "a", "name": "x"}], ())


async def test_rows_that_were_fetched_can_be_stored_again(db):
    """The driver's own records, and rows read one by one from another connection."""
    await bars(db)
    await db.execute("insert into bars values ('a', '2026-01-02', 1), ('b', '2026-01-02', 2)")
    await db.execute("create table copy (like bars including all)")
    assert await db.upsert("copy", await db.fetch("select * from bars"), KEY) == UpsertResult(2, 0, 0)
    assert await db.upsert("copy", db.iterate("select * from bars", type=Bar), KEY) == UpsertResult(0, 0, 2)


async def test_columns_pick_from_wider_rows(db):
    """`columns` takes what it names; without it, a key too many in a later row is a mistake, and the row is named."""
    await bars(db)
    wide = [{"code": "a", "date": DAY, "close": 1, "note": "x"}]
    assert await db.upsert("bars", wide, KEY, columns=("code", "date", "close")) == UpsertResult(1, 0, 0)
    later = [{"code": "b", "date": DAY, "close": 1}, {"code": "c", "date": DAY, "close": 1, "note": "x"}]
    with pytest.raises(RowShapeError, match=r"row 2: missing \[\], extra \['note'\]"):
        await db.upsert("bars", later, KEY)
    with pytest.raises(RowShapeError, match=r"row 2: missing \['close'\]"):
        await db.upsert("bars", [*later[:1], {"code": "c", "date": DAY}], KEY)
    with pytest.raises(RowShapeError, match="row 2"):
        await db.upsert("bars", [("b", DAY), ("c",)], KEY, columns=KEY)
    with pytest.raises(TypeError, match="columns="):
        await db.upsert("bars", [("b", DAY)], KEY)
    assert await db.fetch_value("select count(*) from bars") == 1


@SIZES
async def test_columns_that_the_rows_do_not_have_are_left_alone(db, size):
    """Defaults fill them at first, an update keeps them; what the server computes stays computed when it is given."""
    await db.execute(
        "create table t (id int primary key, v int, twice int generated always as (v * 2) stored, "
        "serial int generated always as identity, note text default 'new')"
    )
    pad = [{"id": 1000 + n, "v": 0} for n in range(size)]
    assert (await db.upsert("t", [*pad, {"id": 1, "v": 5}], ["id"])).inserted == len(pad) + 1
    await db.execute("update t set note = 'kept'")
    pad = [{"id": 1000 + n, "v": 1, "twice": 0, "serial": 0} for n in range(size)]
    result = await db.upsert("t", [*pad, {"id": 1, "v": 7, "twice": -1, "serial": -1}], ["id"])
    assert result == UpsertResult(0, len(pad) + 1, 0)
    row = await db.fetch_one("select * from t where id = 1")
    assert (row["v"], row["twice"], row["note"]) == (7, 14, "kept")
    assert row["serial"] > 0
    with pytest.raises(ValueError, match="computes"):
        await db.upsert("t", [{"serial": 1, "v": 1}], ["serial"])


@SIZES
async def test_names_are_quoted(db, size):
    """Case, blanks, quotes, dots and reserved words, in schema, table and columns."""
    await db.execute('drop schema if exists "Odd s" cascade; create schema "Odd s"')
    await db.execute('create table "Odd s"."my.""table" ("Order" int primary key, "a.b" text, "select" int)')
    rows = [{"Order": n, "a.b": "x", "select": 1} for n in range(size + 1)]
    name = '"Odd s"."my.""table"'
    assert (await db.upsert(name, rows, ["Order"])).inserted == size + 1
    rows[0]["a.b"] = "y'); drop table x"
    assert await db.upsert(name, rows, ["Order"]) == UpsertResult(0, 1, size)
    assert await db.copy_in(name, [{"Order": -1, "a.b": None, "select": 2}]) == 1
    with pytest.raises(ValueError, match="no name of a table"):
        await db.upsert("a.b.c", rows, ["Order"])


@SIZES
async def test_no_name_of_ours_gets_in_the_way(db, size):
    """Tables called like the parts of our statements, and columns like theirs: the rows are in the caller's table."""
    columns = "id int primary key, aegis_row int, aegis_row_0 int, is_new int, t int, f int"
    rows = [{"id": n, "aegis_row": 1, "aegis_row_0": -n, "is_new": 3, "t": 4, "f": 5} for n in range(size + 2)]
    for table in ("folded", "changed", "batch", "excluded"):
        await db.execute(f"create table {table} ({columns})")
        assert await db.upsert(table, [*rows, rows[0]], "id") == UpsertResult(size + 2, 0, 0)
        assert await db.upsert(table, [*rows[:-1], rows[-1] | {"t": 0}], "id") == UpsertResult(0, 1, size + 1)
        assert await db.fetch_value(f"select count(*) from {table}") == size + 2


async def test_values_of_every_kind_are_compared_as_they_are(db):
    """json, points, arrays, numbers with another scale: a difference is an update, none is not."""
    await db.execute(
        "create table t (id int primary key, doc json, place point, tags text[], price numeric, day timestamptz)"
    )
    moment = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    first = {"id": 1, "doc": '{"a": 1}', "place": (1, 2), "tags": ["x"], "price": Decimal("1.0"), "day": moment}
    assert await db.upsert("t", [first], ["id"]) == UpsertResult(1, 0, 0)
    assert await db.upsert("t", [first], ["id"]) == UpsertResult(0, 0, 1)
    for change in ({"doc": '{"a":1}'}, {"place": (2, 1)}, {"tags": ["x", "y"]}, {"price": Decimal("1.00")}):
        first |= change
        assert await db.upsert("t", [first], ["id"]) == UpsertResult(0, 1, 0), change
        assert await db.upsert("t", [first], ["id"]) == UpsertResult(0, 0, 1), change


@SIZES
async def test_a_partitioned_table_counts_as_exactly(db, size):
    """A table in parts shows no xmax; the counts are right all the same."""
    await db.execute("create table t (id int primary key, old int) partition by range (id)")
    await db.execute("create table t1 partition of t for values from (0) to (100)")
    await db.execute("create table t2 partition of t for values from (100) to (10000)")
    rows = [{"id": n, "old": n} for n in range(50 + size)]
    assert await db.upsert("t", rows, ["id"]) == UpsertResult(50 + size, 0, 0)
    changed = [{"id": n, "old": n + (n % 2)} for n in range(10, 60 + size)]
    assert await db.upsert("t", changed, ["id"]) == UpsertResult(10, (40 + size) // 2, 40 + size - (40 + size) // 2)


@SIZES
async def test_a_key_alone(db, size):
    """Rows that consist of their key are inserted once and unchanged ever after."""
    await db.execute("create table seen (code text primary key)")
    rows = [(f"{n}",) for n in range(size + 2)]
    assert await db.upsert("seen", [*rows, rows[0]], ["code"], columns=["code"]) == UpsertResult(size + 2, 0, 0)
    assert await db.upsert("seen", rows, ["code"], columns=["code"]) == UpsertResult(0, 0, size + 2)


async def test_no_rows_do_nothing(db):
    """No connection is asked for, from whatever kind of nothing."""
    acquired = db.stats().acquired

    async def nothing() -> AsyncIterator[Bar]:
        return
        yield

    assert await db.upsert("bars", [], KEY) == UpsertResult(0, 0, 0)
    assert await db.upsert("bars", nothing(), KEY, columns=KEY) == UpsertResult(0, 0, 0)
    assert await db.copy_in("bars", iter(())) == 0
    assert db.stats().acquired == acquired


async def test_unchanged_rows_are_not_touched(db):
    """Not even locked: neither their row versions nor their locks change, and no log of changes is written."""
    await db.execute("create table t (id int primary key, v int)")
    rows = [{"id": n, "v": n} for n in range(FEW * 3)]
    await db.upsert("t", rows, ["id"])
    seen = "select sum(hashtext(ctid::text || xmin::text || xmax::text)) from t"
    before = await db.fetch_value(seen)
    assert await db.upsert("t", rows, ["id"]) == UpsertResult(0, 0, FEW * 3)
    assert await db.upsert("t", rows[:9], ["id"]) == UpsertResult(0, 0, 9)
    assert await db.fetch_value(seen) == before


async def test_few_rows_are_one_statement_without_a_transaction(db):
    """And so leave no dead rows in the catalog behind, which a temporary table does."""
    await bars(db)
    rows = [Bar(f"{n}", DAY, n) for n in range(FEW)]
    before = await db.fetch_value("select txid_current()")
    assert (await db.upsert("bars", rows, KEY)).inserted == FEW
    assert (await db.upsert("bars", rows, KEY)).unchanged == FEW  # reads only: costs no transaction number
    assert await db.fetch_value("select txid_current()") == before + 2


@SIZES
async def test_opposite_key_orders_do_not_deadlock(db, size):
    """Two writers of the same keys in opposite order both finish, again and again."""
    await bars(db)
    rows = [Bar(f"{n:04}", DAY, n) for n in range(max(150, size * 3))]
    for step in range(6):
        moved = [Bar(r.code, r.date, n * 10 + step) for n, r in enumerate(rows)]
        both = await asyncio.gather(db.upsert("bars", moved, KEY), db.upsert("bars", moved[::-1], KEY))
        assert sum(result.inserted for result in both) == (len(rows) if step == 0 else 0)
        assert sum(result.updated for result in both) == (0 if step == 0 else len(rows))
    assert await db.fetch_value("select count(*) from bars") == len(rows)


async def test_writers_of_few_and_of_many_rows_do_not_deadlock(db, postgres_server):
    """They send other statements for the same keys, old and new, in any order; the server logs no deadlock."""
    await bars(db)
    before_log = postgres_server.log.read_text().count("deadlock detected")
    for step in range(6):
        many = [Bar(f"{n:04}", DAY, step) for n in range(step * 50, step * 50 + FEW * 2)]
        few = [Bar(f"{n:04}", DAY, step) for n in range(step * 50 + FEW, step * 50 + FEW * 2)]
        before = await db.fetch_value("select count(*) from bars")
        results = await asyncio.gather(
            db.upsert("bars", many, KEY), db.upsert("bars", few[::-1], KEY), db.upsert("bars", many[::-1], KEY)
        )
        after = await db.fetch_value("select count(*) from bars")
        assert sum(result.inserted for result in results) == after - before
        assert sum(result.updated for result in results) == len(many) - (after - before)
    assert postgres_server.log.read_text().count("deadlock detected") == before_log


LOCK_WAITS = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' having count(*)"


def quick_to_see_deadlocks(server: EmbeddedPostgres) -> DatabaseConfig:
    return DatabaseConfig(url=server.url + "&options=-c%20deadlock_timeout%3D20ms", min_conns=0)


@SIZES
async def test_a_victim_of_a_deadlock_tries_again(db, postgres_server, size):
    """
    Somebody else locks the other way round and the server ends our wait: the rows are still there, and go in.

    A gate stops us behind our first row until he waits for it, so that we close the circle, whatever the timing.
    """
    await bars(db)
    rows = [Bar(f"{n:04}", DAY, 0) for n in range(size + 3)]
    await db.upsert("bars", rows, KEY)
    moved = [Bar(row.code, row.date, 1) for row in rows]
    lock, (first, second, last) = "update bars set close = 7 where code = $1", (rows[n].code for n in (0, 1, -1))
    async with Database(quick_to_see_deadlocks(postgres_server)) as victim:
        async with db.transaction() as tx:
            await tx.execute("set local deadlock_timeout = '60s'")
            await tx.execute(lock, last)
            async with db.transaction() as gate:
                await gate.execute(lock, second)
                writing = asyncio.create_task(victim.upsert("bars", moved, KEY))
                await until(lambda: db.fetch_value(f"{LOCK_WAITS} = 1"))
                circle = asyncio.create_task(tx.execute(lock, first))
                await until(lambda: db.fetch_value(f"{LOCK_WAITS} = 2"))
            await circle
        assert await writing == UpsertResult(0, len(rows), 0)
        assert victim.stats().opened == 1
    assert await db.fetch_value("select sum(close) from bars") == len(rows)


@pytest.mark.parametrize("method", ["upsert", "copy_in"])
async def test_a_value_that_does_not_fit_names_its_row_and_nothing_is_stored(db, method):
    """The driver cannot encode it: the row's number is in the error; the whole call is undone."""
    await bars(db)
    rows = [Bar(f"{n:04}", DAY, n) for n in range(1000)]
    rows[700] = Bar("0700", DAY, "many")
    more = {"key": KEY} if method == "upsert" else {}
    with pytest.raises(QueryError, match="row 701"):
        await getattr(db, method)("bars", rows, **more)
    assert await db.fetch_value("select count(*) from bars") == 0
    assert db.stats().active == 0


@SIZES
@pytest.mark.parametrize("kind", ["int", "int[]"])  # columns of arrays never travel as arrays of them
async def test_the_error_of_a_bad_value_shows_no_other_row(db, size, kind):
    """However the rows travel: its number, and nothing of its neighbours."""
    await db.execute(f"create table t (id int primary key, note text, v {kind})")
    rows = [{"id": n, "note": f"secret-{n}", "v": None} for n in range(size + 9)]
    rows[6]["note"] = 6
    with pytest.raises(QueryError, match='"t", row 7: ') as caught:
        await db.upsert("t", rows, "id")
    assert caught.value.sqlstate == "22000"
    assert "secret" not in str(caught.value)
    assert await db.fetch_value("select count(*) from t") == 0


async def test_a_deadlock_inside_a_transaction_is_told(db, postgres_server):
    """Few rows are repeated only where they are alone: here all was undone, and the caller's block begins anew."""
    await bars(db)
    await db.upsert("bars", [Bar("a", DAY, 0), Bar("b", DAY, 0)], KEY)
    async with Database(quick_to_see_deadlocks(postgres_server)) as victim, db.transaction() as other:
        await other.execute("set local deadlock_timeout = '60s'")
        await other.execute("update bars set close = 7 where code = 'b'")
        with pytest.raises(QueryError) as caught:  # noqa: PT012 - the block is what is tested
            async with victim.transaction() as tx:
                await tx.execute("update bars set close = 1 where code = 'a'")
                waiting = asyncio.create_task(other.execute("update bars set close = 7 where code = 'a'"))
                await until(lambda: db.fetch_value(f"{LOCK_WAITS} = 1"))
                await tx.upsert("bars", [Bar("b", DAY, 1)], KEY)
        await waiting
    assert caught.value.sqlstate == "40P01"  # which run_tx repeats


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 1e12, None, "1"])
async def test_a_timeout_that_is_none_is_refused_by_its_name(db, tmp_path, value):
    """Before anything is asked of the server, wherever one can be given."""
    acquired = db.stats().acquired
    for call, name in (
        (db.upsert("bars", [Bar("a", DAY, 1)], KEY, timeout=value), "timeout"),
        (db.copy_in("bars", [Bar("a", DAY, 1)], timeout=value), "timeout"),
        (db.copy_out("select 1", to=tmp_path / "x", timeout=value), "timeout"),
        (db.health(value), "timeout"),
        (db.migrate(tmp_path, lock_timeout_s=value), "lock_timeout_s"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}=.* is not a number of seconds"):
            await call
    with pytest.raises(ValueError, match=r"timeout=0 is not .* from 0\.001"):
        await db.upsert("bars", [Bar("a", DAY, 1)], KEY, timeout=0)
    assert db.stats().acquired == acquired
    assert list(tmp_path.iterdir()) == []


async def test_what_the_server_refuses_is_undone(db):
    """A constraint violated by the last row: its code, and no row at all."""
    await bars(db)
    await db.execute("alter table bars add check (close < 900)")
    rows = [Bar(f"{n:04}", DAY, n) for n in range(901)]
    for work in (db.upsert("bars", rows, KEY), db.copy_in("bars", rows), db.upsert("bars", rows[-5:], KEY)):
        with pytest.raises(QueryError, match="23514"):
            await work
    for table, code in (("nowhere", "42P01"), ("public.nowhere", "42P01")):
        with pytest.raises(QueryError, match=code):
            await db.upsert(table, rows[:1], KEY)
    with pytest.raises(QueryError, match="42P10"):
        await db.upsert("bars", rows[:1], ["code"])
    with pytest.raises(ValueError, match=r"key columns \['id'\]"):
        await db.upsert("bars", rows[:1], ["id"])
    with pytest.raises(RowShapeError, match=r"table bars: missing \[\], extra \['x'\]"):
        await db.upsert("bars", [{"code": "a", "date": DAY, "x": 1}], KEY)
    assert await db.fetch_value("select count(*) from bars") == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, TimeoutError, asyncio.TimeoutError])
async def test_what_the_callers_rows_raise_comes_through(db, error):
    """Their own error, not one of ours, whatever its class; nothing is stored, and the pool is whole."""
    await bars(db)

    def failing() -> Iterator[Bar]:
        for n in range(2000):  # beyond what is read before anything is sent
            yield Bar(f"{n:04}", DAY, n)
        raise error("mine")

    with pytest.raises(error, match="mine"):
        await db.upsert("bars", failing(), KEY)
    with pytest.raises(error, match="mine"):
        await db.copy_in("bars", failing())
    assert await db.fetch_value("select count(*) from bars") == 0
    assert (db.stats().active, db.stats().waiting) == (0, 0)


async def test_bulk_inside_a_transaction_belongs_to_it(db):
    """Two upserts and a copy of one transaction are undone together, and its own settings stay."""
    await bars(db)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with db.transaction() as tx:
            await tx.execute("set local statement_timeout = '7s'; set local work_mem = '3MB'")
            many = [Bar(f"{n:04}", DAY, n) for n in range(FEW + 1)]
            assert (await tx.upsert("bars", many, KEY)).inserted == FEW + 1
            assert (await tx.upsert("bars", many, KEY)).unchanged == FEW + 1
            assert await tx.copy_in("bars", [Bar("x", DAY, 1)]) == 1
            assert await tx.fetch_value("show statement_timeout") == "7s"
            assert await tx.fetch_value("show work_mem") == "3MB"
            assert await tx.fetch_value("select count(*) from bars") == FEW + 2
            raise ZeroDivisionError
    assert await db.fetch_value("select count(*) from bars") == 0


async def test_a_long_copy_is_not_cut_by_the_statement_timeout(postgres_server):
    """The bound of bulk calls is their own; a short one holds, and says so."""
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=0, statement_timeout=0.2)) as db:
        await db.execute("drop table if exists slow_rows")
        await db.execute("create table slow_rows (id int primary key)")

        async def slowly(pause_s: float) -> AsyncIterator[tuple[int]]:
            for n in range(FEW + 1):
                yield (n,)
            await asyncio.sleep(pause_s)
            yield (-1,)

        assert await db.copy_in("slow_rows", slowly(0.6), columns=["id"]) == FEW + 2
        assert (await db.upsert("slow_rows", slowly(0.6), ["id"], columns=["id"])).unchanged == FEW + 2
        with pytest.raises(QueryError, match="57014"):
            await db.copy_in("slow_rows", slowly(0.6), columns=["id"], timeout=0.1)
        assert await db.fetch_value("show statement_timeout") == "200ms"


async def test_other_tasks_run_while_rows_are_read(db):
    """A plain iterator of many rows does not hold the event loop."""
    await bars(db)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    seen: list[int] = []

    def rows() -> Iterator[Bar]:
        for n in range(10_000):
            seen.append(turns)
            yield Bar(f"{n:05}", DAY, n)

    await db.copy_in("bars", rows())
    task.cancel()
    assert len(set(seen)) >= 15


async def test_a_long_stream_of_rows_needs_little_memory(db):
    """100 MB of rows from an iterator, up and out again: the process grows by less than a third of that."""
    await db.execute("create table wide (id int primary key, filler text)")
    filler, rows = "x" * 2000, 50_000
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = await db.upsert("wide", ((n, filler) for n in range(rows)), ["id"], columns=["id", "filler"])
    assert result == UpsertResult(rows, 0, 0)
    seen = 0
    async for row in db.iterate("select * from wide"):
        assert len(row["filler"]) == 2000
        seen += 1
    assert seen == rows
    written = 0

    async def count(data: bytes) -> None:
        nonlocal written
        written += len(data)

    assert await db.copy_out("select * from wide", to=count) == rows
    assert written > rows * 2000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 30_000_000
