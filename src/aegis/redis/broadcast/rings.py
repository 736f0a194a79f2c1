"""`trade_safe` and `all`: what must not be folded waits in a bounded ring; what that drops is reported."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from itertools import repeat
from operator import length_hint
from typing import Any

import msgspec

from aegis.errors import PayloadError
from aegis.redis.broadcast.buffers import RING, Decode, Losses, update_of
from aegis.redis.broadcast.records import Gap, Update
from aegis.redis.broadcast.wire import Frame, Tick

#: So many ticks of a frame are decoded at once; what their consumer does with them takes longer than that.
_BATCH = 256
_NOTHING: Iterator[Update] = iter(())


class TradeSafe:
    """
    Every trade, in order, and the newest quote of each key; the quote that stood before a trade comes before it.

    Whatever began to wait first is taken first. Trades, and the quotes that they pin down, wait in a bounded ring.
    """

    def __init__(self, type_: Any, ring: int = RING, *, end_on_overflow: bool = False) -> None:
        self._decode = msgspec.json.Decoder(type_).decode
        self._size, self._end_on_overflow = ring, end_on_overflow
        self._losses, self._dropped = Losses(), Losses()
        self._ring: deque[tuple[int, Tick, int]] = deque()  # order, tick, how many were folded into it here
        self._quotes: dict[str, tuple[int, Tick, int]] = {}
        self._order = 0
        self.conflated = self.evicted = 0
        self.overflowed = False
        self.ready: Iterator[Update] = iter(())

    def __len__(self) -> int:
        return len(self._ring) + len(self._quotes) + len(self._losses) + len(self._dropped)

    def offer(self, frame: Frame) -> None:
        """See `Buffer`."""
        for at, key in enumerate(frame.keys):
            self._order += 1
            quote = self._quotes.get(key)
            if frame.kinds and frame.kinds[at] == "t":
                if quote is not None:
                    self._pin(self._quotes.pop(key))
                self._pin((self._order, frame.tick(at), 0))
            elif quote is None:
                self._quotes[key] = (self._order, frame.tick(at), 0)
            else:
                order, older, folded = quote
                self.conflated += 1
                self._quotes[key] = (order, frame.tick(at), folded + 1 + older.folded)

    def _pin(self, entry: tuple[int, Tick, int]) -> None:
        if self.overflowed:
            return
        if len(self._ring) >= self._size:
            if self._end_on_overflow:
                self.overflowed = True
                return
            _, tick, _ = self._ring.popleft()
            self.evicted += 1
            self._dropped.add(_dropped(tick.partition, tick.stream, tick.seq, tick.seq, 1))
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
            _, tick, folded = self._ring.popleft()
            return update_of(self._decode, tick, folded)
        if quote is None or self.overflowed:
            return None
        _, tick, folded = self._quotes.pop(next(iter(self._quotes)))
        return update_of(self._decode, tick, folded)

    def due_in_s(self) -> float | None:
        """See `Buffer`."""
        return None


class All:
    """
    Every tick, in order, in a bounded ring of frames; the ring drops its oldest ticks, or ends the subscription.

    Ticks of a frame are decoded by the batch when the first of them is taken: one call for many.
    """

    def __init__(self, type_: Any, ring: int = RING, *, end_on_overflow: bool = False) -> None:
        self._decode = msgspec.json.Decoder(type_).decode
        self._decode_many = msgspec.json.Decoder(list[type_]).decode  # a type at run time
        self._size, self._end_on_overflow = ring, end_on_overflow
        self._dropped = Losses()
        self._lossy = False  # whether `_dropped` holds anything
        self._ring: deque[tuple[Frame, range] | Gap] = deque()  # which ticks of a frame; without what is being taken
        self._batch: Iterator[Update] = _NOTHING  # what is being taken
        self._taken_from: tuple[Frame, range] | None = None  # and where it stood
        self.ready = self._batch  # the batch, unless something was dropped: then that is told first
        self._waiting = 0  # in the ring
        self.conflated = self.evicted = 0
        self.overflowed = False

    def __len__(self) -> int:
        return self._waiting + length_hint(self._batch) + len(self._dropped)

    def offer(self, frame: Frame) -> None:
        """See `Buffer`."""
        count = len(frame.keys)
        if self.overflowed:
            return
        if self._end_on_overflow and self._excess + count > 0:
            self.overflowed = True
            return
        self._ring.append((frame, range(count)))
        self._waiting += count
        while (excess := self._excess) > 0:
            self._drop_oldest(excess)

    def report(self, gap: Gap) -> None:
        """See `Buffer`."""
        self._ring.append(gap)
        self._waiting += 1
        while (excess := self._excess) > 0:
            self._drop_oldest(excess)

    def take(self) -> Update | Gap | None:
        """See `Buffer`."""
        if self._lossy:
            gap = self._dropped.take()
            self._lossy = len(self._dropped) > 0
            if not self._lossy:
                self.ready = self._batch
            return gap
        for update in self.ready:
            return update
        if not self._ring:
            return None
        first = self._ring.popleft()
        if isinstance(first, Gap):
            self._waiting -= 1
            return first
        frame, ticks = first
        if len(ticks) > _BATCH:
            self._ring.appendleft((frame, ticks[_BATCH:]))
            ticks = ticks[:_BATCH]
        self._taken_from = frame, ticks
        self._waiting -= len(ticks)
        self.ready = self._batch = self._updates(frame, ticks)
        return self.take()

    def due_in_s(self) -> float | None:
        """See `Buffer`."""
        return None

    def _updates(self, frame: Frame, ticks: range) -> Iterator[Update]:
        """These ticks, decoded."""
        part = slice(ticks.start, ticks.stop)
        try:
            values = self._decode_many(b"[%s]" % b",".join(frame.payloads[part]))
        except msgspec.DecodeError:
            return _OneByOne(self._decode, frame, ticks)
        folded = frame.folded[part] if frame.folded else repeat(0)
        version, at, snapshot = frame.version, frame.at_us / 1e6, frame.snapshot
        return iter(
            [
                Update(key, value, version + place, many, at, snapshot)
                for key, value, place, many in zip(frame.keys[part], values, frame.places[part], folded, strict=False)
            ]
        )

    @property
    def _excess(self) -> int:
        return self._waiting + length_hint(self._batch) - self._size

    def _drop_oldest(self, excess: int) -> None:
        """Drop what stands first, as far as the ring is too full: of what is being taken, a report, a frame."""
        self._lossy, self.ready = True, _NOTHING
        rest = length_hint(self._batch)
        if rest:
            assert self._taken_from is not None
            frame, ticks = self._taken_from
            count = min(excess, rest)
            self._forget(frame, ticks[-rest:][:count])
            for _ in range(count):
                with contextlib.suppress(PayloadError):
                    next(self._batch)
            return
        oldest = self._ring.popleft()
        if isinstance(oldest, Gap):
            self._waiting -= 1
            self._dropped.add(oldest)
            return
        frame, ticks = oldest
        self._forget(frame, ticks[:excess])
        self._waiting -= min(excess, len(ticks))
        if excess < len(ticks):
            self._ring.appendleft((frame, ticks[excess:]))

    def _forget(self, frame: Frame, ticks: range) -> None:
        first, last = frame.places[ticks[0]], frame.places[ticks[-1]]
        self._dropped.add(_dropped(frame.partition, frame.stream, frame.seq + first, frame.seq + last, len(ticks)))
        self.evicted += len(ticks)


class _OneByOne(Iterator[Update]):
    """The ticks of a frame in which something does not fit: that raises in its place, and the next one goes on."""

    def __init__(self, decode: Decode, frame: Frame, ticks: range) -> None:
        self._decode, self._frame, self._left = decode, frame, ticks

    def __length_hint__(self) -> int:
        return len(self._left)

    def __next__(self) -> Update:
        if not self._left:
            raise StopIteration
        at, self._left = self._left[0], self._left[1:]
        return update_of(self._decode, self._frame.tick(at))


def _dropped(partition: int, stream: str, first: int, last: int, count: int) -> Gap:
    return Gap(f"{partition}/{stream}", first, last, count, "the consumer is too slow for its ring")
