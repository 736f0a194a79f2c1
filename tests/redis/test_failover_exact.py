"""
Permits that a failover really loses, and a primary that goes on alone: no window is exceeded all the same.

Replication is asynchronous, so both happen. The counter-proofs are here, too: without the pause of one window the same
loss does exceed the limit.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from failover_load import DOWN_AFTER_MS, FAST, replaced, until

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedSentinel
from aegis.errors import AegisError, ServerReplyError
from aegis.redis import Decision, Rate, RateLimit, RateLimiter, Redis
from aegis.testing import FaultProxy

THE_REST = "127.0.0.2"  #: where everybody comes from who is on the other side of the partition


async def allowed(limiter: RateLimiter, limit: RateLimit) -> Decision:
    """Asks until there is an answer."""
    async with asyncio.timeout(40):
        while True:
            try:
                return await limiter.allow(limit)
            except AegisError:
                await asyncio.sleep(0.05)


@pytest.mark.timeout(120)
async def test_a_promoted_replica_that_never_heard_of_the_last_permits_grants_none_for_a_window() -> None:
    """The default waits until none of them can count any more; who chooses not to wait gets them all a second time."""
    limit = RateLimit("upstream", Rate(10, per=60))
    with EmbeddedSentinel(down_after_ms=DOWN_AFTER_MS, options={"min-replicas-to-write": "0"}) as group:
        async with Redis(RedisConfig(url=group.url, **FAST)) as redis:
            exact = RateLimiter(redis)
            hasty = RateLimiter(redis, prefix="hasty", exact_after_failover=False)
            old, *replicas = group.servers
            for replica in replicas:
                replica.pause()
            await redis.execute("CLIENT", "KILL", "TYPE", "replica")  # nothing reaches them from here on
            granted_at = time.monotonic()
            for limiter in (exact, hasty):
                assert sum([(await limiter.allow(limit)).allowed for _ in range(12)]) == 10
            old.kill()
            for replica in replicas:
                replica.resume()
            await replaced(lambda: group.primary, old)
            again = [await allowed(hasty, limit) for _ in range(12)]
            assert sum(decision.allowed for decision in again) >= 8, "the counter-proof: the loss was real"
            decision = await allowed(exact, limit)
            assert time.monotonic() - granted_at < 50, "too slow a machine for this window"
            assert not decision.allowed
            assert decision.retry_after > 100, "a window, and how far ahead the lost ones may have been due"


@pytest.mark.timeout(120)
async def test_a_primary_cut_off_together_with_a_client_stops_granting_before_another_one_begins() -> None:
    """
    It refuses in words when it hears of no replica (min-replicas-to-write); both sides together keep the limit.

    A client that sees both sides asks the Sentinels when it is refused so, and finds the new primary by itself.
    """
    group = EmbeddedSentinel(down_after_ms=4000, options={"bind-source-addr": THE_REST})
    limit, grants, refused = RateLimit("upstream", Rate(10, per=1)), list[float](), list[ServerReplyError]()
    over = False

    async def take(limiter: RateLimiter) -> None:
        while not over:
            try:
                if (await limiter.allow(limit)).allowed:
                    grants.append(time.monotonic())
            except ServerReplyError as exc:
                refused.append(exc)
            except AegisError:
                pass
            await asyncio.sleep(0.02)

    try:
        await asyncio.to_thread(group.start)
        async with FaultProxy(f"127.0.0.1:{group.servers[0].port}") as proxy:
            await asyncio.to_thread(group.reach_primary_at, proxy.port)
            lonely = RedisConfig(url=f"redis://127.0.0.1:{proxy.port}")
            seeing = RedisConfig(url=group.url, hang_timeout=1.5, connect_timeout=1.5)
            async with Redis(lonely) as inside, Redis(seeing) as outside:
                tasks = [asyncio.create_task(take(RateLimiter(client))) for client in (inside, outside)]
                await until(lambda: len(grants) > 15)
                proxy.freeze(THE_REST)
                await until(lambda: refused)
                assert str(refused[0]).startswith("Redis refused EVALSHA: NOREPLICAS Not enough good replicas")
                stopped_with = len(grants)
                await until(lambda: len(grants) > stopped_with + 15)
                assert outside._steady._link._transport.get_extra_info("peername")[1] == group.primary.port
                assert group.primary is not group.servers[0]
                with pytest.raises(ServerReplyError, match="NOREPLICAS"):
                    await RateLimiter(inside).allow(limit)
                over = True
                await asyncio.gather(*tasks)
    finally:
        await asyncio.to_thread(group.stop)
    spans = [later - moment for moment, later in zip(grants, grants[10:], strict=False)]
    assert min(spans) > 0.6, "a permit may be used a little late, never early"
