"""What the tests of this room have in common: clusters, and patience on a busy machine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedCluster, EmbeddedValkey, free_port
from aegis.redis import Cache, Redis


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no outage is meant, a machine that is busy with other tests shall not look like one to a cache."""
    if request.module.__name__ != "test_cache_outage":
        monkeypatch.setitem(Cache.__init__.__kwdefaults__, "patience_s", 5.0)


@pytest.fixture(scope="session")
def cluster_node() -> object:
    """One server in cluster mode that owns nothing; with a bus of its own, or two of them would want port 10000."""
    with EmbeddedValkey(options={"cluster-enabled": "yes", "cluster-port": str(free_port())}) as server:
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
