"""
What waits to be sent, of one partition: pure bookkeeping, no I/O.

A *parcel* becomes one frame. `Outbox` keeps every tick, in order. `ConflatingOutbox` keeps the newest quote of a key
and every trade in order, a quote before the trade that followed it; it is for topics on which every consumer wants the
newest value only. Both are emptied by their lane and bounded by the publisher.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

#: A parcel is closed when it holds so many ticks or bytes. Only a publisher at full speed, or one
#: that Redis keeps waiting, gets there: a large frame stores a key that comes often in it once.
PARCEL_TICKS_MAX = 4096
PARCEL_BYTES_MAX = 512 * 1024


@dataclass(slots=True)
class Parcel:
    """Ticks of one frame-to-be. `born` is when the oldest was published, on the publisher's own clock."""

    born: float
    keys: list[str] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    size: int = 0
    trades: set[int] = field(default_factory=set)  # places of trades
    folded: list[int] = field(default_factory=list)  # per tick; empty: none

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def full(self) -> bool:
        """Whether it is time to close it."""
        return len(self) >= PARCEL_TICKS_MAX or self.size >= PARCEL_BYTES_MAX

    @property
    def kinds(self) -> str:
        """One letter per tick, or nothing where all are quotes."""
        return "".join("t" if at in self.trades else "q" for at in range(len(self))) if self.trades else ""

    def add(self, key: str, payload: bytes, *, trade: bool) -> None:
        """One more tick."""
        if trade:
            self.trades.add(len(self))
        self.keys.append(key)
        self.payloads.append(payload)
        self.size += len(payload)


class Outbox:
    """Lossless: every tick, in the publisher's order."""

    def __init__(self) -> None:
        self._open: Parcel | None = None
        self._closed: deque[Parcel] = deque()
        self._accepted = 0  # without the open parcel

    def __len__(self) -> int:
        return sum(map(len, self._closed)) + (len(self._open) if self._open else 0)

    @property
    def accepted(self) -> int:
        """How many ticks it has ever taken."""
        return self._accepted + (len(self._open) if self._open else 0)

    def add(self, key: str, payload: bytes, trade: bool) -> bool:
        """Take a tick. Returns whether a parcel is full and should leave."""
        parcel = self._open
        if parcel is None:
            parcel = self._open = Parcel(time.monotonic())
        keys = parcel.keys  # as `Parcel.add`, without the call: this is the hot path
        if trade:
            parcel.trades.add(len(keys))
        keys.append(key)
        parcel.payloads.append(payload)
        parcel.size = size = parcel.size + len(payload)
        if size >= PARCEL_BYTES_MAX or len(keys) >= PARCEL_TICKS_MAX:
            self.close_parcel()
            return True
        return False

    def close_parcel(self, older_than: float = float("inf")) -> None:
        """Let the open parcel leave, if it was born before."""
        if self._open is not None and self._open.born < older_than:
            self._closed.append(self._open)
            self._accepted += len(self._open)
            self._open = None

    def take(self) -> Parcel | None:
        """The next parcel that may leave."""
        return self._closed.popleft() if self._closed else None


@dataclass(slots=True)
class _Waiting:
    """One entry of a conflating outbox."""

    key: str
    payload: bytes
    born: float
    trade: bool
    folded: int = 0


class ConflatingOutbox:
    """The newest quote of each key and every trade. Memory is O(keys) and the trades not yet sent."""

    #: Entries of one parcel were published within this time, because they will share one `published_at`.
    SPAN_S = 0.05

    def __init__(self, on_fold: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._on_fold, self._clock = on_fold, clock
        self._entries: dict[object, _Waiting] = {}  # in the order of the newest tick
        self._may_leave = False
        self.accepted = 0  # how many ticks it has ever taken

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: str, payload: bytes, trade: bool) -> bool:
        """Take a tick, as `Outbox.add`."""
        now = self._clock()
        self.accepted += 1
        older = self._entries.pop(key, None)
        if trade:
            if older is not None:  # the quote that the trade followed goes first, and is conflated no more
                self._entries[object()] = older
            self._entries[object()] = _Waiting(key, payload, now, trade=True)
        else:
            folded = 0
            if older is not None:
                folded = older.folded + 1
                self._on_fold()
            self._entries[key] = _Waiting(key, payload, now, trade=False, folded=folded)
        return len(self._entries) >= PARCEL_TICKS_MAX and not self._may_leave

    def close_parcel(self, older_than: float = float("inf")) -> None:
        """Let what is here leave, if the oldest was born before."""
        first = next(iter(self._entries.values()), None)
        self._may_leave = self._may_leave or (first is not None and first.born < older_than)

    def take(self) -> Parcel | None:
        """The next parcel, as it is at this moment: conflated until it leaves."""
        if not self._may_leave:
            return None
        parcel: Parcel | None = None
        for place, entry in list(islice(self._entries.items(), PARCEL_TICKS_MAX)):
            if parcel is None:
                parcel = Parcel(entry.born)
            if parcel.full or abs(entry.born - parcel.born) > self.SPAN_S:
                break
            parcel.add(entry.key, entry.payload, trade=entry.trade)
            parcel.folded.append(entry.folded)
            del self._entries[place]
        self._may_leave = bool(self._entries)
        return parcel
