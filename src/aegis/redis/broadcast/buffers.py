"""
What waits for one consumer: what all policies have in common. `conflating` and `rings` hold the policies themselves.
Pure bookkeeping, no I/O.

The socket's reader calls `offer` and never waits; the consumer calls `take`. Memory is O(keys) for `latest` and
`merge`, and bounded by the ring for `trade_safe` and `all`. A loss is told before anything newer of its stream, and
reports that nobody reads are joined per stream, so they are bounded, too. Values are decoded when they are taken: what
was folded is never decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import msgspec

from aegis.errors import PayloadError
from aegis.redis.broadcast.records import Gap, Update
from aegis.redis.broadcast.wire import Frame, Tick

#: How many updates a consumer may be behind before the oldest are dropped and a `Gap` says so.
RING = 65_536

Decode: TypeAlias = Callable[[Any], Any]


class Buffer(Protocol):
    """What every policy offers."""

    conflated: int  #: ticks folded into newer ones
    evicted: int  #: updates dropped from a full ring
    overflowed: bool  #: the ring was full, and that ends the subscription
    ready: Iterator[Update]  #: what comes next, where that has been decoded already; empty: ask `take`

    def __len__(self) -> int: ...
    def offer(self, frame: Frame) -> None:
        """Take the ticks of a frame; there is at least one."""

    def report(self, gap: Gap) -> None:
        """Tell a loss, before anything newer of its stream."""

    def take(self) -> Update | Gap | None:
        """What the consumer gets next, or None. PayloadError when it cannot be decoded; then it has been taken."""

    def due_in_s(self) -> float | None:
        """When something that is held back may be taken, though nothing new arrives."""


def update_of(decode: Decode, tick: Tick, folded: int = 0, payload: bytes | None = None) -> Update:
    """A tick, decoded, with as many folded into it here; with `payload` as that instead of its own."""
    try:
        value = decode(tick.payload if payload is None else payload)
    except msgspec.DecodeError as exc:
        raise PayloadError(tick.key, f"does not fit the subscription's type: {exc}") from exc
    return Update(tick.key, value, tick.version, folded + tick.folded, tick.at_us / 1e6, tick.snapshot)


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
