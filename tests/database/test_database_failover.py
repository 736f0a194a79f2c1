"""
A primary and its synchronous standby, under load: what was acknowledged is there afterwards, and the pool goes on.

Both are real servers that stream. The write load never stops; it notes what was acknowledged and what is unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from aegis.config import DatabaseConfig
from aegis.database import Database, MaybeMissed, Notification
from aegis.database._hosts import Hosts, Place
from aegis.embedded import EmbeddedPostgresPair
from aegis.errors import (
    CommitOutcomeUnknownError,
    DatabaseError,
    DatabaseLostError,
    DatabaseUnavailableError,
    PoolTimeoutError,
    QueryError,
)


@dataclass
class Load:
    """Writers of three kinds; each number is written once, and its fate is noted."""

    db: Database
    numbers: itertools.count = field(default_factory=itertools.count)
    acknowledged: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    over: bool = False

    async def write(self, kind: int) -> None:
        while not self.over:
            number = next(self.numbers)
            try:
                await self._write(kind, number)
            except (DatabaseUnavailableError, QueryError, PoolTimeoutError):
                self.refused.add(number)
                await asyncio.sleep(0.01)
            except DatabaseLostError:
                self.unknown.add(number)
            else:
                self.acknowledged.add(number)

    async def _write(self, kind: int, number: int) -> None:
        if kind == 0:
            await self.db.execute("insert into written values ($1)", number)
        elif kind == 1:
            await self.db.run_tx(lambda tx: tx.execute("insert into written values ($1)", number))
        else:
            await self.db.upsert("written", [{"n": number}], key=["n"])

    async def run_until(self, condition: Callable[[], object], within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def loaded(db: Database, writers: int = 6):
    load = Load(db)
    async with asyncio.TaskGroup() as tasks:
        for kind in range(writers):
            tasks.create_task(load.write(kind % 3))
        await load.run_until(lambda: len(load.acknowledged) >= 30)
        yield load
        load.over = True


def config_of(pair: EmbeddedPostgresPair, **more) -> DatabaseConfig:
    bounds = {"min_conns": 2, "max_conns": 5, "connect_timeout": 2.0, "statement_timeout": 1.0}
    return DatabaseConfig(url=pair.url, **{**bounds, **more})


async def in_thread(call: Callable[[], object]) -> None:
    """A promotion takes a second, in which the load must go on."""
    await asyncio.to_thread(call)


async def test_a_killed_primary_loses_nothing_that_was_acknowledged(postgres_pair):
    """SIGKILL under load, promotion, the same pool writes on: all acknowledged numbers are there, no refused one."""
    pair = postgres_pair
    async with Database(config_of(pair)) as db:
        await db.execute("create table written (n int primary key)")
        async with loaded(db) as load:
            old = await db.fetch_value("show unix_socket_directories")
            pair.primary.kill()
            await load.run_until(lambda: load.refused)
            await in_thread(pair.fail_over)
            before = len(load.acknowledged)
            await load.run_until(lambda: len(load.acknowledged) >= before + 60)
        assert await db.fetch_value("show unix_socket_directories") != old
        stored = {row["n"] for row in await db.fetch("select n from written")}
        assert load.acknowledged <= stored
        assert stored <= load.acknowledged | load.unknown
        assert (db.stats().active, db.stats().waiting) == (0, 0)


async def test_a_hung_primary_is_left_and_its_return_changes_nothing(postgres_pair):
    """
    SIGSTOP: connections stay open and nothing answers. The pool moves to the promoted standby; when the old primary
    wakes up, it may not acknowledge anything that the new one does not have.
    """
    pair = postgres_pair
    async with Database(config_of(pair)) as db:
        await db.execute("create table written (n int primary key)")
        async with loaded(db) as load:
            old = pair.primary
            old.pause()
            await in_thread(pair.fail_over)
            before = len(load.acknowledged)
            await load.run_until(lambda: len(load.acknowledged) >= before + 60)
            old.resume()
            resumed = len(load.acknowledged)
            await load.run_until(lambda: len(load.acknowledged) >= resumed + 60)
        where = {await db.fetch_value("show unix_socket_directories") for _ in range(9)}
        assert where == {str(pair.primary.directory)}
        stored = {row["n"] for row in await db.fetch("select n from written")}
        assert load.acknowledged <= stored
        assert stored <= load.acknowledged | load.unknown


async def test_a_commit_that_no_standby_confirmed_is_not_called_stored(postgres_pair):
    """The standby hangs; the waiting COMMIT is cancelled at the server, which then answers COMMIT. We say: unknown."""
    pair = postgres_pair
    async with Database(config_of(pair, statement_timeout=20.0)) as db:
        await db.execute("create table written (n int primary key)")
        pair.standby.pause()
        writes = [
            asyncio.create_task(db.execute("insert into written values (1)")),
            asyncio.create_task(db.run_tx(lambda tx: tx.execute("insert into written values (2)"))),
            asyncio.create_task(db.upsert("written", [{"n": 3}], key=["n"])),
        ]
        waiting = "from pg_stat_activity where wait_event = 'SyncRep'"
        async with asyncio.timeout(30):
            while await db.fetch_value(f"select count(*) {waiting}") < 3:
                await asyncio.sleep(0.01)
        await db.fetch_value(f"select count(pg_cancel_backend(pid)) {waiting}")
        for write in writes:
            with pytest.raises(CommitOutcomeUnknownError, match="no synchronous standby"):
                await write
        assert await db.fetch_value("select count(*) from written") == 3  # here, and nowhere else
        pair.standby.resume()
        await db.execute("insert into written values (4)")
        assert db.stats().active == 0


async def test_replica_and_listener_follow_a_failover(postgres_pair):
    """Reads that may be old go to the standby while there is one; who listens, listens to the new primary."""
    pair = postgres_pair
    replica = pair.url.replace("read-write", "prefer-standby")
    async with Database(config_of(pair, replica_url=replica)) as db, db.listen("c") as notes:
        recovering = "select pg_is_in_recovery()"
        assert (await db.fetch_value(recovering), await db.replica.fetch_value(recovering)) == (False, True)
        with pytest.raises(QueryError, match="25006"):
            await db.replica.execute("create table never (x int)")
        await db.execute("notify c, 'old'")
        assert (await anext(notes)).payload == "old"
        pair.primary.kill()
        await in_thread(pair.fail_over)
        assert isinstance(await asyncio.wait_for(anext(notes), 30), MaybeMissed)
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(DatabaseError):
                    await db.execute("notify c, 'new'")
                    break
                await asyncio.sleep(0.01)
        assert isinstance(await asyncio.wait_for(anext(notes), 30), Notification)
        assert await db.replica.fetch_value(recovering) is False  # none is left, and any is preferred to none


async def test_a_host_that_hangs_leaves_time_for_the_next(postgres_server, tmp_path):
    """One deadline for all hosts, shared out: a host that takes connections and says nothing does not eat all of it."""
    import socket

    deaf = socket.socket(socket.AF_UNIX)
    deaf.bind(str(tmp_path / ".s.PGSQL.5432"))
    deaf.listen(8)
    url = f"postgresql://postgres@/postgres?host={tmp_path},{postgres_server.directory}"
    async with Database(DatabaseConfig(url=url, min_conns=0, connect_timeout=2.0)) as db:
        assert await db.fetch_value("show unix_socket_directories") == str(postgres_server.directory)
    both = f"postgresql://postgres@/postgres?host={tmp_path},{tmp_path}/nowhere"
    with pytest.raises(DatabaseUnavailableError) as caught:
        async with Database(DatabaseConfig(url=both, connect_timeout=0.4)):
            pass
    assert f"{tmp_path}: no answer within 0.2 s; {tmp_path}/nowhere: " in str(caught.value)
    deaf.close()


def plan(attrs: str, last: str | None = None, more: str = "") -> list[str]:
    config = DatabaseConfig(url=f"postgresql://a,b:1/x?target_session_attrs={attrs}{more}")
    from aegis.database._driver import wanted_of

    hosts = Hosts(config, wanted_of(config))
    if last is not None:
        hosts.fits(Place(last, 1, attrs))
    return [f"{place} {place.attrs}" for place in hosts.plan()]


def test_the_order_of_hosts():
    """As given; the one that wrote last first, where only one can; for a standby everybody is asked, then for any."""
    assert plan("any") == ["a:5432 any", "b:1 any"]
    assert plan("any", last="b") == ["a:5432 any", "b:1 any"]
    assert plan("read-write", last="b") == ["b:1 read-write", "a:5432 read-write"]
    assert plan("prefer-standby") == ["a:5432 standby", "b:1 standby", "a:5432 any", "b:1 any"]
    orders = {tuple(plan("any", more="&load_balance_hosts=random")) for _ in range(50)}
    assert len(orders) == 2
