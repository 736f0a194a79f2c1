"""What the pool says about itself: pgxpool's thirteen numbers and more, each after something that moves it alone."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict

import pytest

from aegis.config import DatabaseConfig
from aegis.database import Database
from aegis.errors import PoolFullError, PoolTimeoutError
from aegis.testing import FaultProxy, until

#: pgxpool.Stat's methods (pkg.go.dev/github.com/jackc/pgx/v5/pgxpool#Stat, read 2026-11-24) and our names for them.
THIRTEEN = {
    "AcquireCount": "acquired",
    "AcquireDuration": "acquire_wait_s",
    "AcquiredConns": "active",
    "CanceledAcquireCount": "canceled",
    "ConstructingConns": "connecting",
    "EmptyAcquireCount": "waited",
    "EmptyAcquireWaitTime": "waited_s",
    "IdleConns": "idle",
    "MaxConns": "max",
    "MaxIdleDestroyCount": "closed_by_idle_time",
    "MaxLifetimeDestroyCount": "closed_by_lifetime",
    "NewConnsCount": "opened",
    "TotalConns": "total",
}


def moved(before: dict, after: dict) -> dict:
    return {name: after[name] - before[name] for name in before if after[name] != before[name]}


async def test_the_thirteen_are_there(postgres_server):
    """Under our names, as a frozen record; sizes add up to the total."""
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=0, max_conns=4)) as db:
        stats = db.stats()
        assert set(THIRTEEN.values()) <= set(asdict(stats))
        assert (stats.max, stats.total, stats.opened, stats.acquired) == (4, 1, 1, 1)
        with pytest.raises(AttributeError):
            stats.total = 9


async def test_each_counter_counts_its_own(postgres_server):
    """A step, and exactly the numbers that it must move."""
    config = DatabaseConfig(url=postgres_server.url, min_conns=0, max_conns=1, max_waiting=1, acquire_timeout=0.3)
    async with Database(config) as db:

        def now() -> dict:
            return asdict(db.stats())

        before = now()
        await db.fetch_value("select 1")
        assert moved(before, now()) == {"acquired": 1}  # found at once: no wait, nothing opened

        async with db.transaction():
            before = now()
            waiting = asyncio.create_task(db.ping())
            await until(lambda: db.stats().waiting)
            assert moved(before, now()) == {"waiting": 1, "waited": 1}
            with pytest.raises(PoolFullError):
                await db.ping()
            assert moved(before, now()) == {"waiting": 1, "waited": 1, "refused": 1}
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            after = moved(before, now())
            assert after.pop("waited_s") > 0
            assert after == {"waited": 1, "refused": 1, "canceled": 1}
            before = now()
            with pytest.raises(PoolTimeoutError):
                await db.ping()
            after = moved(before, now())
            assert after.pop("waited_s") >= 0.3
            assert after == {"waited": 1, "timeouts": 1}

        before = now()
        async with db.transaction():
            waiting = asyncio.create_task(db.ping())
            await until(lambda: db.stats().waiting)
            await asyncio.sleep(0.05)
        await waiting
        after = moved(before, now())
        assert after.pop("waited_s") >= 0.05
        assert after.pop("acquire_wait_s") >= 0.05
        assert after == {"acquired": 2, "waited": 1}

        before = now()
        await db.execute("set work_mem = '1MB'")
        await until(lambda: db.stats().idle)
        assert moved(before, now()) == {"acquired": 1, "resets": 1}

        before = now()
        await db.execute("begin")
        await until(lambda: not db.stats().closing)
        assert moved(before, now()) == {"acquired": 1, "closed_dirty": 1, "total": -1, "idle": -1}


async def test_connecting_failures_and_losses_are_counted(postgres_server):
    """An attempt that runs, one that fails, a connection that dies."""
    async with FaultProxy(str(postgres_server.directory / ".s.PGSQL.5432")) as proxy:
        where = {"host": proxy.host, "port": proxy.port, "name": "postgres"}
        async with Database(DatabaseConfig(**where, min_conns=1, max_conns=2)) as db:
            await until(lambda: db.stats().idle == 1)
            async with db.transaction():
                proxy.freeze()
                asking = asyncio.create_task(db.ping())
                await until(lambda: db.stats().connecting)
                assert (db.stats().total, db.stats().active) == (2, 1)
                proxy.heal()
                await asking
            opened = db.stats().opened
            assert opened == 2
            proxy.refuse()
            proxy.reset()
            await until(lambda: db.stats().lost == 2 and db.stats().connect_failures)
            assert (db.stats().idle, db.stats().opened) == (0, opened)
            proxy.heal()
            await until(lambda: db.stats().idle == 1)


async def test_health_answers_in_time_whatever_the_server_does(postgres_server):
    """Well, hung and refused: an answer within the bound, with the reason; the pool is whole afterwards."""
    async with FaultProxy(str(postgres_server.directory / ".s.PGSQL.5432")) as proxy:
        where = {"host": proxy.host, "port": proxy.port, "name": "postgres"}
        async with Database(DatabaseConfig(**where, min_conns=1, max_conns=2)) as db:
            health = await db.health()
            assert (health.ok, health.problem, health.pool.total >= 1) == (True, "", True)
            assert health.latency_s > 0
            proxy.freeze()
            health = await db.health(timeout=0.2)
            assert (health.ok, health.problem) == (False, "no answer within 0.2 s")
            proxy.refuse()
            proxy.reset()
            await until(lambda: db.stats().connect_failures)
            health = await db.health()
            assert not health.ok
            assert "unavailable" in health.problem
            proxy.heal()
            await until(lambda: db.stats().idle >= 1)
            assert (await db.health()).ok
