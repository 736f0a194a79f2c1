"""The room's tests run on the embedded PostgreSQL, and where the system has one, on that too."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aegis.config import DatabaseConfig
from aegis.database import Database
from aegis.embedded import EmbeddedPostgres


def system_home() -> Path | None:
    """Where a PostgreSQL of the system is installed, if one is."""
    found = shutil.which("initdb") or shutil.which("postgres")
    home = None if found is None else Path(found).resolve().parent.parent
    return home if home and (home / "bin" / "initdb").exists() else None


SERVERS = ["embedded", *(["system"] if system_home() else [])]


@pytest.fixture(scope="session", params=SERVERS)
def postgres_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """One server per kind for this test process; tests create tables of their own names or in their own schema."""
    with EmbeddedPostgres(home=system_home() if request.param == "system" else None) as server:
        yield server


@pytest.fixture
async def db(postgres_server: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A pool of up to three connections to an empty schema."""
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=1, max_conns=3)) as database:
        await database.execute("drop schema public cascade")
        await database.execute("create schema public")
        yield database
