"""Transactions: what is stored, what is undone, what is repeated, and what nobody can know."""

# ruff: noqa: PT012 - a whole transaction block is what must raise
from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from aegis.config import DatabaseConfig
from aegis.database import Database
from aegis.embedded import EmbeddedPostgres
from aegis.errors import CommitOutcomeUnknownError, DatabaseError, DatabaseLostError, QueryError


@pytest.fixture
async def db(postgres_server: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=1, max_conns=4)) as database:
        await database.execute("drop table if exists n")
        await database.execute("create table n (id int primary key, v int not null)")
        yield database


async def values(db: Database) -> list[int]:
    return [row[0] for row in await db.fetch("select id from n order by id")]


async def test_a_savepoint_undoes_only_its_own_block(db):
    """Nested twice: the inner error undoes the inner rows, the outer transaction goes on and commits."""
    async with db.transaction() as tx:
        await tx.execute("insert into n values (1, 1)")
        with pytest.raises(QueryError, match="23505"):
            async with tx.transaction() as nested:
                await nested.execute("insert into n values (2, 1)")
                async with nested.transaction():
                    await tx.execute("insert into n values (3, 1)")
                await nested.execute("insert into n values (1, 1)")
        async with tx.transaction():
            await tx.execute("insert into n values (4, 1)")
    assert await values(db) == [1, 4]
    assert db.stats().opened == 1


async def test_a_failure_swallowed_in_a_savepoint_is_raised_at_its_end(db):
    """RELEASE of a failed savepoint would fail anyway; the error is the statement's own, and the rest is kept."""
    async with db.transaction() as tx:
        await tx.execute("insert into n values (1, 1)")
        with pytest.raises(QueryError, match="22012"):
            async with tx.transaction():
                with contextlib.suppress(QueryError):
                    await tx.execute("select 1/0")
    assert await values(db) == [1]


async def test_a_swallowed_failure_is_raised_at_commit_with_its_own_code(db):
    """So that run_tx repeats a function that hid a 40001, too."""
    with pytest.raises(QueryError) as caught:
        async with db.transaction() as tx:
            with contextlib.suppress(QueryError):
                await tx.execute("insert into n values (1, null)")
    assert caught.value.sqlstate == "23502"
    assert await values(db) == []


async def test_only_the_server_says_that_a_savepoint_failed(db):
    """An argument that was never sent, and a failure that the caller undid himself, take nothing back."""
    async with db.transaction() as tx:
        async with tx.transaction():
            await tx.execute("insert into n values (1, 1)")
            with pytest.raises(QueryError, match="22000"):
                await tx.execute("insert into n values ($1, 1)", "two")
        async with tx.transaction():
            await tx.execute("savepoint mine")
            with pytest.raises(QueryError, match="23505"):
                await tx.execute("insert into n values (1, 1)")
            await tx.execute("rollback to savepoint mine")
            await tx.execute("insert into n values (3, 1)")
    assert await values(db) == [1, 3]


@pytest.mark.parametrize("inside", ["savepoint", "transaction"])
async def test_the_reason_of_a_roll_back_is_what_the_server_refused(db, inside):
    """Neither an argument that was never sent, before or after, nor what is said to all that follows."""
    with pytest.raises(QueryError) as caught:
        async with (
            db.transaction() as outer,
            outer.transaction() if inside == "savepoint" else contextlib.nullcontext(outer) as tx,
        ):
            for sql, args in (
                ("select $1::int", ["x"]),
                ("do $$ begin raise exception 'no' using errcode = '40001'; end $$", []),
                ("select 1", []),
                ("select $1::int", ["x"]),  # known to the driver, so again not sent
            ):
                with pytest.raises(QueryError):
                    await tx.execute(sql, *args)
    assert caught.value.sqlstate == "40001"


async def test_an_interrupted_statement_dooms_its_transaction(db):
    """After a timeout inside the block neither further statements nor COMMIT can pretend that all is well."""
    with pytest.raises(QueryError, match="interrupted"):
        async with db.transaction() as tx:
            await tx.execute("insert into n values (1, 1)")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await tx.execute("select pg_sleep(5)")
            await tx.execute("insert into n values (2, 1)")
    with pytest.raises(QueryError, match="interrupted"):
        async with db.transaction() as tx:
            await tx.execute("insert into n values (3, 1)")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await tx.execute("select pg_sleep(5)")
    assert await values(db) == []


async def test_the_modes_of_a_transaction_are_the_servers(db):
    """Isolation, read only and deferrable arrive, and do not stay on the connection."""
    shown = "select current_setting('transaction_{}')"
    async with db.transaction(isolation="serializable", readonly=True, deferrable=True) as tx:
        assert await tx.fetch_value(shown.format("isolation")) == "serializable"
        assert await tx.fetch_value(shown.format("read_only")) == "on"
        assert await tx.fetch_value(shown.format("deferrable")) == "on"
    async with db.transaction() as tx:
        assert await tx.fetch_value(shown.format("isolation")) == "read committed"
        assert await tx.fetch_value(shown.format("read_only")) == "off"
    assert db.stats().resets == 0


async def test_an_isolation_that_does_not_exist_is_refused_here(db):
    """Not sent: it would be SQL."""
    with pytest.raises(ValueError, match="none of read committed"):
        async with db.transaction(isolation="snapshot; drop table n"):
            pass
    assert db.stats().active == 0


async def test_plans_survive_a_change_of_the_table(db):
    """A column added and a type changed after a statement was prepared: the next call works, on each connection."""
    await db.execute("insert into n values (1, 1)")

    async def seen() -> set[tuple]:
        rows = await asyncio.gather(*(db.fetch_one("select *, pg_sleep(0.05) from n") for _ in range(4)))
        return {tuple(row)[:-1] for row in rows}

    assert await seen() == {(1, 1)}
    for change, row in (
        ("add column more text default 'x'", (1, 1, "x")),
        ("alter column v type text", (1, "1", "x")),
        ("drop column more, alter column v type int using v::int", (1, 1)),
    ):
        await db.execute(f"alter table n {change}")
        assert await seen() == {row}
    assert db.stats().opened == 4


async def test_run_tx_repeats_after_a_deadlock(db):
    """Two functions that lock two rows in opposite order: one is refused with 40P01 and runs again; both count."""
    await db.execute("insert into n values (1, 0), (2, 0)")
    await db.execute("alter database postgres set deadlock_timeout = '20ms'")
    runs = 0
    both = asyncio.Barrier(2)

    async def cross(tx, first: int, second: int) -> None:
        nonlocal runs
        runs += 1
        await tx.execute("update n set v = v + 1 where id = $1", first)
        if runs <= 2:
            await both.wait()
        await tx.execute("update n set v = v + 1 where id = $1", second)

    async with Database(db._pool.config) as other:
        await asyncio.gather(
            other.run_tx(lambda tx: cross(tx, 1, 2), isolation="read committed"),
            other.run_tx(lambda tx: cross(tx, 2, 1), isolation="read committed"),
        )
    await db.execute("alter database postgres reset deadlock_timeout")
    assert runs == 3
    assert [row[0] for row in await db.fetch("select v from n")] == [2, 2]


async def test_run_tx_gives_up_after_its_retries_and_repeats_nothing_else(db):
    """The last refusal is raised after `retries` further runs; an error of another kind after the first run."""
    runs = 0

    async def always(tx) -> None:
        nonlocal runs
        runs += 1
        await tx.execute("do $$ begin raise exception 'no' using errcode = '40001'; end $$")

    with pytest.raises(QueryError) as caught:
        await db.run_tx(always, retries=2)
    assert (caught.value.sqlstate, runs) == ("40001", 3)

    async def broken(tx) -> None:
        nonlocal runs
        runs += 1
        await tx.execute("select 1/0")

    with pytest.raises(QueryError):
        await db.run_tx(broken)
    assert runs == 4


async def test_run_tx_runs_no_query_before_the_function(db):
    """The snapshot of a serializable transaction is taken by the function's first query, not earlier."""

    async def read(tx) -> list[int]:
        await db.execute("insert into n values (7, 7)")  # on another connection, after BEGIN
        return [row[0] for row in await tx.fetch("select id from n")]

    assert await db.run_tx(read) == [7]


async def test_a_server_killed_during_commit_is_an_unknown_outcome():
    """
    SIGKILL of the server's process while COMMIT runs: run_tx raises, runs the function once, and the pool recovers.

    The kill takes the whole server down and through crash recovery, as a kernel's OOM killer does.
    """
    with EmbeddedPostgres(options={"synchronous_commit": "on", "fsync": "on"}) as server:
        config = DatabaseConfig(url=server.url, min_conns=0, max_conns=3)
        async with Database(config) as db:
            await db.execute("create table d (x int)")
            await db.execute("create function f() returns trigger language plpgsql as 'begin perform pg_sleep(9); end'")
            await db.execute(
                "create constraint trigger t after insert on d deferrable initially deferred "
                "for each row execute function f()"
            )
            runs = 0

            async def insert(tx) -> None:
                nonlocal runs
                runs += 1
                await tx.execute("insert into d values (1)")

            job = asyncio.create_task(db.run_tx(insert))
            committing = "select pid from pg_stat_activity where query = 'commit' and state = 'active'"
            while (pid := await db.fetch_value(committing)) is None:
                await asyncio.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(CommitOutcomeUnknownError) as caught:
                await job
            assert isinstance(caught.value, DatabaseLostError)
            assert runs == 1
            stored = None
            async with asyncio.timeout(20):
                while stored is None:  # until crash recovery is over; it ends the other connections, too
                    with contextlib.suppress(DatabaseError):
                        stored = await db.fetch_value("select count(*) from d")
                    await asyncio.sleep(0.02)
            assert stored == 0
            assert (db.stats().active, db.stats().waiting) == (0, 0)
