"""Looking in: what lies in Redis under a key, without knowing its type, and which keys there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aegis.redis._core import Core
from aegis.redis._envelope import Entry, codec_for
from aegis.redis._reader import Reading
from aegis.redis._shelf import UNANSWERED

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


async def keys(core: Core, space: str, pattern: str, limit: int) -> list[str]:
    """What `Cache.keys` says."""
    start, found, cursor = core.shelf.values + "{" + space, set[str](), b"0"
    match = "".join(f"\\{char}" if char in "*?[]\\" else char for char in start) + pattern + "}"
    while len(found) < limit:
        reply = await core.shelf.ask("SCAN", cursor, "MATCH", match, "COUNT", _SCAN_COUNT)
        core.answered(reply)
        if reply is UNANSWERED:
            break
        cursor, names = reply
        found.update(name.decode(errors="replace")[len(start) : -1] for name in names)
        if cursor == b"0":
            break
    return sorted(found)[:limit]
