"""`latest` and `merge`: one value per key waits, the newest; memory is O(keys)."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from aegis.redis.broadcast.buffers import Losses, update_of
from aegis.redis.broadcast.records import Gap, Update
from aegis.redis.broadcast.wire import Frame


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
        self.ready: Iterator[Update] = iter(())

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
                ready[key] = (frame, place, older[2] + 1 + older[0].folded_at(older[1]))

    def _hold(self, key: str, frame: Frame, place: int) -> None:
        older = self._held.get(key)
        if older is None:
            heapq.heappush(self._held_until, (self._free_at[key], key))
            self._held[key] = (frame, place, 0)
        else:
            self.conflated += 1
            self._held[key] = (frame, place, older[2] + 1 + older[0].folded_at(older[1]))

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
