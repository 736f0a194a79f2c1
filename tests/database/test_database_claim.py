"""Rows as work: each is done once, by one process, and is free again when that one fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass

import pytest

from aegis.database import Database
from aegis.errors import QueryError


@dataclass
class Job:
    id: int
    due: int


async def jobs(db: Database, count: int) -> None:
    await db.execute("create table jobs (id int primary key, due int not null)")
    await db.execute("create table done (id int)")
    await db.execute("insert into jobs select n, -n from generate_series(1, $1::int) n", count)


async def test_rows_come_in_order_typed_and_are_gone_afterwards(db):
    """By the order asked for, up to the limit, where the condition holds."""
    await jobs(db, 10)
    async with db.claim("jobs", 3, where="id <= $1", args=[9], order_by=["due"], type=Job) as claim:
        assert claim.rows == [Job(9, -9), Job(8, -8), Job(7, -7)]
        assert await db.fetch_value("select count(*) from jobs") == 10  # for everybody else they are still there
    assert await db.fetch_value("select count(*) from jobs") == 7
    async with db.claim("jobs", where="id > 100") as claim:
        assert claim.rows == []


async def test_columns_may_have_any_name(db):
    """Also the words of the claiming statement."""
    await db.execute("create table t (t int, place int, part int, rank int, picked int)")
    await db.execute("insert into t values (1, 2, 3, 4, 5), (6, 1, 8, 9, 10)")
    async with db.claim("t", 2, order_by="place") as claim:
        assert [tuple(row) for row in claim.rows] == [(6, 1, 8, 9, 10), (1, 2, 3, 4, 5)]


async def test_a_failed_block_frees_its_rows_and_undoes_its_work(db):
    """What was written in the claim's transaction goes with it."""
    await jobs(db, 2)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with db.claim("jobs", 2) as claim:
            await claim.tx.execute("insert into done values (1)")
            raise ZeroDivisionError
    assert await db.fetch_value("select count(*) from jobs") == 2
    assert await db.fetch_value("select count(*) from done") == 0


async def test_keep_leaves_the_rows_to_the_caller(db):
    """They are locked and returned; what happens to them is written in the same transaction."""
    await jobs(db, 3)
    async with db.claim("jobs", 2, order_by=["id"], keep=True, type=Job) as claim:
        assert [job.id for job in claim.rows] == [1, 2]
        async with db.claim("jobs", 9, keep=True, type=Job) as other:
            assert [job.id for job in other.rows] == [3]
        await claim.tx.execute("update jobs set due = 99 where id = any($1)", [job.id for job in claim.rows])
    assert await db.fetch_value("select sum(due) from jobs") == 99 + 99 - 3


async def test_a_partitioned_table_gives_each_row_once(db):
    """Two partitions have rows at the same place; only the one that was claimed is deleted."""
    await db.execute("create table parts (id int) partition by range (id)")
    await db.execute("create table parts1 partition of parts for values from (0) to (10)")
    await db.execute("create table parts2 partition of parts for values from (10) to (20)")
    await db.execute("insert into parts values (1), (11)")
    async with db.claim("parts", order_by=["id"]) as claim:
        assert [row["id"] for row in claim.rows] == [1]
    assert [row["id"] for row in await db.fetch("select id from parts")] == [11]


async def test_a_wrong_condition_is_the_servers_error(db):
    """Named with its code; nothing is claimed."""
    await jobs(db, 1)
    with pytest.raises(QueryError, match="42703"):
        async with db.claim("jobs", where="nothing = 1"):
            pass
    assert await db.fetch_value("select count(*) from jobs") == 1


async def test_a_crowd_does_each_job_once(db):
    """Many workers, some failing now and then: in the end each job was done exactly once."""
    await jobs(db, 120)
    fails = {n for n in range(1, 121) if n % 7 == 0}

    async def work() -> None:
        while True:
            with contextlib.suppress(ZeroDivisionError):
                async with db.claim("jobs", 3, type=Job) as claim:
                    if not claim.rows:
                        return
                    for job in claim.rows:
                        await claim.tx.execute("insert into done values ($1)", job.id)
                        if job.id in fails:
                            fails.discard(job.id)
                            raise ZeroDivisionError

    await asyncio.gather(*(work() for _ in range(8)))
    assert await db.fetch_value("select count(*) from jobs") == 0
    assert [row["id"] for row in await db.fetch("select id from done order by id")] == list(range(1, 121))


WORKER = """
import asyncio, sys
from aegis.config import DatabaseConfig
from aegis.database import Database

async def main():
    async with Database(DatabaseConfig(url=sys.argv[1], min_conns=0, max_conns=1)) as db:
        async with db.claim("jobs", 5) as claim:
            print(len(claim.rows), flush=True)
            await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_worker_frees_its_rows(db, postgres_server):
    """kill -9 of a process in the middle of its work: the rows are there for the next one, by themselves."""
    await jobs(db, 5)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, postgres_server.url, stdout=asyncio.subprocess.PIPE
    )
    assert await process.stdout.readline() == b"5\n"
    async with db.claim("jobs", 5) as claim:
        assert claim.rows == []
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    async with asyncio.timeout(20):
        while True:
            async with db.claim("jobs", 5) as claim:
                if claim.rows:
                    break
            await asyncio.sleep(0.01)
    assert len(claim.rows) == 5
