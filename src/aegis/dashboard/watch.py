"""
What no process tells about itself: how full the limits' windows are, and how the servers are.

Both are asked of the servers here, once for all pages, and told on the vitals' topic beside what the processes tell.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aegis.config import Config
from aegis.errors import AegisError
from aegis.redis import RateLimit
from aegis.runtime import Runtime
from aegis.upstream import (
    DART_RATE_LIMIT,
    KIS_PAPER_RATE_LIMIT,
    KIS_RATE_LIMIT,
    KIS_TOKEN_RATE_LIMIT,
    NAVER_RATE_LIMIT,
)

LIMITS_EVERY_S = 0.2
SERVERS_EVERY_S = 1.0
_PATIENCE_S = 2.0

Tell = Callable[[str, Any], Awaitable[None]]


class Watched(NamedTuple):
    """A limit, and the account whose window is shown."""

    label: str
    limit: RateLimit
    key: str


def limits_of(config: Config) -> list[Watched]:
    """Those of the configured accounts."""
    app_key = config.kis.app_key.get_secret_value() if config.kis.app_key else ""
    api_key = config.dart.api_key.get_secret_value() if config.dart.api_key else ""
    paper = config.kis.is_virtual
    return [
        Watched(
            "KIS 한국투자증권" + (" 모의투자" if paper else ""),
            KIS_PAPER_RATE_LIMIT if paper else KIS_RATE_LIMIT,
            app_key,
        ),
        Watched("DART 전자공시", DART_RATE_LIMIT, api_key),
        Watched("Naver 네이버 금융", NAVER_RATE_LIMIT, ""),
        Watched("KIS 토큰 (access token)", KIS_TOKEN_RATE_LIMIT, app_key),
    ]


async def watch_limits(rt: Runtime, watched: list[Watched], tell: Tell) -> None:
    """Tell how full every window is, for ever. While Redis is away, nothing is told: the page shows its age."""
    while True:
        with contextlib.suppress(AegisError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await tell("limits", [await _window(rt, each) for each in watched])
        await asyncio.sleep(LIMITS_EVERY_S)


async def _window(rt: Runtime, watched: Watched) -> dict[str, Any]:
    usage = await rt.limiter.peek(watched.limit, watched.key)
    rate = watched.limit.rates[0]
    return {
        "name": watched.limit.name,
        "label": watched.label,
        "limit": rate.limit,
        "per": rate.per,
        "used": usage.used,
        "next_in": usage.next_in,
        "held_for": usage.held_for,
    }


async def watch_servers(rt: Runtime, tell: Tell, *, database: bool) -> None:
    """Tell how the servers are, for ever."""
    while True:
        servers = {"Valkey / Redis": await _look(_redis(rt))}
        if database:
            servers["PostgreSQL"] = await _look(_postgres(rt))
        with contextlib.suppress(AegisError):  # Redis is away: it will be told when it is back
            await tell("servers", servers)
        await asyncio.sleep(SERVERS_EVERY_S)


async def _look(asking: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return {"ok": True, **await asking}
    except AegisError as exc:
        return {"ok": False, "problem": str(exc)[:200]}
    except TimeoutError:
        return {"ok": False, "problem": f"no answer within {_PATIENCE_S:g} s"}


async def _redis(rt: Runtime) -> dict[str, Any]:
    ping_s = await rt.redis.ping()
    info = dict(line.split(":", 1) for line in (await rt.redis.execute("INFO")).decode().splitlines() if ":" in line)
    version = info.get("valkey_version") or info.get("redis_version", "?")
    memory, clients = info.get("used_memory_human", "?"), info.get("connected_clients", "?")
    return {"ping_s": ping_s, "about": f"{version}, {memory} used, {clients} clients"}


async def _postgres(rt: Runtime) -> dict[str, Any]:
    ping_s = await rt.db.ping()
    version = await rt.db.fetch_value("show server_version")
    clients = await rt.db.fetch_value("select count(*) from pg_stat_activity where backend_type = 'client backend'")
    return {"ping_s": ping_s, "about": f"{version}, {clients} clients"}
