"""`REDIS_ENABLED=false`: every Redis feature is a no-op, proven by a listener that nobody ever calls."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from aegis.config import Config
from aegis.redis import Cache, PubSub, Rate, RateLimit, RateLimiter, Redis
from aegis.runtime import Runtime

LIMIT = RateLimit("kis", Rate(5, per=1))


@pytest.fixture
def nobody_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """A configuration that points at a listening socket, which must never see a connection; resolving is an error."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("disabled Redis must not resolve or connect")

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", refuse)
        yield Config.load({"REDIS_ENABLED": "false", "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(port)}, None)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_client_and_limiter_do_nothing(nobody_calls: Config):
    """The contract's answers: `(True, limit, 0.0)` and `0.0`, however often one asks."""
    async with Redis(nobody_calls.redis) as redis:
        assert redis.enabled is False
        assert await redis.execute("GET", "k") is None
        assert await redis.ping() == 0.0
        limiter = RateLimiter(redis)
        for _ in range(50):
            assert tuple(await limiter.allow(LIMIT)) == (True, 5, 0.0)
            assert await limiter.wait(LIMIT, key="account", timeout=0.01) == 0.0
        await limiter.hold(LIMIT, 60)
        assert await limiter.wait(LIMIT) == 0.0
        assert (await limiter.peek(LIMIT)).used == 0
        await limiter.reset(LIMIT)


async def test_cache_misses_and_loads_once_per_process(nobody_calls: Config):
    """Nothing is stored; concurrent callers still share one load."""
    loads = 0

    async def load() -> str:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.01)
        return "loaded"

    async with Redis(nobody_calls.redis) as redis:
        cache = Cache(redis)
        await cache.set("k", "v", ttl=60)
        assert await cache.get("k", str) is None
        assert set(await asyncio.gather(*(cache.get_or_set("k", load, str, ttl=60) for _ in range(20)))) == {"loaded"}
        assert loads == 1
        await cache.get_or_set("k", load, str, ttl=60)
        assert loads == 2
        await cache.delete("k")
        await cache.invalidate("tag")


async def test_broadcast_is_silent_until_closed(nobody_calls: Config):
    """Publishing does nothing, a subscription waits, and closing it ends the waiting."""
    async with Redis(nobody_calls.redis) as redis, PubSub(redis) as bus:
        async with bus.subscribe("005930", type=int) as updates:
            await bus.publish("005930", 1, urgent=True)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(aiter(updates)), 0.1)
        assert await bus.last("005930", int) is None


async def test_runtime_opens_without_redis(nobody_calls: Config):
    """Every room that needs Redis is there, as a no-op."""
    async with Runtime(nobody_calls, database=False) as rt:
        assert tuple(await rt.limiter.allow(LIMIT)) == (True, 5, 0.0)
        await rt.bus.publish("005930", 1)
        assert await rt.cache.get("k", str) is None
