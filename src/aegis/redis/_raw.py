"""redis-py's client with our settings, for what the shared connection must not do: blocking, subscribing, topology."""

from __future__ import annotations

from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from aegis.config import RedisConfig


def make_raw(config: RedisConfig) -> redis.asyncio.Redis:
    """
    A client that connects on first use.

    Its own defaults retry for 59 s against a server that accepts and never answers (ten retries of 5 s); here it is
    two retries within the configured timeouts. RESP2, because hiredis leaks about 97 bytes per RESP3 push.
    """
    password = config.password.get_secret_value() if config.password is not None else None
    settings: dict[str, Any] = {
        "db": config.db,
        "username": config.username,
        "password": password,
        "client_name": config.client_name,
        "protocol": 2,
        "socket_connect_timeout": config.connect_timeout,
        "socket_timeout": config.command_timeout,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2),
    }
    if config.socket:
        return redis.asyncio.Redis(unix_socket_path=config.socket, **settings)
    if config.tls:
        settings |= {
            "ssl": True,
            "ssl_ca_certs": str(config.tls_ca_file) if config.tls_ca_file else None,
            "ssl_certfile": str(config.tls_cert_file) if config.tls_cert_file else None,
            "ssl_keyfile": str(config.tls_key_file) if config.tls_key_file else None,
        }
    return redis.asyncio.Redis(host=config.host, port=config.port, **settings)
