"""The shared server: reachable, new enough, near enough, keeps what it is given, and lets us do what we do."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aegis.config import RedisConfig
from aegis.doctor.finding import Area, Finding
from aegis.embedded.valkey import valkey_binary
from aegis.errors import RedisError, RedisUnavailableError, ServerReplyError, ServerStartError
from aegis.redis import Redis

_AREA = Area("redis")
_PINGS = 20
_SLOW_S = 0.005  #: each permit is a round trip; above this, 18 of them are a tenth of a second
_CLOCK_OFFSET_S_MAX = 1.0
_FULL = 0.8
#: Valkey has always been new enough; of Redis, what limits, cache and broadcast are tested with begins here.
_OLDEST = (6, 2)
_PROBE_TTL_MS = 1000


async def examine_redis(config: RedisConfig, prefix: str) -> AsyncIterator[Finding]:
    """Connects once; writes nothing but one key that is gone a second later."""
    if not config.enabled:
        remedy = "set it to true for any process that shares a quota with another"
        yield _AREA.warning("connection", "REDIS_ENABLED=false: no limit, cache or broadcast", remedy)
        return
    if config.embedded:
        yield _embedded()
        return
    try:
        async with Redis(config) as redis:
            async for finding in _connected(redis, config, prefix):
                yield finding
    except RedisUnavailableError as exc:
        yield _AREA.failed("connection", f"{exc.address}: {exc.cause}", _remedy(exc.cause))
    except RedisError as exc:
        yield _AREA.failed("connection", str(exc), "it was lost during this look: see the server's log")


def _embedded() -> Finding:
    try:
        return _AREA.ok("connection", f"embedded: each process starts its own, from {valkey_binary()}")
    except ServerStartError as exc:
        return _AREA.failed("connection", "REDIS_URL=embedded:, but the server is not installed", exc.reason)


def _remedy(cause: str) -> str:
    text = cause.lower()
    if any(word in text for word in ("wrongpass", "noauth", "auth", "password")):
        return "set REDIS_PASSWORD (and REDIS_USERNAME for an ACL user) to what the server knows"
    if "noperm" in text:
        return "give the ACL user what docs/operations.md lists"
    if "ssl" in text or "tls" in text or "certificate" in text:
        return "rediss:// or REDIS_TLS=true if and only if the server speaks TLS; its authority in REDIS_TLS_CA_FILE"
    if any(word in text for word in ("name", "resolve", "nodename", "address")):
        return "REDIS_HOST cannot be resolved from here: check the name and the network"
    return "start the server, or set REDIS_URL or REDIS_HOST and REDIS_PORT; `aegis up` starts one to try things out"


async def _connected(redis: Redis, config: RedisConfig, prefix: str) -> AsyncIterator[Finding]:
    yield _AREA.ok("connection", config.address)
    yield await _latency(redis)
    try:
        info = _parsed(await redis.execute("INFO"))
    except ServerReplyError as exc:
        yield _AREA.warning("server", f"INFO is refused: {exc.message}", "allow the ACL user +info, to see more")
    else:
        for finding in (_version(info), _role(info), *_memory(info), _persistence(info), _clients(info)):
            yield finding
        if info.get("cluster_enabled") == "1":
            yield await _cluster(redis)
    yield await _clock(redis)
    yield await _scripts(redis, prefix)
    yield await _broadcast(redis, prefix)


def _parsed(reply: Any) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, _, value in lines if value}


async def _latency(redis: Redis) -> Finding:
    taken = sorted([await redis.ping() for _ in range(_PINGS)])
    median, worst = taken[_PINGS // 2], taken[-1]
    seen = f"{median * 1e3:.2f} ms median, {worst * 1e3:.2f} ms worst of {_PINGS}"
    return _AREA.judged("latency", seen, median > _SLOW_S, "every permit pays it: run the processes near the server")


def _version(info: Mapping[str, str]) -> Finding:
    valkey = info.get("valkey_version")
    version = valkey or info.get("redis_version", "0")
    seen = f"{'Valkey' if valkey else 'Redis'} {version}"
    old = not valkey and tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST
    return _AREA.judged("version", seen, old, f"upgrade to Valkey 8 or Redis {_OLDEST[0]}.{_OLDEST[1]} or later")


def _role(info: Mapping[str, str]) -> Finding:
    role = info.get("role", "unknown")
    if role == "slave":
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        return _AREA.failed("role", "a replica: it refuses every write", f"point REDIS_URL at the primary, {primary}")
    return _AREA.ok("role", "primary" if role == "master" else role)


def _memory(info: Mapping[str, str]) -> list[Finding]:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    policy, evicted = info.get("maxmemory_policy", "unknown"), int(info.get("evicted_keys", 0))
    mib = 1024 * 1024
    seen = f"{used / mib:.0f} MiB of {most / mib:.0f} MiB" if most else f"{used / mib:.0f} MiB, no maxmemory"
    found = [_AREA.judged("memory", seen, bool(most) and used > _FULL * most, "raise maxmemory, or store less")]
    if policy == "noeviction":
        found.append(_AREA.ok("maxmemory-policy", policy))
    elif most == 0 and not evicted:
        remedy = "set noeviction before you set maxmemory: limits and tokens must not be evicted"
        found.append(_AREA.warning("maxmemory-policy", f"{policy}, without effect so far", remedy))
    else:
        remedy = "set noeviction (CONFIG SET maxmemory-policy noeviction), or give the cache a server of its own"
        seen = f"{policy}: a full server forgets limits and tokens, and the quota is exceeded ({evicted} keys evicted)"
        found.append(_AREA.failed("maxmemory-policy", seen, remedy))
    return found


def _persistence(info: Mapping[str, str]) -> Finding:
    if info.get("rdb_last_bgsave_status", "ok") != "ok" or info.get("aof_last_write_status", "ok") != "ok":
        remedy = "look at the server's log (disk full? permissions?); until then it may refuse writes"
        return _AREA.failed("persistence", "the last write to disk failed", remedy)
    if info.get("aof_enabled") == "1":
        return _AREA.ok("persistence", "append-only file")
    saves = info.get("rdb_last_save_time", "0") != "0" and info.get("rdb_saves", "0") != "0"
    seen = "snapshots" if saves else "none seen"
    remedy = "appendonly yes keeps limits, holds and tokens over a restart; without it a restart forgets them"
    return _AREA.warning("persistence", seen, remedy)


def _clients(info: Mapping[str, str]) -> Finding:
    used, most = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    seen = f"{used} of {most} connections" if most else f"{used} connections"
    return _AREA.judged("clients", seen, bool(most) and used > _FULL * most, "raise maxclients, or find who leaks them")


async def _cluster(redis: Redis) -> Finding:
    state = _parsed(await redis.execute("CLUSTER", "INFO"))
    nodes, slots = state.get("cluster_known_nodes"), state.get("cluster_slots_ok")
    seen = f"{state.get('cluster_state')}, {nodes} nodes, {slots} slots; the lines above are one node's"
    if state.get("cluster_state") == "ok":
        return _AREA.ok("cluster", seen)
    return _AREA.failed("cluster", seen, "a primary is gone and has no replica: start it, or add replicas")


async def _clock(redis: Redis) -> Finding:
    before = time.time()
    try:
        seconds, micros = (int(part) for part in await redis.execute("TIME"))
    except ServerReplyError as exc:
        return _AREA.failed("clock", f"TIME is refused: {exc.message}", "allow the ACL user +time: limits need it")
    offset = seconds + micros / 1e6 - (before + time.time()) / 2
    seen = f"{offset:+.3f} s from this machine's"
    remedy = "limits hold all the same (they use the server's clock alone); set both with NTP for tokens and timestamps"
    return _AREA.judged("clock", seen, abs(offset) > _CLOCK_OFFSET_S_MAX, remedy)


async def _scripts(redis: Redis, prefix: str) -> Finding:
    """One script that does what ours do: asks the time, writes a key below our prefix, and reads it."""
    source = "redis.call('TIME') redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return redis.call('GET', KEYS[1])"
    key = f"{prefix}:doctor:{{probe}}"
    try:
        reply = await redis.execute("EVAL", source, 1, key, "1", _PROBE_TTL_MS)
    except ServerReplyError as exc:
        remedy = f"allow the ACL user +@scripting, +@read, +@write and the keys ~{prefix}:*"
        return _AREA.failed("scripts", exc.message, remedy)
    return _AREA.ok("scripts", "run, and may write") if reply == b"1" else _AREA.failed("scripts", repr(reply), "")


async def _broadcast(redis: Redis, prefix: str) -> Finding:
    try:
        await redis.execute("PUBLISH", f"{prefix}:doctor", "")
    except ServerReplyError as exc:
        return _AREA.failed("broadcast", exc.message, f"allow the ACL user +@pubsub and the channels &{prefix}:*")
    return _AREA.ok("broadcast", "may publish")
