"""The runtime opens every room in order and leaves nothing behind when one of them fails."""

from __future__ import annotations

import pytest

from aegis.config import Config
from aegis.errors import AegisError, ClosedError, RedisUnavailableError
from aegis.redis import Rate, RateLimit
from aegis.runtime import Runtime


async def test_embedded_urls_start_servers_that_end_with_the_runtime():
    """`embedded:` gives a whole backend with no installation, and nothing of it stays."""
    config = Config.load({"REDIS_URL": "embedded:", "DATABASE_URL": "embedded:", "DB_MIN_CONNS": "1"}, None)
    async with Runtime(config) as rt:
        assert await rt.redis.execute("SET", "k", "v") == b"OK"
        assert await rt.db.fetch_value("select 1") == 1
        assert await rt.limiter.wait(RateLimit("kis", Rate(5, per=1))) < 0.5
        redis = rt.redis
    with pytest.raises(AegisError):
        await redis.execute("GET", "k")
    with pytest.raises(ClosedError):
        _ = rt.db


async def test_a_room_that_cannot_open_closes_those_before_it(valkey_server):
    """No PostgreSQL: its error is raised, and the Redis connections that were open are closed."""
    name = "aegis-half-open"
    config = Config.load(
        {"REDIS_URL": valkey_server.url, "REDIS_CLIENT_NAME": name, "DB_HOST": "127.0.0.1", "DB_PORT": "1"}, None
    )
    with pytest.raises(AegisError, match=r"127\.0\.0\.1"):
        async with Runtime(config):
            pass
    async with Runtime(Config.load({"REDIS_URL": valkey_server.url}, None), database=False) as rt:
        clients = await rt.redis.execute("CLIENT", "LIST")
    assert name.encode() not in clients


async def test_start_is_one_line_with_the_fingerprint_of_the_configuration(caplog):
    """Whoever compares two processes compares two words; no secret has a part in it."""
    config = Config.load({"REDIS_ENABLED": "false", "ENV": "staging", "KIS_APP_SECRET": "hidden"}, None)
    with caplog.at_level("INFO", "aegis.runtime"):
        async with Runtime(config, database=False):
            pass
    [line] = [record for record in caplog.records if record.name == "aegis.runtime"]
    assert config.fingerprint() in line.getMessage()
    assert (line.configuration, line.env) == (config.fingerprint(), "staging")


async def test_redis_that_is_not_there_is_named_at_once():
    """The address and the cause, not a time-out."""
    config = Config.load({"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "1"}, None)
    with pytest.raises(RedisUnavailableError, match=r"127\.0\.0\.1:1"):
        async with Runtime(config, database=False):
            pass
