"""What a client counts, and the frozen record that it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_BUCKETS = 28  #: the last holds everything above 2**26 µs, a bit more than a minute


@dataclass(frozen=True, slots=True)
class Latency:
    """
    How long replies took, in buckets whose upper bounds double: up to 1, 2, 4, ... µs.

    Counted per write: every command of one write counts with the time at which the last of them was answered, so the
    figures are upper bounds.
    """

    counts: tuple[int, ...]
    sum_s: float

    @property
    def count(self) -> int:
        """Replies counted."""
        return sum(self.counts)

    @staticmethod
    def upper_bound_s(bucket: int) -> float:
        """Upper bound of a bucket, in seconds."""
        return float(1 << bucket) * 1e-6

    def quantile_s(self, q: float) -> float:
        """An upper bound for the `q`-quantile, at most twice the true one; 0.0 when nothing was counted."""
        wanted, seen = q * self.count, 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return self.upper_bound_s(bucket)
        return 0.0


@dataclass(frozen=True, slots=True)
class RedisStats:
    """What one client has done since it was made. Sizes are bytes, as sent and received below TLS."""

    state: str  #: "disabled", "closed", "connected" or "reconnecting"
    connections: int  #: made, the first one included
    reconnects: int  #: of those, in place of one that was lost or given up
    connect_failures: int
    commands: int  #: answered by the server, with a refusal too
    in_flight: int
    in_flight_max: int  #: most at once
    waiting: int  #: callers that wait for a connection or for room on it
    bytes_sent: int
    bytes_received: int
    errors: Mapping[str, int]  #: by kind: the server's code (`WRONGTYPE`), `lost`, `timeout`, `unavailable`
    latency: Latency


@dataclass(slots=True)
class Counters:
    """The running numbers; links write here, once per write and read, not per command."""

    connections: int = 0
    reconnects: int = 0
    connect_failures: int = 0
    commands: int = 0
    in_flight_max: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    latency_sum_s: float = 0.0
    latency_counts: list[int] = field(default_factory=lambda: [0] * _BUCKETS)
    errors: Counter[str] = field(default_factory=Counter)

    def answered(self, count: int, took_s: float) -> None:
        """`count` commands of one write have been answered."""
        self.latency_sum_s += took_s * count
        bucket = int(took_s * 1e6).bit_length()
        self.latency_counts[bucket if bucket < _BUCKETS else _BUCKETS - 1] += count

    def record(self, state: str, *, in_flight: int, waiting: int) -> RedisStats:
        """Freeze the numbers."""
        return RedisStats(
            state=state,
            connections=self.connections,
            reconnects=self.reconnects,
            connect_failures=self.connect_failures,
            commands=self.commands,
            in_flight=in_flight,
            in_flight_max=self.in_flight_max,
            waiting=waiting,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            errors=dict(self.errors),
            latency=Latency(tuple(self.latency_counts), self.latency_sum_s),
        )
