"""`latest` and `merge`: one value per key waits, the newest; memory is O(keys)."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from aegis.redis.broadcast.buffers import Losses, update_of
from aegis.redis.broadcast.records import Gap, Update
from aegis.redis.broadcast.wire import Frame, Tick


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
        self._ready: dict[str, tuple[Tick, int]] = {}  # by key; with how many were folded into it here
        self._held: dict[str, tuple[Tick, int]] = {}
        self._held_until: list[tuple[float, str]] = []  # heap, one entry per held key
        self._free_at: dict[str, float] = {}
        self.conflated = self.evicted = 0
        self.overflowed = False
        self.ready: Iterator[Update] = iter(())

    def __len__(self) -> int:
        return len(self._ready) + len(self._held) + len(self._losses)

    def offer(self, frame: Frame) -> None:
        """See `Buffer`."""
        ready, now = self._ready, self._clock() if self._per_key_s else 0.0
        for at, key in enumerate(frame.keys):
            if now and key not in ready and (key in self._held or self._free_at.get(key, 0.0) > now):
                self._hold(key, frame.tick(at))
            else:
                ready[key] = self._folded(frame.tick(at), ready.get(key))

    def _hold(self, key: str, tick: Tick) -> None:
        if key not in self._held:
            heapq.heappush(self._held_until, (self._free_at[key], key))
        self._held[key] = self._folded(tick, self._held.get(key))

    def _folded(self, tick: Tick, older: tuple[Tick, int] | None) -> tuple[Tick, int]:
        if older is None:
            return tick, 0
        self.conflated += 1
        return tick, older[1] + 1 + older[0].folded

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
        tick, folded = self._ready.pop(key)
        if self._per_key_s:
            self._free_at[key] = now + self._per_key_s
        return self._update(tick, folded)

    def _update(self, tick: Tick, folded: int) -> Update:
        return update_of(self._decode, tick, folded)

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

    def offer(self, frame: Frame) -> None:
        """See `Buffer`."""
        for key, payload in zip(frame.keys, frame.payloads, strict=True):
            if not payload.startswith(b"{"):
                self._records[key] = None
                continue
            changed = {name: value.copy() for name, value in self._fields(payload).items()}
            self._records[key] = (self._records.get(key) or {}) | changed
        super().offer(frame)

    def _update(self, tick: Tick, folded: int) -> Update:
        record = self._records[tick.key]
        return update_of(self._decode, tick, folded, None if record is None else msgspec.json.encode(record))
