"""
A real Sentinel group that loses its primary while commands run.

Nobody hangs, what was acknowledged is there (in these runs: replication is asynchronous), nothing is executed twice,
and a primary that comes back after its replacement is not written to. Long form: benchmarks/redis_failover.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from failover_load import DOWN_AFTER_MS, FAST, KEYS, Token, load, replaced, until

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedSentinel, EmbeddedValkey
from aegis.redis import Rate, RateLimit, RateLimiter, Redis


@pytest.fixture
def group() -> Iterator[EmbeddedSentinel]:
    with EmbeddedSentinel(down_after_ms=DOWN_AFTER_MS, options={"min-replicas-to-write": "0"}) as group:
        yield group


@pytest.mark.timeout(120)
async def test_primaries_are_replaced_one_after_the_other_and_no_limit_is_exceeded(group: EmbeddedSentinel) -> None:
    """
    The first is killed, the second stopped until it is replaced, and resumed.

    Two clients find the new primary by themselves, keep to the limit in every window, and stay off the old ones. While
    there is none, each loads for itself what it cannot look up, one load at a time.
    """
    limit, grants, over = RateLimit("upstream", Rate(10, per=1)), list[float](), False
    config = RedisConfig(url=group.url, **FAST)
    async with Redis(config) as one, Redis(config) as other:

        async def take(limiter: RateLimiter) -> None:
            while not over:
                await limiter.wait(limit, timeout=60)
                grants.append(time.monotonic())

        limiters = (RateLimiter(one), RateLimiter(other))
        tasks = [asyncio.create_task(take(limiter)) for limiter in limiters for _ in range(4)]
        token = Token()
        wanting = [asyncio.create_task(token.want(name, client)) for name, client in (("one", one), ("other", other))]
        async with load(one, KEYS) as running:
            for fault in (EmbeddedValkey.kill, EmbeddedValkey.pause):
                before = len(grants)
                await until(lambda seen=before: len(grants) > seen + 15)
                old = group.primary
                fault(old)
                new = await replaced(lambda: group.primary, old)
                if fault is EmbeddedValkey.pause:
                    old.resume()
            before = len(grants)
            await until(lambda: len(grants) > before + 25)
        assert one._steady._link._transport.get_extra_info("peername")[1] == new.port
        assert await one.raw.ping()
        over, loads = True, token.loads
        await until(lambda: token.loads > loads)
        for task in wanting:
            assert not task.done(), "its callers got an error"
            task.cancel()
        await asyncio.gather(*wanting, return_exceptions=True)
        assert (token.most_of_one, token.most) in {(1, 1), (1, 2)}, "docs/scaling.md: one per process at a time"
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        assert one.stats().reconnects >= 2
        assert running.longest_gap_s < 20
    gaps = [later - moment for moment, later in zip(grants, grants[10:], strict=False)]
    assert min(gaps) > 0.6, "a permit may be used a little late, never early"
