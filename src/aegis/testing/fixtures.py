"""
Real servers as pytest fixtures: `pytest_plugins = ["aegis.testing.fixtures"]` in your `conftest.py`.

Servers live as long as the test session (one per xdist worker), because starting a group takes seconds; what a test
breaks it repairs. They need the `embedded` extra, and `redis` needs `pytest-asyncio`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedCluster, EmbeddedPostgres, EmbeddedPostgresPair, EmbeddedSentinel, EmbeddedValkey
from aegis.redis import Redis


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[EmbeddedValkey]:
    """A Valkey shared by this test process, on a unix socket and on the loopback."""
    with EmbeddedValkey(port=0) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[EmbeddedCluster]:
    """A cluster of three primaries with a replica each, shared by this test process."""
    with EmbeddedCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def valkey_sentinel() -> Iterator[EmbeddedSentinel]:
    """A primary with two replicas and three Sentinels, shared by this test process."""
    with EmbeddedSentinel() as group:
        yield group


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL shared by this test process. Tests create tables of their own names or in their own schema."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture
def postgres_pair() -> Iterator[EmbeddedPostgresPair]:
    """A PostgreSQL primary with a synchronous standby, for one test: a failover has no way back."""
    with EmbeddedPostgresPair() as pair:
        yield pair


@pytest.fixture
async def redis(valkey_server: EmbeddedValkey) -> AsyncIterator[Redis]:
    """A connected `Redis` on an empty server."""
    async with Redis(RedisConfig(url=SecretStr(valkey_server.url))) as client:
        await client.execute("FLUSHALL")
        yield client
