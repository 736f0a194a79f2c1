"""
The in-process tier: decoded values that the server promises to call back.

Redis reports every change of a tracked key on the invalidation link (CLIENT TRACKING, see `tether.py`). Three things
keep an old value out:

1. Trust has an end. `heard(sent_at)` prolongs it; without it nothing is served any more, whatever the loop was doing
   meanwhile (a stopped process wakes up distrusting). A lost link empties the tier.
2. A read takes a ticket before it asks. An invalidation that arrives while the answer is on its way makes the ticket
   void, and the answer is not kept.
3. Every change drops the entry, our own included: the server merges the changes of one turn into one message, so "that
   one was mine" could hide somebody else's.

Eviction is second chance over insertion order: a hit costs one flag. Rejected: LRU (moves an element on every hit).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

#: How long after a PING was sent its answer vouches for the tier. The link pings every second and gives up on an
#: answer after another one, so a dead link is never trusted for longer than this.
TRUST_S = 2.5
#: Python's own cost of an entry beside its encoded size, in bytes.
_OVERHEAD_BYTES = 600


class LocalEntry:
    """One decoded value. `copy` makes another caller's own copy; None: the value cannot be changed, share it."""

    __slots__ = (
        "copy", "delta_s", "expires_at", "fresh_until", "identity", "size", "soft_at", "tags", "type", "used", "value",
    )  # fmt: skip

    def __init__(self, value: Any, copy: Callable[[], Any] | None, type_: Any, size: int) -> None:
        self.value, self.copy, self.type, self.size = value, copy, type_, size + _OVERHEAD_BYTES
        self.fresh_until = self.soft_at = self.expires_at = self.delta_s = 0.0
        self.identity = b""
        self.tags: tuple[str, ...] = ()
        self.used = False


class Ticket:
    """The right to keep an answer; void once something changed."""

    __slots__ = ("readers", "valid")

    def __init__(self) -> None:
        self.readers, self.valid = 0, True


class Tier:
    """Entries by key, bounded by number and by bytes. Not trusted until first `heard`."""

    def __init__(self, entries_max: int, bytes_max: int) -> None:
        self.entries: OrderedDict[str, LocalEntry] = OrderedDict()
        self.trusted_until = 0.0  #: monotonic
        self.entries_max, self.bytes_max = entries_max, bytes_max
        self.bytes = self.evictions = self.invalidations = 0
        self._by_tag: dict[str, set[str]] = {}
        self._generations: OrderedDict[str, bytes] = OrderedDict()
        self._tickets: dict[tuple[bool, str], Ticket] = {}

    @property
    def trusted(self) -> bool:
        """Whether entries may be served and kept."""
        return monotonic() < self.trusted_until

    def heard(self, sent_at: float) -> None:
        """All changes that happened before `sent_at` have been reported."""
        if self.entries_max:
            self.trusted_until = sent_at + TRUST_S

    def distrust(self) -> None:
        """Changes may have been missed: forget everything."""
        self.trusted_until = 0.0
        self.clear()

    def clear(self) -> None:
        """Forget all entries, also those about to be kept."""
        self.entries.clear()
        self._by_tag.clear()
        self._generations.clear()
        self.bytes = 0
        for ticket in self._tickets.values():
            ticket.valid = False
        self._tickets.clear()

    # --- reading from Redis ---

    def begin(self, name: str, *, tag: bool = False) -> Ticket | None:
        """A ticket for an answer about to be asked for; None while the tier is not trusted. Give it back with `end`."""
        if not self.trusted:
            return None
        ticket = self._tickets.get((tag, name))
        if ticket is None:
            ticket = self._tickets[tag, name] = Ticket()
        ticket.readers += 1
        return ticket

    def end(self, name: str, ticket: Ticket | None, *, tag: bool = False) -> None:
        """The answer has been kept or thrown away."""
        if ticket is not None:
            ticket.readers -= 1
            if not ticket.readers and self._tickets.get((tag, name)) is ticket:
                del self._tickets[tag, name]

    def keep(self, key: str, entry: LocalEntry) -> None:
        """Keep an entry whose tickets are valid."""
        if entry.size > self.bytes_max // 8:
            return
        self.drop(key)
        self.entries[key] = entry
        self.bytes += entry.size
        for tag in entry.tags:
            self._by_tag.setdefault(tag, set()).add(key)
        while len(self.entries) > self.entries_max or self.bytes > self.bytes_max:
            self._evict_one()

    def _evict_one(self) -> None:
        key, entry = next(iter(self.entries.items()))
        if entry.used:
            entry.used = False
            self.entries.move_to_end(key)
        else:
            self.drop(key)
            self.evictions += 1

    # --- tags ---

    def generation(self, tag: str) -> bytes | None:
        """The present generation of a tag, if it is known and trusted."""
        return self._generations.get(tag) if self.trusted else None

    def keep_generation(self, tag: str, generation: bytes) -> None:
        """Keep a generation whose ticket is valid."""
        self._generations[tag] = generation
        if len(self._generations) > max(self.entries_max, 1):
            self._generations.popitem(last=False)

    # --- invalidation ---

    def drop(self, key: str) -> bool:
        """Forget an entry, and make void what is on its way. Whether there was one."""
        ticket = self._tickets.pop((False, key), None) if self._tickets else None
        if ticket is not None:
            ticket.valid = False
        entry = self.entries.pop(key, None)
        if entry is None:
            return False
        self.bytes -= entry.size
        for tag in entry.tags:
            keys = self._by_tag.get(tag)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._by_tag[tag]
        return True

    def drop_tag(self, tag: str) -> int:
        """Forget a tag's generation and every entry that carries it."""
        ticket = self._tickets.pop((True, tag), None)
        if ticket is not None:
            ticket.valid = False
        self._generations.pop(tag, None)
        return sum(map(self.drop, tuple(self._by_tag.get(tag, ()))))

    def invalidated(self, keys: Iterable[str], tags: Iterable[str]) -> None:
        """The server says that these have changed."""
        self.invalidations += sum(map(self.drop, keys)) + sum(map(self.drop_tag, tags))
