"""The room's tests run on the embedded PostgreSQL, and where the system has one, on that too."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
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


@pytest.fixture(scope="session")
def postgres_of() -> Iterator[Callable[[str], EmbeddedPostgres]]:
    """One server per kind for this test process, started when it is first asked for."""
    with contextlib.ExitStack() as stack:

        @cache
        def start(kind: str) -> EmbeddedPostgres:
            return stack.enter_context(EmbeddedPostgres(home=system_home() if kind == "system" else None))

        yield start


@pytest.fixture(scope="session", params=SERVERS)
def postgres_server(request: pytest.FixtureRequest, postgres_of) -> EmbeddedPostgres:
    """Each kind in turn; tests create tables of their own names or in their own schema."""
    return postgres_of(request.param)


@pytest.fixture
async def db(postgres_server: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A pool of up to three connections to an empty schema."""
    async with Database(DatabaseConfig(url=postgres_server.url, min_conns=1, max_conns=3)) as database:
        await database.execute("drop schema public cascade")
        await database.execute("create schema public")
        yield database
