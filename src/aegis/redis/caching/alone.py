"""
What this process has loaded while Redis is away, served again for a moment.

Without it an outage turns every miss into a load: callers who come one after the other do not meet in a flight. Nobody
can tell this process of changes meanwhile, so the moment is short, and it ends when Redis is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from aegis.redis.caching.envelope import Codec

KEPT_S = 1.0
_ENTRIES_MAX = 10_000


class _Kept(NamedTuple):
    until: float
    codec: Codec
    copies: Callable[[], Any]
    tags: tuple[str, ...]


class Alone:
    """Values by key. What has been kept longest goes first when there are too many."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def keep(self, key: str, codec: Codec, copies: Callable[[], Any], tags: tuple[str, ...], ttl_s: float) -> None:
        """For a moment, at most for its time to live."""
        self._kept.pop(key, None)
        if len(self._kept) >= _ENTRIES_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = _Kept(time.monotonic() + min(KEPT_S, ttl_s), codec, copies, tags)

    def get(self, key: str, codec: Codec) -> Callable[[], Any] | None:
        """What makes a caller's own copy; None when there is nothing (of this type)."""
        kept = self._kept.get(key)
        if kept is None or kept.codec is not codec:
            return None
        if kept.until <= time.monotonic():
            del self._kept[key]
            return None
        return kept.copies

    def forget(self, key: str) -> None:
        """The key was set or deleted."""
        self._kept.pop(key, None)

    def forget_tag(self, tag: str) -> None:
        """The tag was invalidated."""
        for key in [key for key, kept in self._kept.items() if tag in kept.tags]:
            del self._kept[key]

    def clear(self) -> None:
        """Redis is back: it knows better."""
        self._kept.clear()
