"""Clusters for the tests of this room: a client of the shared one, and a single node that knows the slots."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedCluster, EmbeddedValkey
from aegis.redis import Redis


@pytest.fixture(scope="session")
def cluster_node() -> object:
    """One server in cluster mode that owns nothing."""
    with EmbeddedValkey(options={"cluster-enabled": "yes"}) as server:
        yield server


@pytest.fixture
async def one_node(cluster_node: EmbeddedValkey) -> AsyncIterator[Redis]:
    """A plain client of it."""
    async with Redis(RedisConfig(url=cluster_node.url)) as client:
        yield client


@pytest.fixture
async def cluster(valkey_cluster: EmbeddedCluster) -> AsyncIterator[Redis]:
    """A connected client of an emptied cluster."""
    async with Redis(RedisConfig(url=valkey_cluster.url)) as client:
        await client.execute("FLUSHALL")
        yield client
