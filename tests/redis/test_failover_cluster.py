"""
A real cluster that loses its primary while commands run.

Nobody hangs, what was acknowledged is there (in these runs: replication is asynchronous), nothing is executed twice,
and a primary that comes back after its replacement is not written to. Long form: benchmarks/redis_failover.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from failover_load import DOWN_AFTER_MS, FAST, KEYS, load, replaced, until

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedCluster
from aegis.errors import RedisUnavailableError
from aegis.redis import Redis
from aegis.redis.connection.slots import slot_of_key


@pytest.fixture(scope="module")
def group() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(node_timeout_ms=DOWN_AFTER_MS) as cluster:
        yield cluster


@pytest.fixture
async def fragile(group: EmbeddedCluster) -> EmbeddedCluster:
    """One cluster for all tests of this file, whole and empty again."""
    for node in group.nodes:
        if not node.running:
            await asyncio.to_thread(node.start)
    await asyncio.to_thread(group.wait_until_whole)
    async with Redis(RedisConfig(url=group.url)) as client:
        await client.execute("FLUSHALL")
    return group


async def test_a_cluster_primary_that_is_killed_is_replaced_and_the_others_go_on(fragile: EmbeddedCluster) -> None:
    """Keys of the other primaries are answered all the time; those of the dead one as soon as there is a new one."""
    async with Redis(RedisConfig(url=fragile.url, **FAST)) as client:
        old = fragile.primary_of(slot_of_key(KEYS[0]))
        spared = [key for key in KEYS if fragile.primary_of(slot_of_key(key)) is not old]
        async with load(client, KEYS) as running:
            before = running.answered.copy()
            old.kill()
            await until(lambda: all(running.answered[key] > before[key] + 20 for key in spared), 10)
            new = await replaced(lambda: fragile.primary_of(slot_of_key(KEYS[0])), old)
        assert client.servers.owner(slot_of_key(KEYS[0])).config.port == new.port
        assert client.stats().state == "connected"


async def test_a_cluster_primary_that_was_paused_and_replaced_does_not_get_its_slots_back(
    fragile: EmbeddedCluster,
) -> None:
    """When it resumes it still believes in itself; its claim is older, and it is not asked again."""
    async with Redis(RedisConfig(url=fragile.url, **FAST)) as client:
        slot = slot_of_key(KEYS[0])
        async with load(client, KEYS):
            old = fragile.primary_of(slot)
            old.pause()
            new = await replaced(lambda: fragile.primary_of(slot), old)
            await until(lambda: client.stats().state == "connected")
            old.resume()
        assert client.servers.owner(slot).config.port == new.port


async def test_a_primary_whose_connection_comes_back_serves_only_when_others_confirm_it(
    fragile: EmbeddedCluster,
) -> None:
    """It answers, but it may have been replaced meanwhile: until half of the nodes were asked, its commands wait."""
    async with Redis(RedisConfig(url=fragile.url, **FAST)) as client:
        slot = slot_of_key(KEYS[0])
        await client.execute("SET", KEYS[0], "mine")
        node = client.servers.owner(slot)
        before = node.steady.connection
        others = [server for server in fragile.nodes if server.port != node.config.port]
        for server in others:
            server.pause()
        try:
            node.steady._link.abort("cut by the test")
            await until(lambda: node.steady.connection != before and node.state == "connected")
            with pytest.raises(RedisUnavailableError, match="not sent"):
                await client.execute("GET", KEYS[0], timeout=0.5)
        finally:
            for server in others:
                server.resume()
        assert await client.execute("GET", KEYS[0], timeout=30) == b"mine"
