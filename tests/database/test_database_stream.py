"""Rows that come back: typed, one by one, or as a file."""

from __future__ import annotations

import asyncio
import contextlib
import csv
from dataclasses import dataclass, field

import msgspec
import pytest

from aegis.errors import DatabaseLostError, QueryError, RowShapeError
from aegis.testing import until


@dataclass
class Stock:
    code: str
    price: int
    note: str = "none"


@dataclass(kw_only=True)
class Named:
    price: int
    code: str


@dataclass
class Derived:
    code: str
    price: int
    upper: str = field(init=False)

    def __post_init__(self) -> None:
        self.upper = self.code.upper()


class Struct(msgspec.Struct, frozen=True):
    price: int
    code: str = "?"


class Keyword(msgspec.Struct, kw_only=True):
    code: str
    price: int


@pytest.mark.parametrize(
    ("columns", "kind", "expected"),
    [
        ("code, price", Stock, Stock("a", 1)),
        ("price, code", Stock, Stock("a", 1)),
        ("'x' as note, price, code", Stock, Stock("a", 1, "x")),
        ("code, price", Named, Named(code="a", price=1)),
        ("price, code", Derived, Derived("a", 1)),
        ("code, price", Struct, Struct(1, "a")),
        ("price", Struct, Struct(1)),
        ("price, code", Keyword, Keyword(code="a", price=1)),
        ("code, price", dict, {"code": "a", "price": 1}),
    ],
)
async def test_rows_become_what_was_asked_for(db, columns, kind, expected):
    """By name, in any order of the columns, with defaults for what is not selected."""
    sql = f"select {columns} from (values ('a', 1)) as t (code, price)"
    assert await db.fetch(sql, type=kind) == [expected]
    assert await db.fetch_one(sql, type=kind) == expected
    assert [row async for row in db.iterate(sql, type=kind)] == [expected]
    assert await db.fetch_one(sql + " where false", type=kind) is None


@pytest.mark.parametrize(
    ("columns", "missing", "extra"),
    [
        ("'a' as code", ["price"], []),
        ("'a' as code, 1 as price, 2 as other", [], ["other"]),
        ("1 as prise", ["code", "price"], ["prise"]),
        ("'a' as code, 1 as price, 'b' as code", [], ["code", "code"]),
    ],
)
async def test_columns_that_do_not_fit_are_named(db, columns, missing, extra):
    """Both sides in one error; a column that stands twice is none to guess about."""
    with pytest.raises(RowShapeError) as caught:
        await db.fetch(f"select {columns}", type=Stock)
    assert (caught.value.missing, caught.value.extra) == (tuple(missing), tuple(extra))
    assert "Stock" in str(caught.value)
    with pytest.raises(TypeError, match="int is neither"):
        await db.fetch("select 1 where false", type=int)


async def test_columns_are_checked_once_per_statement(db, monkeypatch):
    """Not once per row, nor once per call: the second run of a statement looks at nothing."""
    from aegis.database import _rows

    looked = []
    fields_of = _rows.fields_of
    monkeypatch.setattr(_rows, "fields_of", lambda kind: looked.append(kind) or fields_of(kind))
    sql = "select 'once' as code, n as price from generate_series(1, 100) n"
    for _ in range(3):
        assert len(await db.fetch(sql, type=Stock)) == 100
        assert len([row async for row in db.iterate(sql, type=Stock, batch=7)]) == 100
    assert len(looked) <= 1


@pytest.mark.parametrize("batch", [1, 7, 50, 1000])
async def test_iterate_gives_every_row_in_order(db, batch):
    """Whatever the batch: also one that divides the rows, and one that is larger than all."""
    sql = "select n from generate_series(1, $1::int) n order by n"
    assert [row["n"] async for row in db.iterate(sql, 50, batch=batch)] == list(range(1, 51))
    assert [row async for row in db.iterate(sql, 0, batch=batch)] == []
    assert (db.stats().active, db.stats().idle) == (0, 1)
    with pytest.raises(ValueError, match="batch=0"):
        db.iterate(sql, 1, batch=0)


async def test_a_stream_left_early_gives_its_connection_back(db):
    """By the end of its block at once, by dropping it in the next turn; the connection itself is kept."""
    sql = "select n from generate_series(1, 100000) n"
    async with db.iterate(sql, batch=10) as rows:
        async for row in rows:
            if row["n"] == 25:
                break
        assert db.stats().active == 1
    assert db.stats().active == 0
    async for _ in db.iterate(sql, batch=10):
        break
    await until(lambda: not db.stats().active)
    assert (db.stats().opened, db.stats().closed_dirty, db.stats().idle) == (1, 0, 1)


async def test_a_stream_sees_one_moment(db):
    """Rows that others add meanwhile do not appear, and the snapshot ends with the stream."""
    await db.execute("create table t as select generate_series(1, 20) as n")
    seen = 0
    async for _ in db.iterate("select * from t", batch=5):
        seen += 1
        await db.execute("insert into t values (0)")
    assert seen == 20
    assert await db.fetch_value("select count(*) from t") == 40


async def test_streams_inside_a_transaction(db):
    """Two at once on one connection, with statements in between; they see what the transaction wrote."""
    async with db.transaction() as tx:
        await tx.execute("create table t as select generate_series(1, 30) as n")
        outer = 0
        async for row in tx.iterate("select n from t order by n", batch=4):
            inner = [each["n"] async for each in tx.iterate("select n from t where n <= $1 order by n", row["n"])]
            assert inner == list(range(1, row["n"] + 1))
            await tx.execute("update t set n = n where n = $1", row["n"])
            outer += 1
        assert outer == 30


async def test_errors_of_a_stream_are_ours(db):
    """At the start, in the middle, and when the connection goes; the pool is whole."""
    with pytest.raises(QueryError, match="42P01"):
        await anext(aiter(db.iterate("select * from nowhere")))
    got = []
    with pytest.raises(QueryError, match="22012"):  # noqa: PT012 - the loop is what is tested
        async for row in db.iterate("select 1 / (3 - n) as x from generate_series(1, 5) n", batch=1):
            got.append(row["x"])
    assert got == [0, 1]
    with pytest.raises(DatabaseLostError):
        async for _ in db.iterate("select pg_terminate_backend(pg_backend_pid()) from generate_series(1, 5)", batch=1):
            pass
    with pytest.raises(RowShapeError):
        async for _ in db.iterate("select 1 as x", type=Stock):
            pass
    assert (db.stats().active, db.stats().waiting) == (0, 0)
    assert await db.fetch_value("select 1") == 1


async def test_a_cancelled_stream_loses_no_slot(db):
    """Cancelled at each await of a stream in turn: every time the pool is whole."""
    for turns in range(25):

        async def read() -> None:
            async for _ in db.iterate("select n from generate_series(1, 50) n", batch=5):
                await asyncio.sleep(0)

        task = asyncio.create_task(read())
        for _ in range(turns * 3):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await until(lambda: not db.stats().active)  # closed like any generator that was dropped
        assert await db.fetch_value("select 1") == 1


async def test_copy_out_writes_a_file_that_is_complete_or_absent(db, tmp_path):
    """CSV with a header; after a failure in the middle nothing is left under any name."""
    path = tmp_path / "stocks.csv"
    sql = "select n as id, 'a,\"b' as text from generate_series(1, $1::int) n"
    assert await db.copy_out(sql, 1000, to=path) == 1000
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "text"]
    assert rows[-1] == ["1000", 'a,"b']
    assert len(rows) == 1001
    before = path.read_bytes()
    with pytest.raises(QueryError, match="22012"):
        await db.copy_out("select 1 / (90000 - n) from generate_series(1, 100000) n", to=str(path))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["stocks.csv"]
    with pytest.raises(FileNotFoundError):
        await db.copy_out("select 1", to=tmp_path / "nowhere" / "x.csv")
    assert db.stats().active == 0


@pytest.mark.parametrize("error", [OSError, TimeoutError, ZeroDivisionError])
async def test_what_the_receiver_of_a_copy_raises_comes_through(db, error):
    """Their own error, and a pool that is whole."""

    async def full(data: bytes) -> None:
        raise error("mine")

    with pytest.raises(error, match="mine"):
        await db.copy_out("select generate_series(1, 100000)", to=full)
    assert (db.stats().active, db.stats().waiting) == (0, 0)
    assert await db.fetch_value("select 1") == 1


async def test_copy_goes_round(db):
    """Out of one table as binary, into a file, and the server reads the same from it."""
    await db.execute("create table t as select n as id, n::text as name from generate_series(1, 500) n")
    pieces: list[bytes] = []

    async def keep(data: bytes) -> None:
        pieces.append(data)

    async with db.transaction() as tx:
        assert await tx.copy_out("select * from t", to=keep, format="binary") == 500
        await tx.execute("create table again (like t)")
        assert await tx.copy_in("again", await tx.fetch("select * from t")) == 500
        assert await tx.fetch_value("select count(*) from (table t except table again) d") == 0
    assert b"".join(pieces).startswith(b"PGCOPY\n")
