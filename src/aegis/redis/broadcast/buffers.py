"""
What waits for one consumer, by policy: pure bookkeeping, no I/O; `now` is an argument.

The socket's reader calls `offer` and never waits; the consumer calls `take`. Memory is O(keys) for `latest` and
`merge`, and bounded by the ring for `trade_safe` and `all`. A loss is told before anything newer of its stream, and
reports that nobody reads are joined per stream, so they are bounded, too.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from aegis.redis.broadcast.records import Gap
from aegis.redis.broadcast.wire import Frame

#: How many updates a consumer may be behind before the oldest are dropped and a `Gap` says so.
RING = 65_536


class Item(NamedTuple):
    """One value on its way to a consumer, not decoded yet."""

    key: str
    payload: str | bytes
    version: int
    at_us: int
    folded: int
    snapshot: bool


class Buffer(Protocol):
    """What every policy offers."""

    conflated: int  #: ticks folded into newer ones
    evicted: int  #: updates dropped from a full ring
    overflowed: bool  #: the ring was full, and that ends the subscription

    def __len__(self) -> int: ...
    def offer(self, frame: Frame, places: Sequence[int], now: float) -> None:
        """Take the ticks at `places` of a frame."""

    def report(self, gap: Gap) -> None:
        """Tell a loss, before anything newer of its stream."""

    def take(self, now: float) -> Item | Gap | None:
        """What the consumer gets next, or None."""

    def due(self) -> float | None:
        """When something that is held back may be taken, though nothing new arrives."""


def item_of(frame: Frame, place: int, folded: int) -> Item:
    """One tick of a frame."""
    if frame.folded:
        folded += frame.folded[place]
    return Item(frame.keys[place], frame.payloads[place], frame.version + place, frame.at_us, folded, frame.snapshot)


class Losses:
    """Reports that wait, one per stream and reason: `from`, `to` and the count grow while nobody reads."""

    def __init__(self) -> None:
        self._gaps: dict[tuple[str, str], Gap] = {}

    def __len__(self) -> int:
        return len(self._gaps)

    def add(self, gap: Gap) -> None:
        """One more loss, joined with what already waits of its stream."""
        place = (gap.stream, gap.reason)
        older = self._gaps.get(place)
        if older is not None:
            start, end = min(older.from_seq, gap.from_seq), max(older.to_seq, gap.to_seq)
            gap = Gap(gap.stream, start, end, older.lost + gap.lost, gap.reason)
        self._gaps[place] = gap

    def take(self) -> Gap | None:
        """The oldest report."""
        return self._gaps.pop(next(iter(self._gaps))) if self._gaps else None


class Latest:
    """
    The newest tick of each key, taken in the order in which keys began to wait: a busy key never starves a quiet one.

    With `per_key_s` a key is taken at most once in that time: at once when it has been quiet (leading edge), and its
    newest tick when the time is over (trailing edge).
    """

    def __init__(self, per_key_s: float = 0.0) -> None:
        self._per_key_s = per_key_s
        self._losses = Losses()
        self._ready: dict[str, tuple[Frame, int, int]] = {}  # key -> frame, place, folded
        self._held: dict[str, tuple[Frame, int, int]] = {}
        self._held_until: list[tuple[float, str]] = []  # heap, one entry per held key
        self._free_at: dict[str, float] = {}
        self.conflated = self.evicted = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._ready) + len(self._held) + len(self._losses)

    def offer(self, frame: Frame, places: Sequence[int], now: float) -> None:
        """See `Buffer`."""
        keys, ready = frame.keys, self._ready
        for place in places:
            key = keys[place]
            if self._per_key_s and key not in ready and (key in self._held or self._free_at.get(key, 0.0) > now):
                self._hold(key, frame, place)
                continue
            older = ready.get(key)
            if older is None:
                ready[key] = (frame, place, 0)
            else:
                self.conflated += 1
                ready[key] = (frame, place, older[2] + 1 + _folded_before(older))

    def _hold(self, key: str, frame: Frame, place: int) -> None:
        older = self._held.get(key)
        if older is None:
            heapq.heappush(self._held_until, (self._free_at[key], key))
            self._held[key] = (frame, place, 0)
        else:
            self.conflated += 1
            self._held[key] = (frame, place, older[2] + 1 + _folded_before(older))

    def report(self, gap: Gap) -> None:
        """See `Buffer`."""
        self._losses.add(gap)

    def take(self, now: float) -> Item | Gap | None:
        """See `Buffer`."""
        gap = self._losses.take()
        if gap is not None:
            return gap
        while self._held_until and self._held_until[0][0] <= now:
            _, key = heapq.heappop(self._held_until)
            self._ready[key] = self._held.pop(key)
        if not self._ready:
            return None
        key = next(iter(self._ready))
        frame, place, folded = self._ready.pop(key)
        if self._per_key_s:
            self._free_at[key] = now + self._per_key_s
        return item_of(frame, place, folded)

    def due(self) -> float | None:
        """See `Buffer`."""
        return self._held_until[0][0] if self._held_until else None


def _folded_before(waiting: tuple[Frame, int, int]) -> int:
    frame, place, _ = waiting
    return frame.folded[place] if frame.folded else 0


class Merge(Latest):
    """
    As `Latest`, and the fields of JSON objects are merged: a field that a tick lacks stays as it was.

    A value is the whole record as known so far. What is not an object replaces it.
    """

    def __init__(self, per_key_s: float = 0.0) -> None:
        super().__init__(per_key_s)
        self._records: dict[str, dict[str, msgspec.Raw] | None] = {}
        self._fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

    def offer(self, frame: Frame, places: Sequence[int], now: float) -> None:
        """See `Buffer`."""
        for place in places:
            key, payload = frame.keys[place], frame.payloads[place]
            if not payload.startswith("{"):
                self._records[key] = None
                continue
            changed = {name: value.copy() for name, value in self._fields(payload).items()}
            self._records[key] = (self._records.get(key) or {}) | changed
        super().offer(frame, places, now)

    def take(self, now: float) -> Item | Gap | None:
        """See `Buffer`."""
        item = super().take(now)
        if isinstance(item, Item) and (record := self._records[item.key]) is not None:
            return item._replace(payload=msgspec.json.encode(record))
        return item


class TradeSafe:
    """
    Every trade, in order, and the newest quote of each key; the quote that stood before a trade comes before it.

    Whatever began to wait first is taken first. Trades, and the quotes that they pin down, wait in a bounded ring.
    """

    def __init__(self, ring: int = RING, *, end_on_overflow: bool = False) -> None:
        self._size, self._end_on_overflow = ring, end_on_overflow
        self._losses, self._dropped = Losses(), Losses()
        self._ring: deque[tuple[int, Frame, int, int]] = deque()  # order, frame, place, folded
        self._quotes: dict[str, tuple[int, Frame, int, int]] = {}
        self._order = 0
        self.conflated = self.evicted = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._ring) + len(self._quotes) + len(self._losses) + len(self._dropped)

    def offer(self, frame: Frame, places: Sequence[int], now: float) -> None:
        """See `Buffer`."""
        del now
        for place in places:
            key = frame.keys[place]
            self._order += 1
            quote = self._quotes.get(key)
            if frame.kinds and frame.kinds[place] == "t":
                if quote is not None:
                    self._pin(self._quotes.pop(key))
                self._pin((self._order, frame, place, 0))
            elif quote is None:
                self._quotes[key] = (self._order, frame, place, 0)
            else:
                order, *older, folded = quote
                self.conflated += 1
                self._quotes[key] = (order, frame, place, folded + 1 + _folded_before((*older, 0)))  # type: ignore[arg-type]

    def _pin(self, entry: tuple[int, Frame, int, int]) -> None:
        if self.overflowed:
            return
        if len(self._ring) >= self._size:
            if self._end_on_overflow:
                self.overflowed = True
                return
            _, frame, place, _ = self._ring.popleft()
            self.evicted += 1
            self._dropped.add(_dropped(frame, place, place))
        self._ring.append(entry)

    def report(self, gap: Gap) -> None:
        """See `Buffer`."""
        self._losses.add(gap)

    def take(self, now: float) -> Item | Gap | None:
        """See `Buffer`."""
        del now
        gap = self._dropped.take() or self._losses.take()
        if gap is not None:
            return gap
        quote = next(iter(self._quotes.values()), None)
        if self._ring and (quote is None or self._ring[0][0] < quote[0]):
            _, frame, place, folded = self._ring.popleft()
            return item_of(frame, place, folded)
        if quote is None or self.overflowed:
            return None
        _, frame, place, folded = self._quotes.pop(next(iter(self._quotes)))
        return item_of(frame, place, folded)

    def due(self) -> float | None:
        """See `Buffer`."""
        return None


class All:
    """Every tick, in order, in a bounded ring of frames; the ring drops its oldest ticks, or ends the subscription."""

    def __init__(self, ring: int = RING, *, end_on_overflow: bool = False) -> None:
        self._size, self._end_on_overflow = ring, end_on_overflow
        self._dropped = Losses()
        self._ring: deque[tuple[Frame, Sequence[int]] | Gap] = deque()
        self._next = 0  # which of the first frame's places is taken next
        self._count = 0
        self.conflated = self.evicted = 0
        self.overflowed = False

    def __len__(self) -> int:
        return self._count + len(self._dropped)

    def offer(self, frame: Frame, places: Sequence[int], now: float) -> None:
        """See `Buffer`."""
        del now
        if self.overflowed:
            return
        if self._end_on_overflow and self._count + len(places) > self._size:
            self.overflowed = True
            return
        self._ring.append((frame, places))
        self._count += len(places)
        while self._count > self._size:
            self._drop_oldest()

    def report(self, gap: Gap) -> None:
        """See `Buffer`."""
        self._ring.append(gap)
        self._count += 1
        while self._count > self._size:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Drop what stands first, as far as the ring is too full: a report, or ticks of one frame."""
        first = self._ring[0]
        if isinstance(first, Gap):
            self._ring.popleft()
            self._count -= 1
            self._dropped.add(first)
            return
        frame, places = first
        start = self._next
        self._next = min(len(places), start + self._count - self._size)
        self._dropped.add(_dropped(frame, places[start], places[self._next - 1], self._next - start))
        self.evicted += self._next - start
        self._count -= self._next - start
        if self._next == len(places):
            self._ring.popleft()
            self._next = 0

    def take(self, now: float) -> Item | Gap | None:
        """See `Buffer`."""
        del now
        if self._dropped:
            return self._dropped.take()
        if not self._ring:
            return None
        first = self._ring[0]
        self._count -= 1
        if isinstance(first, Gap):
            self._ring.popleft()
            return first
        frame, places = first
        place = places[self._next]
        self._next += 1
        if self._next == len(places):
            self._ring.popleft()
            self._next = 0
        folded = frame.folded[place] if frame.folded else 0
        payload = frame.payloads[place]
        return Item(frame.keys[place], payload, frame.version + place, frame.at_us, folded, frame.snapshot)

    def due(self) -> float | None:
        """See `Buffer`."""
        return None


def _dropped(frame: Frame, first: int, last: int, count: int = 1) -> Gap:
    stream = f"{frame.partition}/{frame.stream}"
    return Gap(stream, frame.seq + first, frame.seq + last, count, "the consumer is too slow for its ring")
