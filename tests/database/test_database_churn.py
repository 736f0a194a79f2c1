"""The pool under cancellation against the real server, which counts the connections itself."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from aegis.config import DatabaseConfig
from aegis.database import Database
from aegis.embedded import EmbeddedPostgres
from aegis.errors import AegisError
from aegis.testing import until

MAX = 4


@pytest.fixture
def config(postgres_server: EmbeddedPostgres) -> DatabaseConfig:
    return DatabaseConfig(url=postgres_server.url, min_conns=0, max_conns=MAX)


async def _transfer(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute("update churn set n = n + 1 where id = 1")
        await asyncio.sleep(0)
        await tx.execute("update churn set n = n - 1 where id = 2")


async def _session(db: Database) -> None:
    await db.execute("set work_mem = '1MB'")


async def _savepoint(db: Database) -> None:
    async with db.transaction() as tx:
        with contextlib.suppress(ZeroDivisionError):
            async with tx.transaction():
                await tx.execute("update churn set n = n + 100 where id = 1")
                raise ZeroDivisionError


async def _rows(db: Database) -> None:
    await db.upsert("churn_rows", [{"id": random.randrange(50), "n": n} for n in range(30)], key=("id",))


KINDS = [
    _transfer,
    _session,
    _savepoint,
    _rows,
    lambda db: db.fetch_value("select pg_sleep(0.003)"),
    lambda db: db.fetch("select generate_series(1, 300)"),
    lambda db: db.execute("select pg_terminate_backend(pg_backend_pid())"),
    lambda db: db.run_tx(lambda tx: tx.execute("update churn set n = n where id = 1")),
]


async def test_churn_loses_no_slot_and_never_exceeds_the_maximum(config, postgres_server):
    """
    600 calls of eight kinds, most cancelled at a random await: the server never counts more than the maximum.

    Afterwards the sum of a table that only balanced transactions touched is zero, no cancellation was swallowed, and
    the whole maximum can be borrowed at once.
    """
    counted = "select count(*) from pg_stat_activity where application_name = 'aegis' and pid <> pg_backend_pid()"
    most = 0
    async with Database(config.model_copy(update={"max_conns": 1})) as judge, Database(config) as db:
        await judge.execute("drop table if exists churn, churn_rows")
        await judge.execute("create table churn (id int primary key, n bigint)")
        await judge.execute("create table churn_rows (id int primary key, n bigint)")
        await judge.execute("insert into churn values (1, 0), (2, 0)")
        done = False

        async def watch() -> None:
            nonlocal most
            while not done:
                most = max(most, await judge.fetch_value(counted))

        watching = asyncio.create_task(watch())
        for _ in range(30):
            tasks = [asyncio.create_task(random.choice(KINDS)(db)) for _ in range(20)]
            cancelled = set()
            for task in random.sample(tasks, 16):
                for _ in range(random.randrange(6)):
                    await asyncio.sleep(random.choice([0, 0, 0.0005]))
                if not task.done() and task.cancel():
                    cancelled.add(task)
                assert db.stats().total <= MAX
            await asyncio.wait(tasks)
            for task in tasks:
                if task in cancelled:
                    assert task.cancelled()
                elif task.exception() is not None:
                    assert isinstance(task.exception(), AegisError)
        done = True
        await watching
        assert 1 < most <= MAX
        assert await judge.fetch_value("select sum(n) from churn") == 0
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(5):
                for _ in range(MAX):
                    await stack.enter_async_context(db.transaction())
            assert db.stats().active == MAX
        stats = db.stats()
        assert (stats.active, stats.waiting) == (0, 0)


async def test_a_cancelled_caller_leaves_its_connect_to_the_next(config):
    """The connect goes on in the pool; its connection serves whoever comes next, and it is the only one."""
    async with Database(config) as db, db.transaction():  # occupies the first
        task = asyncio.create_task(db.ping())
        await asyncio.sleep(0)
        assert db.stats().connecting == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await db.ping() > 0
        assert (db.stats().opened, db.stats().canceled) == (2, 1)


async def test_cancelled_during_commit_the_cancellation_comes_through(config, postgres_server):
    """CancelledError is what the caller gets, the outcome is for the database to say, and the pool is whole."""
    async with Database(config) as db:
        await db.execute("drop table if exists slow_commit")
        await db.execute("create table slow_commit (x int)")
        await db.execute(
            "create or replace function slowly() returns trigger language plpgsql as 'begin perform pg_sleep(9); end'"
        )
        await db.execute(
            "create constraint trigger t after insert on slow_commit deferrable initially deferred "
            "for each row execute function slowly()"
        )

        async def insert() -> None:
            async with db.transaction() as tx:
                await tx.execute("insert into slow_commit values (1)")

        task = asyncio.create_task(insert())
        committing = "select count(*) from pg_stat_activity where query = 'commit' and state = 'active'"
        await until(lambda: db.fetch_value(committing))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not db.stats().closing)
        assert not await db.fetch_value(committing)  # cancelled there too, long before its nine seconds
        assert db.stats().active == 0
