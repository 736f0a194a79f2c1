"""The promises of the database room, against a real PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest

from aegis.config import DatabaseConfig
from aegis.database import Database
from aegis.embedded import EmbeddedPostgres
from aegis.errors import (
    CommitOutcomeUnknownError,
    DatabaseLostError,
    DatabaseUnavailableError,
    PoolFullError,
    PoolTimeoutError,
    QueryError,
)
from aegis.testing import until


def config_of(server: EmbeddedPostgres, **more) -> DatabaseConfig:
    return DatabaseConfig(url=server.url, **{"min_conns": 1, "max_conns": 3, **more})


async def test_a_refused_statement_leaves_the_connection_usable(db):
    """A QueryError carries the SQLSTATE and costs no connection."""
    opened = db.stats().opened
    with pytest.raises(QueryError) as caught:
        await db.execute("select 1/0")
    assert caught.value.sqlstate == "22012"
    assert await db.fetch_value("select 1") == 1
    assert db.stats().opened == opened


async def test_cancellation_loses_no_slot(db):
    """However callers are cancelled, waiting or in a query, the pool is whole afterwards and never above its size."""
    for round_ in range(20):
        tasks = [asyncio.create_task(db.fetch_value("select pg_sleep(0.02)")) for _ in range(12)]
        for turn, task in enumerate(tasks):
            if turn % 3 == round_ % 3:
                await asyncio.sleep(0)
            task.cancel()
            assert db.stats().total <= 3
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
    acquired = db.stats().acquired
    sleepers = [asyncio.create_task(db.execute("select pg_sleep(5)")) for _ in range(3)]
    await until(lambda: db.stats().acquired == acquired + 3)
    for task in sleepers:
        task.cancel()
    dirty = db.stats().closed_dirty
    await asyncio.gather(*sleepers, return_exceptions=True)
    assert db.stats().closed_dirty == dirty + 3
    asleep = "select count(*) from pg_stat_activity where query = 'select pg_sleep(5)' and state = 'active'"
    async with asyncio.timeout(3):  # the server gives up too, long before the five seconds
        while await db.fetch_value(asleep):
            await asyncio.sleep(0.02)
    assert await asyncio.gather(*(db.fetch_value("select 1") for _ in range(9))) == [1] * 9
    stats = db.stats()
    assert (stats.active, stats.waiting) == (0, 0)
    assert stats.total <= 3


async def test_waiters_are_served_in_order_and_nobody_barges_in(postgres_server):
    """First come first served, also for a caller who arrives at the moment of a release."""
    async with Database(config_of(postgres_server, max_conns=1)) as db:
        order: list[int] = []

        async def ask(number: int) -> None:
            await db.fetch_value("select 1")
            order.append(number)

        async with db.transaction():
            tasks = [asyncio.create_task(ask(number)) for number in range(5)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, ask(5))
        assert order == [0, 1, 2, 3, 4, 5]


async def test_a_full_pool_says_so(postgres_server):
    """A timeout names the pool's state; a full queue refuses at once."""
    async with Database(config_of(postgres_server, max_conns=1, acquire_timeout=0.1, max_waiting=1)) as db:
        async with db.transaction():
            waiting = asyncio.create_task(db.ping())
            await asyncio.sleep(0)
            with pytest.raises(PoolFullError):
                await db.ping()
            with pytest.raises(PoolTimeoutError, match="1 of 1 open, 1 active, 0 idle"):
                await waiting
        assert await db.ping() > 0


async def test_an_open_transaction_never_returns_to_the_pool(db, caplog):
    """A borrower's BEGIN closes the connection on return; the next borrower starts clean."""
    await db.execute("begin")
    assert "inside a transaction" in caplog.text
    assert db.stats().closed_dirty == 1
    assert db.stats().idle == 0
    assert await db.fetch_value("select pg_current_xact_id_if_assigned() is null")


async def test_a_server_process_killed_during_commit_leaves_an_unknown_outcome(db, postgres_server):
    """Killed while COMMIT runs: the caller gets its own class of error, and the pool is whole."""
    await db.execute("create table d (x int)")
    await db.execute("create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(9); end'")
    await db.execute(
        "create constraint trigger t after insert on d deferrable initially deferred "
        "for each row execute function slow()"
    )
    calls = 0

    async def insert(tx) -> None:
        nonlocal calls
        calls += 1
        await tx.execute("insert into d values (1)")

    job = asyncio.create_task(db.run_tx(insert))
    killer = "select count(pg_terminate_backend(pid)) from pg_stat_activity where query = 'commit' and state = 'active'"
    async with Database(config_of(postgres_server)) as other:
        await until(lambda: other.fetch_value(killer))
    with pytest.raises(CommitOutcomeUnknownError):
        await job
    assert calls == 1
    assert await db.fetch_value("select count(*) from d") == 0
    assert db.stats().active == 0


async def test_a_callers_own_error_passes_through_a_transaction(db):
    """An OSError of the block is not mistaken for a lost connection, and costs no connection."""
    opened = db.stats().opened
    with pytest.raises(ConnectionResetError, match="mine"):
        async with db.transaction():
            raise ConnectionResetError("mine")
    assert await db.ping() > 0
    assert db.stats().opened == opened


async def test_an_old_connection_is_replaced_at_hand_out(postgres_server):
    """Beyond its lifetime a connection is not handed out again."""
    async with Database(config_of(postgres_server, max_conn_lifetime=0.05)) as db:
        first = await db.fetch_value("select pg_backend_pid()")
        while await db.fetch_value("select pg_backend_pid()") == first:
            await asyncio.sleep(0.01)
        assert db.stats().closed_by_lifetime >= 1


async def test_a_killed_connection_is_replaced(db):
    """The statement that is hit reports an unknown outcome; the next one works."""
    with pytest.raises(DatabaseLostError):
        await db.execute("select pg_terminate_backend(pg_backend_pid())")
    assert await db.fetch_value("select 1") == 1


async def test_transactions_roll_back_and_run_tx_repeats(db):
    """An error rolls back; two serializable increments both count."""
    await db.execute("create table n (v int)")
    await db.execute("insert into n values (0)")
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with db.transaction() as tx:
            await tx.execute("update n set v = 99")
            raise ZeroDivisionError
    runs = 0
    both_have_read = asyncio.Barrier(2)

    async def increment(tx) -> None:
        nonlocal runs
        runs += 1
        first = runs <= 2
        value = await tx.fetch_value("select v from n")
        if first:
            await both_have_read.wait()
        await tx.execute("update n set v = $1", value + 1)

    await asyncio.gather(db.run_tx(increment), db.run_tx(increment))
    assert await db.fetch_value("select v from n") == 2
    assert runs >= 3


async def test_a_swallowed_failure_is_not_a_commit(db):
    """COMMIT of a failed transaction is answered with ROLLBACK; the caller hears it."""
    with pytest.raises(QueryError, match="rolled back"):  # noqa: PT012 - the block is what is tested
        async with db.transaction() as tx:
            with pytest.raises(QueryError):
                await tx.execute("select 1/0")


async def test_an_unreachable_server_is_named_without_the_password(tmp_path):
    """The address is in the error, the password is nowhere."""
    url = f"postgresql://me:hunter2@/db?host={tmp_path}"
    with pytest.raises(DatabaseUnavailableError) as caught:
        async with Database(DatabaseConfig(url=url)):
            pass
    assert str(tmp_path) in str(caught.value)
    assert "hunter2" not in str(caught.value) + repr(Database(DatabaseConfig(url=url)))
