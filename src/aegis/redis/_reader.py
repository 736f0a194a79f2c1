"""
From stored bytes to a value that may be trusted: decoded, its tags not invalidated, its age known.

The one place that fills the in-process tier.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from aegis.errors import RedisError
from aegis.redis._cache_stats import Counters
from aegis.redis._envelope import Codec, Entry, unpack
from aegis.redis._sharing import copier
from aegis.redis._shelf import Shelf
from aegis.redis._tier import LocalEntry, Tier

#: -ln(1e-6): an early refresh begins before this many load times with a chance of one in a million.
_EARLIEST_LOADS = 14.0
#: How many stored values' ages are remembered.
_AGES_MAX = 10_000


class Reading(msgspec.Struct, gc=False):
    """A value that was found, and how fresh it is."""

    value: Any
    payload: bytes
    identity: bytes
    fresh_left_s: float
    delta_s: float

    @classmethod
    def of_entry(cls, value: Any, entry: Entry, left_ms: int) -> Reading:
        """From Redis, with what is left of its time to live (negative: it has none)."""
        return cls(value, entry.payload, entry.identity, fresh_left_s(entry, left_ms), entry.delta_us / 1e6)

    @classmethod
    def of_local(cls, local: LocalEntry, now: float) -> Reading:
        """From the tier; a value that can be changed is copied."""
        value = local.value if local.copy is None else local.copy()
        return cls(value, b"", local.identity, local.soft_at - now, local.delta_s)


def fresh_left_s(entry: Entry, left_ms: int) -> float:
    """How long an entry is fresh that has so much of its time to live left (negative: it has none, so it is new)."""
    return (entry.soft_ms - entry.hard_ms + left_ms if left_ms >= 0 else entry.soft_ms) / 1000


def is_early(fresh_left_s: float, delta_s: float, eagerness: float) -> bool:
    """
    Whether this caller shall refresh before the value expires.

    XFetch (Vattani, Chierichetti, Lowenstein: "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015): the more
    callers and the slower the load, the earlier one of them begins.
    """
    if fresh_left_s > delta_s * eagerness * _EARLIEST_LOADS:
        return False
    return -math.log(1.0 - random.random()) * delta_s * eagerness >= fresh_left_s


class Reader:
    """Reads values of one shelf and keeps them in the tier."""

    def __init__(self, shelf: Shelf, tier: Tier, counters: Counters, eagerness: float) -> None:
        self._shelf, self._tier, self._count, self._eagerness = shelf, tier, counters, eagerness
        self._soft_at: dict[bytes, float] = {}  # without the tier: identity of a stored value -> when it becomes stale

    async def read(self, key: str, codec: Codec, *, aged: bool = True) -> Reading | None:
        """
        What lies in Redis under this key, fresh or stale, if it can be read as the codec's type.

        Its age is known where the value may be stale, or with `aged`.
        """
        tier, shelf = self._tier, self._shelf
        if tier.entries_max and tier.trusted:
            return await self._read_and_keep(key, codec)
        if not shelf.outage.up or not shelf.enabled:
            return None
        try:  # `shelf.get`, without its steps: this is the hot path
            raw = await shelf.redis.execute("GET", f"{shelf.values}{{{key}}}", timeout=shelf.patience_s)
        except RedisError as exc:
            shelf.failed(exc)
            return None
        if not raw:
            return None
        entry, value = self._decoded(raw, codec)
        if entry is None or (entry.tags and not await self._tags_hold(entry)):
            return None
        reading = Reading(value, entry.payload, entry.identity, entry.soft_ms / 1000, entry.delta_us / 1e6)
        if aged or entry.soft_ms != entry.hard_ms:
            soft_at = self._soft_at.get(entry.identity)
            if soft_at is None:
                soft_at = await self._learn_age(key, entry)
            reading.fresh_left_s = soft_at - monotonic()
        return reading

    async def _learn_age(self, key: str, entry: Entry) -> float:
        """Ask once for each stored value how long it lives; later readers of the same one need not."""
        asked_at, left_ms = monotonic(), await self._shelf.ttl_ms(key)
        soft_at = asked_at + fresh_left_s(entry, left_ms)
        if len(self._soft_at) >= _AGES_MAX:
            self._soft_at.clear()
        if left_ms >= 0:
            self._soft_at[entry.identity] = soft_at
        return soft_at

    async def _read_and_keep(self, key: str, codec: Codec) -> Reading | None:
        asked_at, ticket = monotonic(), self._tier.begin(key)
        try:
            raw, left_ms = await self._shelf.get_with_ttl(key)
            if not raw:
                return None
            reading, entry = await self.readable(raw, left_ms, codec)
            if reading is not None and entry is not None and ticket is not None and ticket.valid:
                self._keep(key, reading, entry, codec, left_ms, asked_at)
            return reading
        finally:
            self._tier.end(key, ticket)

    async def read_all(self, keys: Sequence[str], codec: Codec) -> dict[str, Reading]:
        """As `read`, for many keys in one round trip."""
        asked_at = monotonic()
        tickets = {key: self._tier.begin(key) for key in keys}
        found: dict[str, Reading] = {}
        try:
            answers = await self._shelf.get_all(keys, with_ttl=True)
            for key, (raw, left_ms) in zip(keys, answers, strict=True):
                if not raw:
                    continue
                reading, entry = await self.readable(raw, left_ms, codec)
                if reading is None or entry is None:
                    continue
                found[key] = reading
                ticket = tickets[key]
                if ticket is not None and ticket.valid:
                    self._keep(key, reading, entry, codec, left_ms, asked_at)
        finally:
            for key, ticket in tickets.items():
                self._tier.end(key, ticket)
        return found

    async def readable(self, raw: Any, left_ms: int, codec: Codec) -> tuple[Reading, Entry] | tuple[None, None]:
        """The reading in these bytes and its entry, if the type, the version and the tags' generations are right."""
        entry, value = self._decoded(raw, codec)
        if entry is None or (entry.tags and not await self._tags_hold(entry)):
            return None, None
        return Reading.of_entry(value, entry, left_ms), entry

    def _decoded(self, raw: Any, codec: Codec) -> tuple[Entry, Any] | tuple[None, None]:
        entry = unpack(raw)
        if entry is not None:
            try:
                value = codec.decode(entry)
            except (ValueError, RecursionError):  # msgspec's decoding errors are ValueErrors
                pass
            else:
                self._count.bytes_read += len(raw)
                return entry, value
        self._count.unreadable += 1
        return None, None

    async def _tags_hold(self, entry: Entry) -> bool:
        unknown = []
        for tag, generation in entry.tags:
            known = self._tier.generation(tag)
            if known is None:
                unknown.append(tag)
            elif known != generation:
                return False
        if not unknown:
            return True
        tickets = [self._tier.begin(tag, tag=True) for tag in unknown]
        try:
            present = dict(zip(unknown, await self._shelf.generations(unknown), strict=True))
            for tag, ticket in zip(unknown, tickets, strict=True):
                now = present[tag]
                if now is not None and ticket is not None and ticket.valid:
                    self._tier.keep_generation(tag, now)
        finally:
            for tag, ticket in zip(unknown, tickets, strict=True):
                self._tier.end(tag, ticket, tag=True)
        return all(present.get(tag, generation) == generation for tag, generation in entry.tags)

    def _keep(  # noqa: PLR0917 - a private step with one caller's locals
        self, key: str, reading: Reading, entry: Entry, codec: Codec, left_ms: int, asked_at: float
    ) -> None:
        """Into the tier, unless a tag was invalidated on the way (its generation is then not known)."""
        if left_ms < -1 or any(self._tier.generation(tag) != generation for tag, generation in entry.tags):
            return
        copy = copier(reading.value, partial(codec.payload, entry.payload))
        local = LocalEntry(reading.value, copy, codec.type, len(entry.payload) + len(key))
        local.expires_at = asked_at + left_ms / 1000 if left_ms >= 0 else math.inf
        local.soft_at = min(asked_at + reading.fresh_left_s, local.expires_at)
        local.delta_s, local.identity = reading.delta_s, entry.identity
        local.fresh_until = local.soft_at - reading.delta_s * self._eagerness * _EARLIEST_LOADS
        local.tags = tuple(tag for tag, _ in entry.tags)
        if copy is not None:
            reading.value = copy()  # the tier's own object is nobody else's
        self._tier.keep(key, local)
