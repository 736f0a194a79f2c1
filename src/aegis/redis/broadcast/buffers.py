"""
What waits for one consumer, by policy: pure bookkeeping, no I/O; the clock is an argument.

The socket's reader calls `offer` and never waits; the consumer calls `take`. Memory is O(keys) for `latest` and
`merge`, and bounded by the ring for `trade_safe` and `all`. A loss is told before anything newer of its stream, and
reports that nobody reads are joined per stream, so they are bounded, too. Values are decoded when they are taken: what
was folded is never decoded.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from operator import length_hint
from typing import Any, Protocol, TypeAlias

import msgspec

from aegis.errors import PayloadError
from aegis.redis.broadcast.records import Gap, Update
from aegis.redis.broadcast.wire import Frame

#: How many updates a consumer may be behind before the oldest are dropped and a `Gap` says so.
RING = 65_536

Decode: TypeAlias = Callable[[Any], Any]


class Buffer(Protocol):
    """What every policy offers."""

    conflated: int  #: ticks folded into newer ones
    evicted: int  #: updates dropped from a full ring
    overflowed: bool  #: the ring was full, and that ends the subscription

    def __len__(self) -> int: ...
    def offer(self, frame: Frame, places: Sequence[int]) -> None:
        """Take the ticks at `places` of a frame; there is at least one."""

    def report(self, gap: Gap) -> None:
        """Tell a loss, before anything newer of its stream."""

    def take(self) -> Update | Gap | None:
        """What the consumer gets next, or None. PayloadError when it cannot be decoded; then it has been taken."""

    def due_in_s(self) -> float | None:
        """When something that is held back may be taken, though nothing new arrives."""


def update_of(decode: Decode, frame: Frame, place: int, folded: int, payload: bytes | None = None) -> Update:
    """One tick of a frame, decoded; with `payload` as that instead of its own."""
    if frame.folded:
        folded += frame.folded[place]
    key = frame.keys[place]
    try:
        value = decode(frame.payloads[place] if payload is None else payload)
    except msgspec.DecodeError as exc:
        raise PayloadError(key, f"does not fit the subscription's type: {exc}") from exc
    return Update(key, value, frame.version + place, folded, frame.at_us / 1e6, frame.snapshot)


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

    def __init__(self, type_: Any, per_key_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._decode = msgspec.json.Decoder(type_).decode
        self._per_key_s, self._clock = per_key_s, clock
        self._losses = Losses()
        self._ready: dict[str, tuple[Frame, int, int]] = {}  # key -> frame, place, folded
        self._held: dict[str, tuple[Frame, int, int]] = {}
        self._held_until: list[tuple[float, str]] = []  # heap, one entry per held key
        self._free_at: dict[str, float] = {}
        self.conflated = self.evicted = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._ready) + len(self._held) + len(self._losses)

    def offer(self, frame: Frame, places: Sequence[int]) -> None:
        """See `Buffer`."""
        keys, ready, now = frame.keys, self._ready, self._clock() if self._per_key_s else 0.0
        for place in places:
            key = keys[place]
            if now and key not in ready and (key in self._held or self._free_at.get(key, 0.0) > now):
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

    def take(self) -> Update | Gap | None:
        """See `Buffer`."""
        if self._losses:
            return self._losses.take()
        now = self._clock() if self._per_key_s else 0.0
        while self._held_until and self._held_until[0][0] <= now:
            _, key = heapq.heappop(self._held_until)
            self._ready[key] = self._held.pop(key)
        if not self._ready:
            return None
        key = next(iter(self._ready))
        frame, place, folded = self._ready.pop(key)
        if self._per_key_s:
            self._free_at[key] = now + self._per_key_s
        return self._update(frame, place, folded)

    def _update(self, frame: Frame, place: int, folded: int) -> Update:
        return update_of(self._decode, frame, place, folded)

    def due_in_s(self) -> float | None:
        """See `Buffer`."""
        return self._held_until[0][0] - self._clock() if self._held_until else None


def _folded_before(waiting: tuple[Frame, int, int]) -> int:
    frame, place, _ = waiting
    return frame.folded[place] if frame.folded else 0


class Merge(Latest):
    """
    As `Latest`, and the fields of JSON objects are merged: a field that a tick lacks stays as it was.

    A value is the whole record as known so far. What is not an object replaces it.
    """

    def __init__(self, type_: Any, per_key_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(type_, per_key_s, clock)
        self._records: dict[str, dict[str, msgspec.Raw] | None] = {}
        self._fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

    def offer(self, frame: Frame, places: Sequence[int]) -> None:
        """See `Buffer`."""
        for place in places:
            key, payload = frame.keys[place], frame.payloads[place]
            if not payload.startswith(b"{"):
                self._records[key] = None
                continue
            changed = {name: value.copy() for name, value in self._fields(payload).items()}
            self._records[key] = (self._records.get(key) or {}) | changed
        super().offer(frame, places)

    def _update(self, frame: Frame, place: int, folded: int) -> Update:
        record = self._records[frame.keys[place]]
        return update_of(self._decode, frame, place, folded, None if record is None else msgspec.json.encode(record))


class TradeSafe:
    """
    Every trade, in order, and the newest quote of each key; the quote that stood before a trade comes before it.

    Whatever began to wait first is taken first. Trades, and the quotes that they pin down, wait in a bounded ring.
    """

    def __init__(self, type_: Any, ring: int = RING, *, end_on_overflow: bool = False) -> None:
        self._decode = msgspec.json.Decoder(type_).decode
        self._size, self._end_on_overflow = ring, end_on_overflow
        self._losses, self._dropped = Losses(), Losses()
        self._ring: deque[tuple[int, Frame, int, int]] = deque()  # order, frame, place, folded
        self._quotes: dict[str, tuple[int, Frame, int, int]] = {}
        self._order = 0
        self.conflated = self.evicted = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._ring) + len(self._quotes) + len(self._losses) + len(self._dropped)

    def offer(self, frame: Frame, places: Sequence[int]) -> None:
        """See `Buffer`."""
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

    def take(self) -> Update | Gap | None:
        """See `Buffer`."""
        if self._dropped or self._losses:
            return self._dropped.take() or self._losses.take()
        quote = next(iter(self._quotes.values()), None)
        if self._ring and (quote is None or self._ring[0][0] < quote[0]):
            _, frame, place, folded = self._ring.popleft()
            return update_of(self._decode, frame, place, folded)
        if quote is None or self.overflowed:
            return None
        _, frame, place, folded = self._quotes.pop(next(iter(self._quotes)))
        return update_of(self._decode, frame, place, folded)

    def due_in_s(self) -> float | None:
        """See `Buffer`."""
        return None


class All:
    """
    Every tick, in order, in a bounded ring of frames; the ring drops its oldest ticks, or ends the subscription.

    A frame is decoded as a whole when its first tick is taken: one call for many ticks.
    """

    def __init__(self, type_: Any, ring: int = RING, *, end_on_overflow: bool = False) -> None:
        self._decode = msgspec.json.Decoder(type_).decode
        self._decode_many = msgspec.json.Decoder(list[type_]).decode  # a type at run time
        self._size, self._end_on_overflow = ring, end_on_overflow
        self._dropped = Losses()
        self._lossy = False  # whether `_dropped` holds anything
        self._ring: deque[tuple[Frame, Sequence[int]] | Gap] = deque()  # without what is being taken
        self._ready: Iterator[Update | PayloadError] = iter(())  # what is being taken
        self._frame: Frame | None = None  # of which it is,
        self._places: Sequence[int] = ()  # and which of its ticks
        self._count = 0
        self.conflated = self.evicted = 0
        self.overflowed = False

    def __len__(self) -> int:
        return self._count + len(self._dropped)

    def offer(self, frame: Frame, places: Sequence[int]) -> None:
        """See `Buffer`."""
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

    def take(self) -> Update | Gap | None:
        """See `Buffer`."""
        if self._lossy:
            gap = self._dropped.take()
            self._lossy = len(self._dropped) > 0
            return gap
        for update in self._ready:
            self._count -= 1
            if type(update) is PayloadError:
                raise update
            return update  # type: ignore[return-value] # mypy does not narrow by `type() is`
        if not self._ring:
            return None
        first = self._ring.popleft()
        if isinstance(first, Gap):
            self._count -= 1
            return first
        self._frame, self._places = first
        self._ready = iter(self._updates(*first))
        return self.take()

    def due_in_s(self) -> float | None:
        """See `Buffer`."""
        return None

    def _updates(self, frame: Frame, places: Sequence[int]) -> list[Update | PayloadError]:
        """The ticks at these places, decoded; what cannot be decoded has its error in its place."""
        whole = len(places) == len(frame.keys)
        payloads = frame.payloads if whole else [frame.payloads[place] for place in places]
        keys = frame.keys if whole else [frame.keys[place] for place in places]
        try:
            values = self._decode_many(b"[%s]" % b",".join(payloads))
        except msgspec.DecodeError:
            return [self._update(frame, place) for place in places]
        folded = [frame.folded[place] for place in places] if frame.folded else repeat(0)
        version, at, snapshot = frame.version, frame.at_us / 1e6, frame.snapshot
        return [
            Update(key, value, version + place, many, at, snapshot)
            for key, value, place, many in zip(keys, values, places, folded, strict=False)
        ]

    def _update(self, frame: Frame, place: int) -> Update | PayloadError:
        try:
            return update_of(self._decode, frame, place, 0)
        except PayloadError as exc:
            return exc

    def _drop_oldest(self) -> None:
        """Drop what stands first, as far as the ring is too full: of what is being taken, a report, a frame."""
        self._lossy = True
        excess, rest = self._count - self._size, length_hint(self._ready)
        if rest:
            assert self._frame is not None
            count = min(excess, rest)
            self._forget(self._frame, self._places[-rest:][:count])
            deque(islice(self._ready, count), maxlen=0)
            return
        oldest = self._ring.popleft()
        if isinstance(oldest, Gap):
            self._count -= 1
            self._dropped.add(oldest)
            return
        frame, places = oldest
        self._forget(frame, places[:excess])
        if excess < len(places):
            self._ring.appendleft((frame, places[excess:]))

    def _forget(self, frame: Frame, places: Sequence[int]) -> None:
        self._dropped.add(_dropped(frame, places[0], places[-1], len(places)))
        self._count -= len(places)
        self.evicted += len(places)


def _dropped(frame: Frame, first: int, last: int, count: int = 1) -> Gap:
    stream = f"{frame.partition}/{frame.stream}"
    return Gap(stream, frame.seq + first, frame.seq + last, count, "the consumer is too slow for its ring")
