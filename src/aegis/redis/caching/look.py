"""Looking in: what lies in Redis under a key, without knowing its type, which keys there are, and what fills it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError as RedisPyError

from aegis.errors import RedisUnavailableError
from aegis.redis.caching.core import Core
from aegis.redis.caching.envelope import Entry, codec_for
from aegis.redis.caching.reader import Reading
from aegis.redis.caching.shelf import UNANSWERED

_SCAN_COUNT = 500  #: keys that the server looks at in one step; it serves others between the steps


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What `inspect` shows of a value."""

    key: str
    value: Any  #: as plain lists, dicts and scalars
    expires_in_s: float | None  #: None: never
    fresh_for_s: float  #: negative: it is served only within `stale_s`
    load_s: float  #: how long its load took; 0.0 when it was set
    tags: tuple[str, ...]
    bytes: int  #: in Redis, with its envelope


@dataclass(frozen=True, slots=True)
class Found:
    """A value that can be trusted, as it lies in Redis."""

    reading: Reading
    entry: Entry
    left_ms: int
    bytes: int


async def find(core: Core, name: str, type_: Any) -> Found | None:
    """What lies in Redis, past the in-process tier."""
    patience = core.shelf.patience()
    [(raw, left_ms)] = await core.shelf.get_all([name], patience)
    core.answered(raw)
    if not raw:
        return None
    reading, entry = await core.reader.readable(raw, left_ms, codec_for(type_), patience)
    return Found(reading, entry, left_ms, len(raw)) if reading is not None and entry is not None else None


async def inspect(core: Core, key: str, name: str) -> CacheEntry | None:
    """What `Cache.inspect` says."""
    found = await find(core, name, Any)
    if found is None:
        return None
    reading, expires_in_s = found.reading, found.left_ms / 1000 if found.left_ms >= 0 else None
    tags = tuple(tag for tag, _ in found.entry.tags)
    return CacheEntry(key, reading.value, expires_in_s, reading.fresh_left_s, reading.delta_s, tags, found.bytes)


@dataclass(frozen=True, slots=True)
class CacheSurvey:
    """What a walk over the server's keys has found; what came or went meanwhile may or may not be in it."""

    values: int
    bytes: int  #: of these values, with their envelopes, without the server's own overhead
    loading: int  #: keys that some process is loading
    failing: int  #: keys that are kept quiet because their load has just failed
    tags: int  #: tags that something may carry
    groups: Mapping[str, tuple[int, int]]  #: by what stands before the first colon: values and bytes, largest first


async def survey(core: Core, on_step: Callable[[int, int], None]) -> CacheSurvey:
    """What `Cache.survey` says."""
    shelf, groups, states, tags, looked_at = core.shelf, dict[str, tuple[int, int]](), [b""], 0, 0
    total = await shelf.ask("DBSIZE") or 0
    async for names in _scan(core, _literally(f"{shelf.prefix}:") + "*"):
        tags += sum(name.startswith(shelf.generation_keys) for name in names)
        leases = [name for name in names if name.startswith(shelf.leases)]
        values = [name for name in names if name.startswith(shelf.values)]
        patience = shelf.patience(keys=len(names) + 1)
        sizes = await shelf.ask_all([("STRLEN", name) for name in values], patience) if values else []
        states += await shelf.ask_all([("GETRANGE", name, 0, 0) for name in leases], patience) if leases else []
        for name, size in zip(values, sizes, strict=True):
            if size:  # else it is gone, or not a value
                group = name[len(shelf.values) + 1 : -1].partition(":")[0]
                count, in_all = groups.get(group, (0, 0))
                groups[group] = (count + 1, in_all + size)
        looked_at += _SCAN_COUNT
        on_step(min(looked_at, total), total)
    largest = sorted(groups.items(), key=lambda group: group[1][1], reverse=True)
    return CacheSurvey(
        values=sum(count for count, _ in groups.values()), bytes=sum(size for _, size in groups.values()),
        loading=sum(state in {b"0", b"1"} for state in states), failing=states.count(b"E"), tags=tags,
        groups=dict(largest),
    )  # fmt: skip


async def keys(core: Core, space: str, pattern: str, limit: int) -> list[str]:
    """What `Cache.keys` says."""
    start, found = core.shelf.values + "{" + space, set[str]()
    async for names in _scan(core, _literally(start) + pattern + "}"):
        found.update(name[len(start) : -1] for name in names)
        if len(found) >= limit:
            break
    return sorted(found)[:limit]


def _literally(text: str) -> str:
    """The glob pattern that matches this text."""
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in text)


async def _scan(core: Core, match: str) -> AsyncIterator[list[str]]:
    """The names that match, some at a time, never a whole server at once."""
    async for names in _scan_nodes(core, match) if core.redis.config.mode == "cluster" else _scan_server(core, match):
        yield [name.decode(errors="replace") for name in names]


async def _scan_server(core: Core, match: str) -> AsyncIterator[list[bytes]]:
    cursor = b"0"
    while True:
        reply = await core.shelf.ask("SCAN", cursor, "MATCH", match, "COUNT", _SCAN_COUNT)
        core.answered(reply)
        if reply is UNANSWERED:
            return
        cursor, names = reply
        yield names
        if cursor == b"0":
            return


async def _scan_nodes(core: Core, match: str) -> AsyncIterator[list[bytes]]:
    """All primaries of a cluster, one after the other, through redis-py, which knows how to walk them."""
    names: list[bytes] = []
    try:
        async for name in core.redis.raw.scan_iter(match=match, count=_SCAN_COUNT):
            names.append(name)
            if len(names) == _SCAN_COUNT:
                yield names
                names = []
    except RedisPyError as exc:
        core.answered(core.shelf.failed(RedisUnavailableError(core.redis.config.address, f"SCAN: {exc}")))
    yield names
