"""
Where the primary is, asked of the Sentinels through redis-py.

After a failover the Sentinels hear of it one after the other, within two seconds or so; until then some name the old
primary. All of them are asked at once, and the one whose configuration epoch is the highest is believed: it has the
newest. Rejected: redis-py's own `discover_master`, which believes the first that answers.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from redis.asyncio import Redis as RawRedis
from redis.asyncio import Sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError as RawRedisError

from aegis.config import RedisConfig
from aegis.errors import RedisUnavailableError


class _Answer(NamedTuple):
    """What one Sentinel says."""

    epoch: int
    host: str
    port: int


def make_sentinel(config: RedisConfig, **settings: Any) -> Sentinel:
    """redis-py's client of the Sentinels; `settings` are for the servers that they watch. TLS is for both."""
    own: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),  # whoever asks retries, and another Sentinel may know
        "username": config.sentinel_username,
        "password": config.sentinel_password.get_secret_value() if config.sentinel_password is not None else None,
        "protocol": 2,
        "socket_connect_timeout": config.connect_timeout / 2,
        "socket_timeout": config.connect_timeout / 2,
    }
    own |= {name: value for name, value in settings.items() if name.startswith("ssl")}
    return Sentinel(list(config.seeds), sentinel_kwargs=own, **settings)  # type: ignore[no-untyped-call]


async def locate_primary(config: RedisConfig, tls: dict[str, Any]) -> RedisConfig:
    """
    The configuration of the server that the Sentinels call the primary now.

    Raises:
        RedisUnavailableError: none of them answers in time, or none knows a healthy one.
    """
    sentinel = make_sentinel(config, **tls)
    try:
        answers = await asyncio.gather(*(_ask(client, config) for client in sentinel.sentinels), return_exceptions=True)
    finally:
        for client in sentinel.sentinels:
            await client.aclose()
    known = [answer for answer in answers if isinstance(answer, _Answer)]
    if not known:
        causes = {str(answer) or type(answer).__name__ for answer in answers}
        raise RedisUnavailableError(config.address, f"the Sentinels know no healthy primary: {'; '.join(causes)}")
    newest = max(known)
    return config.at(newest.host, newest.port)


async def _ask(client: RawRedis, config: RedisConfig) -> _Answer:
    name = config.sentinel_name or ""
    async with asyncio.timeout(config.connect_timeout / 2):
        state: Any = await client.sentinel_master(name)
        place: Any = await client.sentinel_get_master_addr_by_name(name)  # of the next one, while a failover is on
    if place is None:
        raise RawRedisError(f"{name!r} is not watched")
    host, port = place[0].decode(), int(place[1])
    if (state["ip"], int(state["port"])) == (host, port) and (state["is_sdown"] or state["is_odown"]):
        raise RawRedisError(f"{host}:{port} is down, and nobody has replaced it yet")
    return _Answer(int(state["config-epoch"]), host, port)
