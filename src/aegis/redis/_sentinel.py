"""Where the primary is, asked of the Sentinels through redis-py."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Sentinel
from redis.exceptions import RedisError as RawRedisError

from aegis.config import RedisConfig
from aegis.errors import RedisUnavailableError


def make_sentinel(config: RedisConfig, **settings: Any) -> Sentinel:
    """redis-py's client of the Sentinels; `settings` are for the servers that they watch. TLS is for both."""
    own: dict[str, Any] = {
        "username": config.sentinel_username,
        "password": config.sentinel_password.get_secret_value() if config.sentinel_password is not None else None,
        "protocol": 2,
        # Asked one after the other: two that hang must not use up the time for the third.
        "socket_connect_timeout": config.connect_timeout / (len(config.seeds) + 1),
        "socket_timeout": config.connect_timeout / (len(config.seeds) + 1),
    }
    own |= {name: value for name, value in settings.items() if name.startswith("ssl")}
    # One that sees less than half of the others is cut off, and what it says is old.
    others = len(config.seeds) // 2
    return Sentinel(list(config.seeds), min_other_sentinels=others, sentinel_kwargs=own, **settings)  # type: ignore[no-untyped-call]


async def locate_primary(config: RedisConfig, tls: dict[str, Any]) -> RedisConfig:
    """
    The configuration of the server that the Sentinels call the primary now.

    Raises:
        RedisUnavailableError: none of them answers in time, or none knows a healthy one.
    """
    sentinel = make_sentinel(config, **tls)
    try:
        async with asyncio.timeout(config.connect_timeout):
            host, port = await sentinel.discover_master(config.sentinel_name or "")
    except (RawRedisError, TimeoutError, OSError) as exc:
        raise RedisUnavailableError(config.address, f"the Sentinels know no healthy primary: {exc}") from exc
    finally:
        for client in sentinel.sentinels:
            await client.aclose()
    return config.at(host, port)
