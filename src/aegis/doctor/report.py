"""All areas together. They are looked at side by side, and told in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

from aegis.config import Config, Examined
from aegis.doctor.finding import Area, Finding
from aegis.doctor.ports import examine_ports
from aegis.doctor.postgres import examine_postgres
from aegis.doctor.redis import examine_redis
from aegis.doctor.settings import examine_settings
from aegis.doctor.upstreams import examine_upstreams

#: Longest look at one area; what hangs is a finding like any other.
_AREA_TIMEOUT_S = 30.0
AREAS = ("configuration", "redis", "postgres", "upstreams", "ports")


@dataclass(frozen=True, slots=True)
class _Look:
    area: str
    run: Callable[[], AsyncIterator[Finding]]


async def examine_all(
    examined: Examined, *, areas: Collection[str] = AREAS, request: bool = False
) -> AsyncIterator[Finding]:
    """
    Every finding, area by area, as soon as it and all before it are known.

    With `request`, one request goes to each upstream that has credentials, and pays a permit like any other. When the
    configuration cannot be used, only that is reported.
    """
    looks = [_Look("configuration", lambda: examine_settings(examined))]
    config = examined.config
    if config is not None:
        looks += _looks(config, request=request)
    queues = [(look, asyncio.Queue[Finding | None]()) for look in looks if look.area in areas]
    async with asyncio.TaskGroup() as group:
        for look, queue in queues:
            group.create_task(_fill(look, queue))
        for _, queue in queues:
            while (finding := await queue.get()) is not None:
                yield finding


def _looks(config: Config, *, request: bool) -> list[_Look]:
    return [
        _Look("redis", lambda: examine_redis(config.redis, config.key_prefix)),
        _Look("postgres", lambda: examine_postgres(config.database)),
        _Look("upstreams", lambda: examine_upstreams(config, request=request)),
        _Look("ports", lambda: examine_ports(config)),
    ]


async def _fill(look: _Look, queue: asyncio.Queue[Finding | None]) -> None:
    try:
        async with asyncio.timeout(_AREA_TIMEOUT_S):
            async for finding in look.run():
                queue.put_nowait(finding)
    except TimeoutError:
        seen, remedy = f"no end after {_AREA_TIMEOUT_S:.0f} s", "it hangs; look at the server itself"
        queue.put_nowait(Area(look.area).failed("time", seen, remedy))
    finally:
        queue.put_nowait(None)
