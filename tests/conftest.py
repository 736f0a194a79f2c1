"""Real servers for every test: one Valkey and one PostgreSQL per test process, emptied between tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedPostgres, EmbeddedValkey
from aegis.redis import Redis


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[EmbeddedValkey]:
    """A Valkey shared by this test process, on a unix socket and on the loopback."""
    with EmbeddedValkey(port=0) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL shared by this test process. Tests create tables of their own names or in their own schema."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture
async def redis(valkey_server: EmbeddedValkey) -> AsyncIterator[Redis]:
    """A connected `Redis` on an empty server."""
    async with Redis(RedisConfig(url=valkey_server.url)) as client:
        await client.execute("FLUSHALL")
        yield client
