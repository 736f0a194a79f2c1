"""Several hosts, replicas, a pgbouncer in between, and the bounds that the server keeps."""

# ruff: noqa: PT012 - a whole transaction block is what must raise
from __future__ import annotations

from collections.abc import Iterator

import pytest

from aegis.config import DatabaseConfig
from aegis.database import Database
from aegis.embedded import EmbeddedPostgres
from aegis.errors import DatabaseLostError, DatabaseUnavailableError, QueryError
from aegis.testing import until


@pytest.fixture(scope="module")
def read_only_server() -> Iterator[EmbeddedPostgres]:
    """What a replica looks like to target_session_attrs=read-only; it logs statements, too."""
    options = {"default_transaction_read_only": "on", "log_statement": "all"}
    with EmbeddedPostgres(options=options) as server:
        yield server


def both(first: EmbeddedPostgres, second: EmbeddedPostgres, attrs: str) -> str:
    return f"postgresql://postgres@/postgres?host={first.directory},{second.directory}&target_session_attrs={attrs}"


async def where(db: Database) -> str:
    return await db.fetch_value("show unix_socket_directories")


@pytest.mark.parametrize("attrs", ["any", "read-write", "read-only", "primary"])
async def test_the_first_host_that_fits_is_taken(postgres_server, read_only_server, attrs):
    """Both orders of the hosts: `any` and `primary` take the first, the others the one that fits."""
    fits = {"read-write": postgres_server, "read-only": read_only_server}
    for hosts in ((postgres_server, read_only_server), (read_only_server, postgres_server)):
        async with Database(DatabaseConfig(url=both(*hosts, attrs), min_conns=0)) as db:
            assert await where(db) == str(fits.get(attrs, hosts[0]).directory)


async def test_no_host_fits(postgres_server):
    """The error says that hosts answered and which kind was wanted."""
    with pytest.raises(DatabaseUnavailableError, match="standby"):
        async with Database(DatabaseConfig(url=both(postgres_server, postgres_server, "standby"), min_conns=0)):
            pass


async def test_a_dead_host_is_skipped(postgres_server, tmp_path):
    """The second host serves when the first does not exist."""
    url = f"postgresql://postgres@/postgres?host={tmp_path},{postgres_server.directory}"
    async with Database(DatabaseConfig(url=url, min_conns=0)) as db:
        assert await where(db) == str(postgres_server.directory)


async def test_reads_may_go_to_a_replica(postgres_server, read_only_server):
    """`db.replica` is a pool of its own at DATABASE_REPLICA_URL; without one it is the database itself."""
    config = DatabaseConfig(url=postgres_server.url, replica_url=read_only_server.url, min_conns=0)
    async with Database(config) as db:
        assert await where(db) == str(postgres_server.directory)
        assert await where(db.replica) == str(read_only_server.directory)
        for _ in range(2):  # a refused write on a replica is no failover
            with pytest.raises(QueryError, match="25006"):
                await db.replica.execute("create table never (x int)")
        assert db.replica.stats().opened == 1
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=0)) as alone:
        assert alone.replica is alone


async def test_a_replica_that_is_away_does_not_stop_the_start(postgres_server, tmp_path):
    """The primary serves; the replica's callers get its own failure."""
    replica = f"postgresql://postgres@/postgres?host={tmp_path}"
    async with Database(DatabaseConfig(url=postgres_server.url, replica_url=replica, min_conns=0)) as db:
        assert await db.ping() > 0
        with pytest.raises(DatabaseUnavailableError, match=str(tmp_path)):
            await db.replica.ping()


async def test_the_pgbouncer_profile_sends_nothing_that_a_pgbouncer_refuses(read_only_server):
    """No settings at start, no named statements, no reset: the server's log shows the statements alone."""
    config = DatabaseConfig(url=read_only_server.url, pgbouncer=True, min_conns=0, max_conns=1)
    async with Database(config) as db:
        assert await db.fetch_value("show statement_timeout") == "0"
        assert await db.fetch_value("show application_name") == "aegis"
        for number in range(3):
            assert await db.fetch_value("select $1::int", number) == number
        assert await db.fetch_value("select count(*) from pg_prepared_statements") == 0
        await db.execute("set work_mem = '1MB'")
        assert await db.ping() > 0
        assert db.stats().resets == 0


async def test_the_server_bounds_statements_locks_and_silent_transactions(postgres_server):
    """57014 for a long statement, 55P03 for a lock, and a lost connection for a silent transaction."""
    config = DatabaseConfig(
        url=postgres_server.url, min_conns=0, statement_timeout=0.2, lock_timeout=0.1, idle_in_transaction_timeout=0.2
    )
    async with Database(config) as db:
        with pytest.raises(QueryError, match="57014"):
            await db.execute("select pg_sleep(5)")
        await db.execute("drop table if exists locked")
        await db.execute("create table locked (x int)")
        async with db.transaction() as tx:
            await tx.execute("lock table locked")
            with pytest.raises(QueryError, match="55P03"):
                await db.execute("insert into locked values (1)")
        with pytest.raises(DatabaseLostError) as caught:
            async with db.transaction() as tx:
                await tx.execute("insert into locked values (1)")
                await until(tx._lease.conn.is_closed)
        assert type(caught.value) is DatabaseLostError  # COMMIT was not sent, so the outcome is known
        assert await db.fetch_value("select count(*) from locked") == 0


async def test_a_server_that_hangs_in_a_statement_is_given_up(postgres_server):
    """Neither an answer nor the server's own timeout arrives: the client's bound, two seconds later, ends the call."""
    from aegis.testing import FaultProxy

    async with FaultProxy(str(postgres_server.directory / ".s.PGSQL.5432")) as proxy:
        config = DatabaseConfig(
            host=proxy.host, port=proxy.port, name="postgres", min_conns=0, statement_timeout=0.1, acquire_timeout=0.5
        )
        async with Database(config) as db:
            proxy.freeze()
            with pytest.raises(DatabaseLostError, match="did not answer"):
                await db.fetch_value("select 1")
            proxy.heal()
            await until(lambda: not db.stats().closing)
            assert await db.fetch_value("select 1") == 1
