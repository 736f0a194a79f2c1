"""The pool by itself: the minimum, old and idle connections, and a server that goes away and comes back."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator

import pytest

from aegis.config import DatabaseConfig
from aegis.database import Database
from aegis.database._driver import AsyncpgDriver
from aegis.embedded import EmbeddedPostgres
from aegis.errors import DatabaseLostError, DatabaseUnavailableError, PoolTimeoutError, QueryError
from aegis.testing import FaultProxy, until


@pytest.fixture
async def proxy(postgres_server: EmbeddedPostgres) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(str(postgres_server.directory / ".s.PGSQL.5432")) as proxy:
        yield proxy


def through(proxy: FaultProxy, **more) -> DatabaseConfig:
    where = {"host": proxy.host, "port": proxy.port, "name": "postgres", "user": "postgres"}
    return DatabaseConfig(**{**where, "min_conns": 1, "max_conns": 3, **more})


def lines(caplog, *words: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if all(word in r.getMessage() for word in words)]


async def test_the_minimum_is_filled_and_refilled_without_traffic(postgres_server):
    """Connections that die are replaced while nobody asks for any."""
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=3, max_conns=5)) as db:
        await until(lambda: db.stats().idle == 3)
        async with Database(DatabaseConfig(url=postgres_server.url, min_conns=0, max_conns=1)) as killer:
            await killer.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'aegis' and pid <> pg_backend_pid()"
            )
        await until(lambda: db.stats().lost == 3 and db.stats().idle == 3)
        assert db.stats().acquired == 1  # the one of opening


async def test_idle_connections_close_down_to_the_minimum(postgres_server):
    """Above the minimum the longest idle go first; the minimum stays."""
    config = DatabaseConfig(url=postgres_server.url, min_conns=1, max_conns=4, max_conn_idle_time=0.2)
    async with Database(config) as db:
        await asyncio.gather(*(db.execute("select pg_sleep(0.05)") for _ in range(4)))
        assert db.stats().total == 4
        await until(lambda: db.stats().total == 1)
        assert db.stats().closed_by_idle_time == 3


async def test_old_connections_are_replaced_in_the_background(postgres_server):
    """A lifetime ends without traffic, and each connection's own end is jittered by up to a tenth."""
    config = DatabaseConfig(url=postgres_server.url, min_conns=2, max_conns=2, max_conn_lifetime=0.5)
    async with Database(config) as db:
        await until(lambda: db.stats().idle == 2)
        ends = [lease.expires_at - lease.opened_at for lease in db._pool._idle]
        assert all(0.45 <= end <= 0.5 for end in ends)
        assert ends[0] != ends[1]
        await until(lambda: db.stats().closed_by_lifetime >= 2 and db.stats().idle == 2)
        assert db.stats().acquired == 1


async def test_an_outage_is_two_log_lines_and_recovery_needs_no_traffic(proxy, caplog):
    """One line when the server goes, one when it is back; meanwhile attempts back off; nobody has to ask."""
    caplog.set_level("INFO", "aegis.database")
    async with Database(through(proxy, min_conns=2)) as db:
        await until(lambda: db.stats().idle == 2)
        proxy.refuse()
        proxy.reset()
        await until(lambda: db.stats().connect_failures >= 3)
        assert db.stats().total - db.stats().connecting == 0
        proxy.accept()
        await until(lambda: db.stats().idle == 2)
        assert await db.ping() > 0
    assert len(lines(caplog, "unavailable")) == 1
    assert len(lines(caplog, "is back after", "attempts failed")) == 1


async def test_a_pool_that_was_closed_in_an_outage_can_be_opened_again(proxy):
    """Nothing of the outage is left in it: it fills its minimum, and gets over the next outage, too."""
    db = Database(through(proxy))

    async def an_outage_begins() -> None:
        await until(lambda: db.stats().idle == 1)
        failures = db.stats().connect_failures
        proxy.refuse()
        proxy.reset()
        await until(lambda: db.stats().connect_failures > failures)

    async with db:
        await an_outage_begins()
    proxy.heal()
    async with db:
        await an_outage_begins()
        proxy.heal()
        await until(lambda: db.stats().idle == 1)


async def test_with_nothing_connected_callers_get_the_cause_and_not_a_timeout(proxy):
    """Refused: at once, for all who wait, each with its own exception that chains the driver's."""
    async with Database(through(proxy, acquire_timeout=30.0)) as db:
        proxy.refuse()
        proxy.reset()
        await until(lambda: db.stats().connect_failures >= 1)
        started = time.monotonic()
        answers = await asyncio.gather(*(db.ping() for _ in range(5)), return_exceptions=True)
        assert time.monotonic() - started < 5.0
        assert all(isinstance(answer, DatabaseUnavailableError) for answer in answers)
        assert len({id(answer) for answer in answers}) == 5
        assert isinstance(answers[0].__cause__, OSError)
        assert not (await db.health()).ok
        proxy.accept()
        await until(lambda: db.stats().idle == 1)
        assert (await db.health()).ok


@pytest.mark.parametrize("bounds", [{"connect_timeout": 0.3}, {"connect_timeout": 20.0, "acquire_timeout": 0.3}])
async def test_a_server_that_does_not_answer_is_unavailable_in_time(proxy, bounds):
    """Hung instead of refused: the same error within the shorter of the two timeouts, at start as well."""
    proxy.freeze()
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match=r"no answer within 0\.3 s"):
        async with Database(through(proxy, **bounds)):
            pass
    assert time.monotonic() - started < 3.0
    proxy.heal()


async def test_half_open_connections_are_replaced_unnoticed(proxy):
    """Connections that went silent cost the next caller one ping, however many there are, and no error."""
    async with Database(through(proxy, min_conns=3)) as db:
        await until(lambda: db.stats().idle == 3)
        for lease in db._pool._idle:
            lease.idle_since -= 60.0
        proxy.freeze()
        asking = asyncio.create_task(db.fetch_value("select 1"))
        await until(lambda: db.stats().lost == 3)
        proxy.heal()
        assert await asking == 1
        assert db.stats().lost == 3


async def test_a_connection_that_answers_after_idleness_is_kept(postgres_server):
    """The question asked after a second of idleness costs one round trip, not the connection."""
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=2, max_conns=2)) as db:
        await until(lambda: db.stats().idle == 2)
        before = {lease.conn.get_server_pid() for lease in db._pool._idle}
        for lease in db._pool._idle:
            lease.idle_since -= 60.0
        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(db.fetch_value("select pg_backend_pid() from pg_sleep(0.05)")) for _ in range(2)]
        assert {task.result() for task in found} == before
        assert (db.stats().lost, db.stats().opened) == (0, 2)


async def test_killed_idle_connections_are_replaced_unnoticed(postgres_server):
    """All idle connections die; callers never see one."""
    async with (
        Database(DatabaseConfig(url=postgres_server.url, min_conns=4, max_conns=4)) as db,
        Database(DatabaseConfig(url=postgres_server.url, min_conns=0, max_conns=1)) as killer,
    ):
        await until(lambda: db.stats().idle == 4)
        pids = [lease.conn.get_server_pid() for lease in db._pool._idle]
        await killer.execute("select pg_terminate_backend(pid) from unnest($1::int[]) as pid", pids)
        await until(lambda: all(lease.conn.is_closed() for lease in db._pool._idle if lease.conn))
        assert await asyncio.gather(*(db.fetch_value("select 1") for _ in range(8))) == [1] * 8


async def test_a_timeout_says_who_holds_what_and_chains_the_connect_failure(proxy, caplog):
    """Total, active, idle, connecting, waiting, the longest holder with its line; the last refusal is the cause."""
    async with Database(through(proxy, max_conns=2, acquire_timeout=0.4)) as db, db.transaction() as tx:
        proxy.refuse()
        with pytest.raises(PoolTimeoutError) as caught:
            await db.ping()
        assert await tx.fetch_value("select 1") == 1
    state = str(caught.value)
    # an attempt may be under way at that moment; it counts among the open ones
    assert re.search(
        r"(1 of 2 open, 1 active, 0 idle, 0|2 of 2 open, 1 active, 0 idle, 1) connecting, 1 waiting", state
    )
    assert "longest held by test_database_recovery.py:" in state
    assert "in test_a_timeout_says" in state
    assert isinstance(caught.value.__cause__, DatabaseUnavailableError)


async def test_a_leak_is_reported_with_the_borrowers_stack_and_again_when_it_ends(postgres_server, caplog):
    """Held beyond the threshold: one report with the frames that lead there, one line when it is given back."""
    config = DatabaseConfig(url=postgres_server.url, min_conns=1, max_conns=2, leak_after=0.1)

    async def forgetful(db: Database) -> None:
        async with db.transaction():
            await until(lambda: db.stats().leaks)

    async with Database(config) as db:
        await forgetful(db)
        assert await db.ping() > 0
    reports = lines(caplog, "is held for")
    assert len(reports) == 1
    assert "in forgetful" in reports[0]
    assert "in test_a_leak_is_reported" in reports[0]
    assert len(lines(caplog, "came back after", "in forgetful")) == 1


async def test_a_server_that_became_read_only_is_left(postgres_server, caplog):
    """25006 outside a read-only transaction replaces every connection, once; an asked-for one replaces nothing."""
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=2, max_conns=2)) as db:
        await until(lambda: db.stats().idle == 2)
        with pytest.raises(QueryError):
            async with db.transaction(readonly=True) as tx:
                await tx.execute("create table never (x int)")
        assert not lines(caplog, "read-only")
        async with db.transaction() as held:  # replaced, too, when it comes back
            old = await held.fetch_value("select pg_backend_pid()")
            for _ in range(3):
                with pytest.raises(QueryError) as caught:
                    await db.execute("begin read only; create table never (x int); commit")
                assert caught.value.sqlstate == "25006"
        await until(lambda: db.stats().idle == 2)
        assert old not in {lease.conn.get_server_pid() for lease in db._pool._idle}
        assert db.stats().opened >= 4
        assert len(lines(caplog, "became read-only: replacing all 2 connections")) == 1


async def test_a_startup_setting_that_the_server_does_not_know_is_left_out(postgres_server):
    """Older servers refuse client_connection_check_interval; the connection is made without it, and stays so."""
    driver = AsyncpgDriver(DatabaseConfig(url=postgres_server.url), optional={"aegis_unknown": "1"})
    for _ in range(2):
        conn = await driver.connect()
        assert await conn.fetchval("show statement_timeout") == "30s"
        await conn.close()
    assert driver.optional == {}


async def test_a_lost_connection_is_an_unknown_outcome_and_the_next_call_works(proxy):
    """Cut in the middle of a reply: said so, not repeated."""
    async with Database(through(proxy)) as db:
        proxy.reset_after(20_000)
        with pytest.raises(DatabaseLostError):
            await db.fetch("select repeat('x', 1000) from generate_series(1, 1000)")
        assert await db.fetch_value("select 1") == 1
