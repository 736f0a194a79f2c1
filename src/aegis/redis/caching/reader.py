"""
From stored bytes to a value that may be trusted: decoded, its tags not invalidated, its age known.

The one place that fills the in-process tier.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from aegis.errors import RedisError
from aegis.redis.caching.envelope import Codec, Entry, unpack
from aegis.redis.caching.sharing import copier
from aegis.redis.caching.shelf import Patience, Shelf
from aegis.redis.caching.stats import Counters
from aegis.redis.caching.tags import Tags
from aegis.redis.caching.tier import LocalEntry, Ticket, Tier

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


class _Asking:
    """A question that is under way. `nothing`: the answer was that there is no such value of this type."""

    __slots__ = ("answered", "codec", "nothing", "ticket")

    def __init__(self, codec: Codec, ticket: Ticket) -> None:
        self.codec, self.ticket, self.answered, self.nothing = codec, ticket, asyncio.Event(), False


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

    def __init__(self, shelf: Shelf, tier: Tier, tags: Tags, counters: Counters, eagerness: float) -> None:
        self._shelf, self._tier, self._tags, self._count, self._eagerness = shelf, tier, tags, counters, eagerness
        self._asking: dict[str, _Asking] = {}
        self._soft_at: dict[bytes, float] = {}  # without the tier: identity of a stored value -> when it becomes stale

    async def read(self, key: str, codec: Codec, *, aged: bool = True) -> Reading | None:
        """
        What lies in Redis under this key, fresh or stale, if it can be read as the codec's type.

        Its age is known where the value may be stale, or with `aged`.
        """
        tier, shelf = self._tier, self._shelf
        if tier.entries_max and tier.trusted:
            return await self._read_together(key, codec)
        if not shelf.outage.up or not shelf.enabled:
            return None
        asked_at = monotonic()
        try:  # `shelf.ask`, without its steps: this is the hot path
            raw = await shelf.redis.execute("GET", f"{shelf.values}{{{key}}}", timeout=shelf.patience_s)
        except RedisError as exc:
            shelf.failed(exc)
            return None
        if not raw:
            return None
        entry, value = self._decoded(raw, codec)
        if entry is None or (entry.tags and not await self._holds(entry, self._what_is_left(asked_at))):
            return None
        reading = Reading(value, entry.payload, entry.identity, entry.soft_ms / 1000, entry.delta_us / 1e6)
        if aged or entry.soft_ms != entry.hard_ms:
            soft_at = self._soft_at.get(entry.identity)
            if soft_at is None:
                soft_at = await self._learn_age(key, entry, self._what_is_left(asked_at))
            reading.fresh_left_s = soft_at - monotonic()
        return reading

    async def _read_together(self, key: str, codec: Codec) -> Reading | None:
        """
        Who asks while another asks waits for that answer and takes it from the tier.

        That is as coherent as the tier: a question is not joined any more once a change of the key was heard.
        """
        asking = self._asking.get(key)
        if asking is not None and asking.codec is codec and asking.ticket.valid:
            await asking.answered.wait()
            local = self._tier.entries.get(key)
            if local is not None and local.type == codec.type and self._tier.trusted:
                return Reading.of_local(local, monotonic())
            if asking.nothing:
                return None
        ticket = self._tier.begin(key)
        if ticket is None:
            return (await self.read_all([key], codec)).get(key)
        asking = self._asking[key] = _Asking(codec, ticket)
        try:
            reading = (await self.read_all([key], codec)).get(key)
            asking.nothing = reading is None
            return reading
        finally:
            self._tier.end(key, ticket)
            if self._asking.get(key) is asking:
                del self._asking[key]
            asking.answered.set()

    def _what_is_left(self, asked_at: float) -> Patience:
        return self._shelf.patience(spent_s=monotonic() - asked_at)

    async def _learn_age(self, key: str, entry: Entry, patience: Patience) -> float:
        """Ask once for each stored value how long it lives; later readers of the same one need not."""
        asked_at, left_ms = monotonic(), await self._shelf.ttl_ms(key, patience)
        soft_at = asked_at + fresh_left_s(entry, left_ms)
        if len(self._soft_at) >= _AGES_MAX:
            self._soft_at.clear()
        if left_ms >= 0:
            self._soft_at[entry.identity] = soft_at
        return soft_at

    async def read_all(self, keys: Sequence[str], codec: Codec) -> dict[str, Reading]:
        """As `read`, for many keys in one round trip (one more for those of their tags that are not known)."""
        if not keys:
            return {}
        asked_at, patience = monotonic(), self._shelf.patience(keys=len(keys))
        tickets = {key: self._tier.begin(key) for key in keys}
        found: dict[str, Reading] = {}
        try:
            answers = dict(zip(keys, await self._shelf.get_all(keys, patience), strict=True))
            decoded = {key: self._decoded(raw, codec) for key, (raw, _) in answers.items() if raw}
            entries = {key: entry for key, (entry, _) in decoded.items() if entry is not None}
            held = await self._tags.hold(list(entries.values()), patience)
            for (key, entry), holds in zip(entries.items(), held, strict=True):
                if not holds:
                    continue
                ticket, left_ms = tickets[key], answers[key][1]
                reading = found[key] = Reading.of_entry(decoded[key][1], entry, left_ms)
                if ticket is not None and ticket.valid:
                    self._keep(key, reading, entry, codec, left_ms, asked_at)
        finally:
            for key, ticket in tickets.items():
                self._tier.end(key, ticket)
        return found

    async def readable(
        self, raw: Any, left_ms: int, codec: Codec, patience: Patience
    ) -> tuple[Reading, Entry] | tuple[None, None]:
        """The reading in these bytes and its entry, if the type, the version and the tags' generations are right."""
        entry, value = self._decoded(raw, codec)
        if entry is None or not await self._holds(entry, patience):
            return None, None
        return Reading.of_entry(value, entry, left_ms), entry

    async def _holds(self, entry: Entry, patience: Patience) -> bool:
        return (await self._tags.hold([entry], patience))[0]

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

    def _keep(  # noqa: PLR0917 - a private step with one caller's locals
        self, key: str, reading: Reading, entry: Entry, codec: Codec, left_ms: int, asked_at: float
    ) -> None:
        """Into the tier, unless a tag was invalidated on the way (its generation is then not known)."""
        if left_ms < -1 or not self._tags.known(entry):
            return
        copy = copier(reading.value, partial(codec.payload, entry.payload))
        local = LocalEntry(reading.value, copy, codec.type, len(entry.payload) + len(key))
        local.expires_at = asked_at + left_ms / 1000 if left_ms >= 0 else math.inf
        local.soft_at = asked_at + reading.fresh_left_s
        local.delta_s, local.identity = reading.delta_s, entry.identity
        local.fresh_until = local.soft_at - reading.delta_s * self._eagerness * _EARLIEST_LOADS
        local.tags = tuple(tag for tag, _ in entry.tags)
        if copy is not None:
            reading.value = copy()  # the tier's own object is nobody else's
        self._tier.keep(key, local)
