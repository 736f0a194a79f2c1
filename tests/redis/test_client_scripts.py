"""Scripts by hash, what the client counts, and redis-py beside it: against a real server."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
import redis.asyncio
from redis.exceptions import ConnectionError as RawConnectionError

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.errors import RedisUnavailableError, ServerReplyError
from aegis.redis import Redis
from aegis.redis._script import Script
from aegis.testing import FaultProxy


def script(source: str) -> Script:
    return Script("test", source.encode(), hashlib.sha1(source.encode()).hexdigest())


async def calls(client: Redis, command: str) -> int:
    """How often the server has executed a command since its statistics were reset."""
    info = (await client.execute("INFO", "commandstats")).decode()
    line = next((line for line in info.splitlines() if line.startswith(f"cmdstat_{command}:")), None)
    return int(line.partition("calls=")[2].partition(",")[0]) if line else 0


ADD = script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


async def test_a_script_is_loaded_when_the_server_does_not_know_it_and_runs_once(redis: Redis) -> None:
    """By hash first, by source after NOSCRIPT, by hash again from then on; each call has its effect once."""
    await redis.execute("SCRIPT", "FLUSH")
    await redis.execute("CONFIG", "RESETSTAT")
    assert await redis.run(ADD, ["n"], [5]) == 5
    assert await redis.run(ADD, ["n"], [5]) == 10
    assert (await calls(redis, "evalsha"), await calls(redis, "eval")) == (2, 1)
    await redis.execute("SCRIPT", "FLUSH")
    assert sorted(await asyncio.gather(*(redis.run(ADD, ["n"], [1]) for _ in range(20)))) == list(range(11, 31))


async def test_a_script_survives_a_restart_of_the_server() -> None:
    """The new process knows no script; the caller notices nothing."""
    with EmbeddedValkey(port=0) as server:
        async with Redis(RedisConfig(url=server.url)) as client:
            assert await client.run(ADD, ["n"], [1]) == 1
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            assert await client.run(ADD, ["n"], [7]) == 7


async def test_a_script_that_fails_says_so_and_is_not_run_twice(redis: Redis) -> None:
    """Only NOSCRIPT leads to the source: an error after an effect must not repeat the effect."""
    broken = script("redis.call('INCR', KEYS[1]); return redis.call('LPUSH', KEYS[1], 'x')")
    for effect in (b"1", b"2"):
        with pytest.raises(ServerReplyError, match="WRONGTYPE"):
            await redis.run(broken, ["n"])
        assert await redis.execute("GET", "n") == effect


async def test_what_is_counted_agrees_with_the_server(valkey_server: EmbeddedValkey) -> None:
    """Commands, bytes in both directions, errors by kind, and one place in the histogram per reply."""
    async with Redis(RedisConfig(url=valkey_server.url)) as client:
        before = client.stats()
        await asyncio.gather(*(client.execute("SET", f"k{i}", "v" * 100) for i in range(300)))
        assert await client.pipeline([("STRLEN", f"k{i}") for i in range(100)]) == [100] * 100
        with pytest.raises(ServerReplyError):
            await client.execute("LPUSH", "k0", "x")
        after = client.stats()
        assert after.commands - before.commands == 401
        assert after.latency.count == after.commands
        assert after.bytes_sent - before.bytes_sent > 300 * 100
        assert after.bytes_received - before.bytes_received == 300 * len("+OK\r\n") + 100 * len(":100\r\n") + len(
            "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
        )
        assert after.in_flight_max == 300
        assert (after.in_flight, after.errors) == (0, {"WRONGTYPE": 1})


async def test_a_write_answered_in_several_reads_counts_every_reply_once(valkey_server: EmbeddedValkey) -> None:
    """Replies that come in small pieces: the histogram holds each of them."""
    async with FaultProxy(valkey_server.socket) as proxy, Redis(RedisConfig(url=proxy.url)) as client:
        proxy.slow(0.001, chunk_bytes=100)
        await asyncio.gather(*(client.execute("ECHO", "x" * 10) for _ in range(100)))
        assert client.stats().latency.count == client.stats().commands


async def test_the_histogram_shows_a_slow_reply_where_it_belongs() -> None:
    """A command of a quarter of a second lies between 0.25 and 1.05 s; the fast ones lie below it."""
    with EmbeddedValkey(options={"enable-debug-command": "yes"}) as server:
        async with Redis(RedisConfig(url=server.url)) as client:
            for _ in range(20):
                await client.ping()
            await client.execute("DEBUG", "SLEEP", "0.26")
            latency = client.stats().latency
            assert latency.quantile_s(0.5) < latency.quantile_s(1.0)
            assert 0.26 <= latency.quantile_s(1.0) < 2.0
            assert latency.sum_s >= 0.26
            assert [count for count in latency.counts if count < 0] == []


async def test_raw_is_made_when_asked_for_and_closed_with_its_owner(valkey_server: EmbeddedValkey) -> None:
    """One redis-py client per `Redis`, with its own connections, none of them left after close."""
    async with Redis(RedisConfig(url=valkey_server.url, client_name="owner")) as client:
        assert client._raw is None
        raw = client.raw
        assert isinstance(raw, redis.asyncio.Redis)
        assert client.raw is raw
        await raw.rpush("raw-list", "x")
        assert await raw.blpop(["raw-list"], timeout=1) == (b"raw-list", b"x")
        assert len(await raw.client_list()) >= 2
    async with Redis(RedisConfig(url=valkey_server.url)) as other:
        async with asyncio.timeout(5):
            while b"name=owner" in await other.execute("CLIENT", "LIST"):
                await asyncio.sleep(0.01)


async def test_raw_fails_within_its_own_bounds() -> None:
    """Nobody listens: redis-py gives up after the configured retries; a disabled client has none at all."""
    async with asyncio.timeout(5):
        unopened = Redis(RedisConfig(host="127.0.0.1", port=1))
        with pytest.raises(RawConnectionError):
            await unopened.raw.ping()
        await unopened.close()
    with pytest.raises(RedisUnavailableError, match="REDIS_ENABLED=false"):
        _ = Redis(RedisConfig(enabled=False)).raw
