"""
A primary of a real cluster that the network cuts off from the rest, while permits are taken all the time.

Cut off from clients as well: test_failover_demo.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from failover_load import DOWN_AFTER_MS, FAST, KEYS, load, replaced, until

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedCluster
from aegis.redis import Rate, RateLimit, RateLimiter, Redis
from aegis.redis.connection.slots import slot_of_key
from aegis.redis.limiting.gate import key_name
from aegis.testing import ClusterPartition


@pytest.mark.timeout(120)
async def test_a_primary_cut_off_from_the_cluster_but_not_from_clients_exceeds_no_limit() -> None:
    """
    It grants until it notices, and what it granted is lost with it: the pause covers that.

    Its keys come back by themselves; those of others are answered all the time.
    """
    limit, grants, over = RateLimit("upstream", Rate(10, per=0.5)), list[float](), False
    slot = slot_of_key(key_name("aegis", limit, ""))

    async def take(limiter: RateLimiter) -> None:
        while not over:
            await limiter.wait(limit, timeout=60)
            grants.append(time.monotonic())

    cluster = EmbeddedCluster(node_timeout_ms=DOWN_AFTER_MS)
    try:
        await asyncio.to_thread(cluster.start)
        async with ClusterPartition(cluster) as partition:
            config = RedisConfig(url=partition.url, **FAST)
            async with Redis(config) as one, Redis(config) as other:
                tasks = [asyncio.create_task(take(RateLimiter(client))) for client in (one, other) for _ in range(3)]
                owner = await asyncio.to_thread(cluster.primary_of, slot)
                spared = [key for key in KEYS if cluster.primary_of(slot_of_key(key)) is not owner]
                async with load(one, spared) as running:
                    await more(grants)
                    partition.cut_off(owner, clients=False)
                    await replaced(lambda: cluster.primary_of(slot), owner)
                    await more(grants)
                    assert one.servers.owner(slot).config.port != partition.port_of(owner)
                    partition.heal()
                    await asyncio.to_thread(cluster.wait_until_whole)
                assert not running.unknown
                over = True
                async with asyncio.timeout(30):
                    await asyncio.gather(*tasks)
    finally:
        await asyncio.to_thread(cluster.stop)
    spans = [later - moment for moment, later in zip(grants, grants[10:], strict=False)]
    assert min(spans) > 0.25, "a permit may be used a little late, never early"


async def more(grants: list[float]) -> None:
    """Fifteen more, whatever has to be waited for."""
    before = len(grants)
    await until(lambda: len(grants) > before + 15)
