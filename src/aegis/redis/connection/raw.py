"""redis-py's client with our settings, for what the shared connection must not do: blocking, subscribing, topology."""

from __future__ import annotations

from typing import Any, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from aegis.config import RedisConfig
from aegis.redis.connection.sentinel import locate_primary, make_sentinel


def make_raw(config: RedisConfig) -> redis.asyncio.Redis:
    """
    A client that connects on first use; with a cluster a `RedisCluster`, with Sentinels one that asks them.

    Its own defaults retry for 59 s against a server that accepts and never answers (ten retries of 5 s); here it is
    two retries within the configured timeouts. RESP2, because hiredis leaks about 97 bytes per RESP3 push.
    """
    password = config.password.get_secret_value() if config.password is not None else None
    settings: dict[str, Any] = {
        "username": config.username,
        "password": password,
        "client_name": config.client_name,
        "protocol": 2,
        "socket_connect_timeout": config.connect_timeout,
        "socket_timeout": config.command_timeout,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2),
        **tls_settings(config),
    }
    if config.mode == "cluster":
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in config.seeds]
        cluster = redis.asyncio.RedisCluster(startup_nodes=nodes, **settings)
        return cast("redis.asyncio.Redis", cluster)  # it has the same methods, each asking the right node
    settings["db"] = config.db
    if config.mode == "sentinel":
        client: redis.asyncio.Redis = make_sentinel(config, **settings).master_for(config.sentinel_name or "")
        return client
    if config.socket:
        return redis.asyncio.Redis(unix_socket_path=config.socket, **settings)
    return redis.asyncio.Redis(host=config.host, port=config.port, **settings)


async def close_raw(client: redis.asyncio.Redis) -> None:
    """Close the client and, with Sentinels, those who ask them."""
    sentinel = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    await client.aclose()
    if sentinel is not None:
        for asking in sentinel.sentinels:
            await asking.aclose()


async def locate_server(config: RedisConfig) -> RedisConfig:
    """Where to connect: the server itself, or the one that the Sentinels call the primary now."""
    return await locate_primary(config, tls_settings(config)) if config.mode == "sentinel" else config


def tls_settings(config: RedisConfig) -> dict[str, Any]:
    """What redis-py calls our settings of TLS."""
    if not config.tls:
        return {}
    files = {"ca_certs": config.tls_ca_file, "certfile": config.tls_cert_file, "keyfile": config.tls_key_file}
    return {"ssl": True, **{f"ssl_{name}": str(file) if file else None for name, file in files.items()}}
