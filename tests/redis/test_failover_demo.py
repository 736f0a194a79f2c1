"""
The demo's own load on a real cluster that loses the server of its limit: nothing was told to it but REDIS_URL.

One fault, short; all of them, longer: benchmarks/redis_failover.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from failover_load import DOWN_AFTER_MS, replaced

from aegis.config import Config, RedisConfig
from aegis.demo.orchestrate import Options, Progress, run
from aegis.embedded import EmbeddedCluster
from aegis.redis import Redis
from aegis.redis.connection.slots import slot_of_key
from aegis.testing import ClusterPartition

SETTINGS = {"REDIS_HANG_TIMEOUT": "800ms", "REDIS_CONNECT_TIMEOUT": "800ms"}


@pytest.mark.timeout(120)
async def test_collectors_keep_every_quota_when_the_server_of_their_limit_is_cut_off_and_comes_back() -> None:
    """The simulator judges each window on arrival; collectors end in order, and what they published has arrived."""
    cluster, running = EmbeddedCluster(node_timeout_ms=DOWN_AFTER_MS), asyncio.Event()
    happening: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def proxies(config: Config) -> AsyncIterator[None]:
        async with ClusterPartition(cluster) as partition:
            happening.append(asyncio.create_task(fault(partition)))
            yield

    async def fault(partition: ClusterPartition) -> None:
        await running.wait()
        async with Redis(RedisConfig(url=cluster.url)) as redis:
            [state, *_] = await redis.execute("KEYS", "demo:limit:{kis:*:state")
        old = await asyncio.to_thread(cluster.primary_of, slot_of_key(state))
        partition.cut_off(old)
        await replaced(lambda: cluster.primary_of(slot_of_key(state)), old)
        partition.heal()

    async def on_progress(progress: Progress) -> None:
        running.set()

    report = await run(Options(7, 2, settings=SETTINGS, redis=cluster), on_progress, proxies)
    await asyncio.gather(*happening)
    assert report.kis.longest_silence_s > 1.5, "the fault was felt"
    for upstream in (report.kis, report.dart, report.naver):
        assert upstream.rejected == 0
        assert upstream.worst_window <= upstream.limit
    assert (report.tokens_issued, report.tokens_refused) == (1, 0)
    assert report.values_behind == 0
    assert report.ticks_published > 30
    assert report.ticks_received == report.ticks_published or report.gaps, "what is lost is told"
    assert report.rows_inserted == report.rows_in_table > 0
