"""LISTEN on a connection of its own: nothing lost in silence, and back within five seconds."""

from __future__ import annotations

import asyncio
import time

import pytest

from aegis.config import DatabaseConfig
from aegis.database import Database, MaybeMissed, Notification
from aegis.errors import ClosedError, DatabaseUnavailableError, DirectConnectionError
from aegis.testing import FaultProxy, until

LISTENERS = "select pid from pg_stat_activity where query ilike 'listen%' and pid <> pg_backend_pid()"


async def test_notifications_arrive_in_order_with_their_sender(db):
    """Channel, payload and the sender's process; several channels on one connection; names are quoted."""
    async with db.listen("quotes", 'Odd "name; x') as notes:
        assert db.stats().total == 1  # not one of the pool's
        pid = await db.fetch_value("select pg_backend_pid()")
        for number in range(50):
            await db.execute("select pg_notify($1, $2)", "quotes", f"{number}")
        await db.execute("select pg_notify($1, '')", 'Odd "name; x')
        got = [await anext(notes) for _ in range(51)]
    assert got == [*(Notification("quotes", f"{n}", pid) for n in range(50)), Notification('Odd "name; x', "", pid)]


async def test_a_cancelled_wait_loses_nothing(db):
    """`wait_for` on the next event, again and again, while events come: each arrives once."""
    async with db.listen("c") as notes:
        got = []

        async def send() -> None:
            for number in range(100):
                await db.execute("select pg_notify('c', $1)", f"{number}")

        sending = asyncio.create_task(send())
        while len(got) < 100:
            try:
                got.append(await asyncio.wait_for(anext(notes), 0.0005))
            except TimeoutError:
                await asyncio.sleep(0)
        await sending
    assert [note.payload for note in got] == [f"{n}" for n in range(100)]


async def test_a_killed_listener_listens_again_and_says_what_may_be_missing(db, caplog):
    """The server's process is killed: LISTEN again in under five seconds, then `MaybeMissed`, then what comes after."""
    caplog.set_level("INFO", "aegis.database")
    async with db.listen("c") as notes:
        await db.execute("notify c, 'before'")
        assert (await anext(notes)).payload == "before"
        for _ in range(2):
            killed = time.monotonic()
            assert await db.fetch_value(f"select count(pg_terminate_backend(pid)) from ({LISTENERS}) l") == 1
            missed = await asyncio.wait_for(anext(notes), 30)
            assert isinstance(missed, MaybeMissed)
            assert missed.reason == "reconnected"
            assert 0 <= missed.away_s <= time.monotonic() - killed
            assert missed.away_s < 5
            await db.execute("notify c, 'after'")
            assert (await asyncio.wait_for(anext(notes), 30)).payload == "after"
    text = [record.getMessage() for record in caplog.records]
    assert sum("was interrupted" in line for line in text) == 2
    assert sum("again after" in line for line in text) == 2


async def test_a_quiet_listener_keeps_its_connection(db, monkeypatch):
    """Asked again and again and answering: nothing happened, so nothing is reported and nothing is opened anew."""
    monkeypatch.setattr("aegis.database.listen._PING_EVERY_S", 0.01)
    async with db.listen("c") as notes:
        seen = "select pid, state_change from pg_stat_activity where query = 'select 1' and pid <> pg_backend_pid()"
        pings = set()
        async with asyncio.timeout(30):
            while len(pings) < 5:
                pings |= {(row["pid"], row["state_change"]) for row in await db.fetch(seen)}
        assert len({pid for pid, _ in pings}) == 1
        assert "0 events" in repr(notes)
        await db.execute("notify c, 'x'")
        assert isinstance(await anext(notes), Notification)


@pytest.mark.parametrize("fault", ["freeze", "reset", "refuse"])
async def test_whatever_the_network_does_the_listener_comes_back(postgres_server, fault):
    """Half-open, reset or away for a while: noticed without traffic; under five seconds after it is back, we listen."""
    async with FaultProxy(str(postgres_server.directory / ".s.PGSQL.5432")) as proxy:
        where = DatabaseConfig(host=proxy.host, port=proxy.port, name="postgres", min_conns=0)
        straight = DatabaseConfig(url=postgres_server.url, min_conns=0)
        async with Database(where) as db, Database(straight) as sender, db.listen("c") as notes:
            if fault == "freeze":
                proxy.freeze()
            else:
                proxy.refuse()
                proxy.reset()
            async with asyncio.timeout(20):
                while "away" not in repr(notes):
                    await asyncio.sleep(0.01)
            proxy.heal()
            healed = time.monotonic()
            assert isinstance(await asyncio.wait_for(anext(notes), 30), MaybeMissed)
            assert time.monotonic() - healed < 5
            await sender.execute("notify c, 'x'")
            assert await asyncio.wait_for(anext(notes), 30) == Notification("c", "x", sender_pid(sender))


def sender_pid(db: Database) -> int:
    return db._pool._idle[0].conn.get_server_pid()


async def test_a_slow_reader_is_told_what_it_missed(db):
    """The queue is bounded: what fits is kept in order, the rest is one `MaybeMissed`, and later events go on."""
    async with db.listen("c", capacity=10) as notes:
        await db.execute("select pg_notify('c', n::text) from generate_series(1, 50) n")
        async with asyncio.timeout(10):
            while "11 events" not in repr(notes):
                await asyncio.sleep(0.005)
        got = [await anext(notes) for _ in range(11)]
        assert [note.payload for note in got[:10]] == [str(n) for n in range(1, 11)]
        assert got[10] == MaybeMissed("overflow", 0.0)
        await db.execute("notify c, 'on'")
        assert (await anext(notes)).payload == "on"


async def test_the_end_of_a_listener(db, postgres_server):
    """Leaving the block ends it and its connection; closing the database tells whoever waits."""
    async with db.listen("c") as notes:
        waiting = asyncio.create_task(anext(notes))
        await asyncio.sleep(0)
    with pytest.raises(ClosedError, match="Listener"):
        await waiting
    await until(lambda: db.fetch_value(f"select count(*) = 0 from ({LISTENERS}) l"))
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=0)) as other:
        left = other.listen("c")
        await left.__aenter__()
        waiting = asyncio.create_task(anext(left))
        await asyncio.sleep(0)
    with pytest.raises(ClosedError, match="Database"):
        await waiting


async def test_no_listener_outlives_its_database(postgres_server, monkeypatch):
    """Made before and entered after its end, still connecting at its end, or one of the replica's: ClosedError."""
    async with FaultProxy(str(postgres_server.directory / ".s.PGSQL.5432")) as proxy:
        monkeypatch.setattr("aegis.database._driver._CLOSE_TIMEOUT_S", 0.1)  # nobody answers a goodbye there
        where = {"host": proxy.host, "port": proxy.port, "name": "postgres", "replica_url": postgres_server.url}
        async with Database(DatabaseConfig(**where, min_conns=0, connect_timeout=60)) as db:
            late, connecting, reading = db.listen("c"), db.listen("c"), db.replica.listen("c")
            await reading.__aenter__()
            waiting = asyncio.create_task(anext(reading))
            proxy.freeze()
            known = proxy.connections
            entering = asyncio.create_task(connecting.__aenter__())
            await until(lambda: proxy.connections > known)
        with pytest.raises(ClosedError, match="Database"):
            await late.__aenter__()
        proxy.heal()
        for end in (entering, waiting):
            with pytest.raises(ClosedError, match="Database"):
                await asyncio.wait_for(end, 20)
        await until(lambda: not proxy.connections)


async def test_a_server_that_is_away_on_entering_is_told(postgres_server):
    """The first connection is the caller's business; only later absences end by themselves."""
    async with FaultProxy(str(postgres_server.directory / ".s.PGSQL.5432")) as proxy:
        where = DatabaseConfig(host=proxy.host, port=proxy.port, name="postgres", min_conns=0)
        async with Database(where) as db:
            proxy.refuse()
            with pytest.raises(DatabaseUnavailableError):
                async with db.listen("c"):
                    pass


async def test_what_cannot_be_listened_to(db, tmp_path):
    """No channel, a name that the server would cut, no room, a pool that is not open, a pgbouncer: each says so."""
    for channels, more in (((), {}), (("x" * 64,), {}), (("가" * 22,), {}), (("",), {}), (("c",), {"capacity": 0})):
        with pytest.raises(ValueError):
            db.listen(*channels, **more)
    async with db.listen("가" * 21) as notes:
        await db.execute("select pg_notify($1, 'x')", "가" * 21)
        assert (await anext(notes)).payload == "x"
    with pytest.raises(ClosedError, match="Database"):
        Database(DatabaseConfig(url=f"postgresql://postgres@/x?host={tmp_path}")).listen("c")
    bouncing = Database(DatabaseConfig(url="postgresql://postgres@h/x?pgbouncer=true"))
    with pytest.raises(DirectConnectionError, match="DB_PGBOUNCER"):
        bouncing.listen("c")
    with pytest.raises(DirectConnectionError, match="migrate"):
        await bouncing.migrate()
