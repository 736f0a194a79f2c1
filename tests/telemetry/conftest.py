"""A runtime on real servers in which every room has done something, refusals and failures included."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from pydantic import SecretStr

from aegis.backoff import Backoff
from aegis.config import Config, DatabaseConfig, HttpConfig, RedisConfig
from aegis.errors import AmbiguousOutcomeError, HttpConnectionError, RateLimitTimeoutError, ServerReplyError
from aegis.http import RetryPolicy
from aegis.redis import Rate, RateLimit
from aegis.runtime import Runtime

LIMIT = RateLimit("metrics-test", Rate(2, per=30.0))
ONCE = RetryPolicy(backoff=Backoff(0.001, 0.001), throttle_backoff=Backoff(0.001, 0.001), budget_tokens=5.0)


@pytest.fixture
async def runtime(valkey_server, postgres_server):
    config = Config(
        redis=RedisConfig(url=SecretStr(valkey_server.url)),
        database=DatabaseConfig(url=SecretStr(postgres_server.url), min_conns=1),
        http=HttpConfig(timeout=20.0, attempt_timeout=10.0, connect_timeout=5.0),
    )
    async with Runtime(config) as rt:
        await rt.redis.execute("FLUSHALL")
        yield rt


@asynccontextmanager
async def upstream():
    """Its address: the status that the path names, or a dropped connection."""

    async def serve(reader, writer):
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].partition(b"?")[0]
                if path == b"/drop":
                    break
                writer.write(b"HTTP/1.1 %b X\r\nContent-Length: 2\r\n\r\nok" % path[1:])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture
async def busy(runtime):
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(upstream())
        await call(runtime, url)
        await runtime.limiter.allow(LIMIT)
        await runtime.cache.get_or_set("k", loaded, int)
        assert await runtime.cache.get("k", int) == 5
        await runtime.cache.get("nothing", int)
        async with runtime.bus.subscribe("005930", type=int) as updates:
            await runtime.bus.publish("005930", 71900, urgent=True)
            assert (await anext(aiter(updates))).value == 71900
        await runtime.db.fetch_value("select 1")
        await runtime.redis.execute("SET", "s", "x")
        with pytest.raises(ServerReplyError, match="WRONGTYPE"):
            await runtime.redis.execute("LPUSH", "s", "x")
        yield runtime


async def call(runtime, url):
    """Two answers with permits, a refused permit, a refused connection, a lost order, too fast, and a spent budget."""
    limited = runtime.http.with_rate_limiter(runtime.limiter, LIMIT)
    for _ in range(2):
        await limited.get(f"{url}/200?appkey=s3cret", headers={"appsecret": "s3cret"})
    with pytest.raises(RateLimitTimeoutError):
        await limited.get(f"{url}/200", timeout=0.5)
    with pytest.raises(HttpConnectionError):
        await runtime.http.without_retry().get("http://me:s3cret@127.0.0.1:1/?token=s3cret")
    with pytest.raises(AmbiguousOutcomeError):
        await runtime.http.post(f"{url}/drop", b"buy")
    await runtime.http.without_retry().get(f"{url}/429")
    assert (await runtime.http.with_retry(ONCE).get(f"{url}/503")).stopped_by == "budget"


async def loaded():
    return 5


@pytest.fixture
async def served(busy):
    """What a scrape of that process gives: the labels of every series, by name."""
    found = {"aegis_process_up": [{"process": "me"}]}
    for sample in busy.samples():
        name, labels = f"aegis_{sample.name}", {"process": "me", **dict(sample.labels)}
        if sample.buckets:
            found.setdefault(f"{name}_bucket", []).extend({**labels, "le": str(le)} for le, _ in sample.buckets)
            found.setdefault(f"{name}_count", []).append(labels)
            found.setdefault(f"{name}_sum", []).append(labels)
        else:
            found.setdefault(f"{name}_total" if sample.total else name, []).append(labels)
    return found
