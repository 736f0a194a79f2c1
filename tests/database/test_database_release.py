"""What a borrower leaves behind never reaches the next one, and a clean borrower pays nothing for that."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest

from aegis.config import DatabaseConfig
from aegis.database import Database
from aegis.database._session import Trace, trace_of
from aegis.embedded import EmbeddedPostgres
from aegis.errors import ClosedError, DatabaseLostError, QueryError


@pytest.fixture(scope="module")
def talkative() -> Iterator[EmbeddedPostgres]:
    """A server that logs every statement it is sent."""
    with EmbeddedPostgres(options={"log_statement": "all", "log_line_prefix": "[%p] "}) as server:
        yield server


def config_of(server: EmbeddedPostgres, **more) -> DatabaseConfig:
    return DatabaseConfig(url=server.url, **{"min_conns": 1, "max_conns": 1, **more})


def statements(server: EmbeddedPostgres, pid: int, after: str) -> list[str]:
    """What the connection `pid` has sent since the statement `after`."""
    found = re.findall(rf"^\[{pid}\] LOG:  (?:statement|execute [^:]*): (.*)$", server.log.read_text(), re.MULTILINE)
    return found[found.index(after) + 1 :]


async def test_a_pooled_query_is_exactly_one_statement(talkative):
    """The server's own log: 50 queries in five forms, 50 statements; a transaction is its own and two."""
    async with Database(config_of(talkative)) as db:
        pid = await db.fetch_value("select pg_backend_pid()")
        await db.execute("select 'mark'")
        sent = []
        for number in range(10):
            await db.fetch(f"select {number}, 1")
            await db.fetch_one("select 2")
            await db.fetch_value("select $1::int", number)
            await db.execute("select 4")
            await db.execute("select $1::int + 5", number)
            sent += [f"select {number}, 1", "select 2", "select $1::int", "select 4", "select $1::int + 5"]
        async with db.transaction() as tx:
            await tx.execute("select 6")
        sent += ["begin isolation level read committed", "select 6", "commit"]
        assert statements(talkative, pid, "select 'mark'") == sent
        assert db.stats().opened == 1


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("set work_mem = '1MB'", "select current_setting('work_mem') = '1MB'"),
        ("select set_config('work_mem', '1MB', false)", "select current_setting('work_mem') = '1MB'"),
        ("set role pg_monitor", "select current_user = 'pg_monitor'"),
        ("listen quotes", "select exists (select from pg_listening_channels())"),
        ("select pg_advisory_lock(7)", "select exists (select from pg_locks where locktype = 'advisory')"),
        ("create temp table scratch (x int)", "select to_regclass('pg_temp.scratch') is not null"),
        ("do $$ begin set work_mem = '1MB'; end $$", "select current_setting('work_mem') = '1MB'"),
        ("create or replace temp view peek as select 1", "select to_regclass('pg_temp.peek') is not null"),
        ("create table pg_temp.scratch (x int)", "select to_regclass('pg_temp.scratch') is not null"),
        ("/* /* */ ' */ set work_mem = '1MB' -- '", "select current_setting('work_mem') = '1MB'"),
        ("prepare p as select 1", "select exists (select from pg_prepared_statements where name = 'p')"),
    ],
)
async def test_a_changed_session_is_reset(talkative, change, left):
    """The next borrower of the only connection finds nothing of it, in the pool's own way and inside a transaction."""
    async with Database(config_of(talkative)) as db:
        await db.execute(change)
        assert not await db.fetch_value(left)
        async with db.transaction() as tx:
            await tx.execute(change)
            assert await tx.fetch_value(left) == (not change.startswith("listen"))  # that starts at COMMIT
        assert not await db.fetch_value(left)
        assert await db.fetch_value("select current_setting('statement_timeout')") == "30s"


async def test_a_reset_keeps_the_connection_and_its_prepared_statements(talkative):
    """A reset is one message on the same connection; statements that were prepared go on working."""
    async with Database(config_of(talkative)) as db:
        pid = await db.fetch_value("select pg_backend_pid()")
        await db.execute("set work_mem = '1MB'")
        assert await db.fetch_value("select pg_backend_pid()") == pid
        sent = statements(talkative, pid, "set work_mem = '1MB'")
        assert len(sent) == 2
        assert sent[0].startswith("select pg_advisory_unlock_all()")
        assert (db.stats().opened, db.stats().resets) == (1, 1)


async def test_raw_access_is_reset(talkative):
    """Whatever was done to the bare connection, listeners included, is gone for the next borrower."""
    async with Database(config_of(talkative)) as db:
        async with db.raw() as conn:
            await conn.add_listener("quotes", lambda *_: None)
            await conn.execute("set work_mem = '1MB'")
        assert not await db.fetch_value("select exists (select from pg_listening_channels())")
        assert await db.fetch_value("select current_setting('work_mem')") != "1MB"
        assert db.stats().opened == 1


async def test_reset_always_is_for_what_the_text_cannot_show(talkative):
    """A function that changes the session inside is seen with DB_RESET=always only."""
    hidden = "create or replace function f() returns void language sql as $$select set_config('work_mem','1MB',false)$$"
    async with Database(config_of(talkative, reset="always")) as db:
        await db.execute(hidden)
        await db.execute("select f()")
        assert await db.fetch_value("select current_setting('work_mem')") != "1MB"


@pytest.mark.parametrize(
    ("sql", "trace"),
    [
        ("update quotes set price = 1", Trace.NONE),
        ("insert into t values ('set x = 1') on conflict (a) do update set b = 2", Trace.NONE),
        ("select 1 -- ; set x = 1", Trace.NONE),
        ('select $$; set x = 1$$, "; listen" from t', Trace.NONE),
        ("set local work_mem = '1MB'", Trace.NONE),
        ("set transaction isolation level serializable", Trace.NONE),
        ("select pg_advisory_xact_lock(1)", Trace.NONE),
        ("/* why */ SET search_path = x", Trace.RESET),
        ("select 1; reset all", Trace.RESET),
        ("select e'it\\'s'; set x = 1", Trace.RESET),
        ("select * into temp x from y", Trace.RESET),
        ("with a as (select pg_try_advisory_lock (1)) select 1", Trace.RESET),
        ("SELECT pg_catalog.set_config('a', 'b', false)", Trace.RESET),
        ("select pg_catalog.\"set_config\"('a', 'b', false)", Trace.RESET),
        ('select "pg_advisory_lock"(1)', Trace.RESET),
        ('select U&"pg_advisory\\005flock"(1)', Trace.RESET),
        ("create local temporary table x (a int)", Trace.RESET),
        ("select * into global temp x from y", Trace.RESET),
        ("select 1 /* /* */ ; set x = 1 */", Trace.NONE),
        ("select 1 -- x\r; set x = 1", Trace.RESET),
        ("select 1 a$b$; set x = 1 --$b$", Trace.RESET),
        ("select $a$ $A$ $a$; set x = 1; select $a$ $a$", Trace.RESET),
        ("select '\\'; set x = 1 --'", Trace.RESET),  # a server may read the backslash as an escape
        ("deallocate all", Trace.CLOSE),
        ("prepare transaction 'x'", Trace.NONE),
        ("discard all", Trace.CLOSE),
    ],
)
def test_the_text_of_a_statement_tells_what_it_leaves_behind(sql, trace):
    """Quoted text and comments are not mistaken for statements, nor the other way round."""
    assert trace_of(sql) is trace


@pytest.mark.parametrize("sql", [None, b"select 1", ["select 1"]])
async def test_what_is_no_text_costs_no_connection(talkative, sql):
    """Refused by its type before a connection is asked for, from each way in; the only one is free afterwards."""
    async with Database(config_of(talkative, acquire_timeout=5)) as db:
        for call in (db.fetch(sql), db.execute(sql), db.copy_out(sql, to=print), anext(aiter(db.iterate(sql)))):
            with pytest.raises(TypeError, match="SQL is text, not"):
                await call
        assert db.stats().active == 0
        assert await db.fetch_value("select 1") == 1


async def test_an_unfinished_transaction_names_its_borrower(talkative, caplog):
    """One line with file, line and function of who left it; the connection is replaced and counted."""
    async with Database(config_of(talkative)) as db:
        pid = await db.fetch_value("select pg_backend_pid()")
        await db.execute("begin")
        lines = [r.getMessage() for r in caplog.records if "inside a transaction" in r.getMessage()]
        assert len(lines) == 1
        assert re.search(r"test_database_release\.py:\d+ in test_an_unfinished", lines[0])
        assert await db.fetch_value("select pg_backend_pid()") != pid
        with pytest.raises(QueryError):
            await db.execute("begin; select 1/0")
        assert db.stats().closed_dirty == 2


async def test_a_transaction_object_ends_with_its_block(talkative):
    """Later use is refused: its connection may serve somebody else by then."""
    async with Database(config_of(talkative)) as db:
        async with db.transaction() as tx:
            pass
        with pytest.raises(ClosedError, match="Transaction"):
            await tx.execute("select 1")


async def test_close_waits_for_holders_and_then_names_them(talkative, caplog):
    """A short holder finishes; one that stays beyond the bound is cut off and named with its line."""
    short, held = asyncio.Event(), asyncio.Event()

    async def hold_short(db: Database) -> None:
        async with db.transaction() as tx:
            short.set()
            await tx.fetch_value("select pg_sleep(0.1)")

    async def hold_on(db: Database) -> None:
        async with db.transaction() as tx:
            held.set()
            await tx.fetch_value("select pg_sleep(30)")

    async with Database(config_of(talkative, max_conns=2)) as db:
        first = asyncio.create_task(hold_short(db))
        await short.wait()
    await first
    assert "held" not in caplog.text

    db = Database(config_of(talkative, max_conns=2, close_timeout=0.1))
    async with db:
        second = asyncio.create_task(hold_on(db))
        await held.wait()
    with pytest.raises(DatabaseLostError):
        await second
    lines = [r.getMessage() for r in caplog.records if "were held" in r.getMessage()]
    assert len(lines) == 1
    assert re.search(r"1 connections were held: test_database_release\.py:\d+ in hold_on, 0\.\d s", lines[0])
    with pytest.raises(ClosedError):
        await db.ping()
