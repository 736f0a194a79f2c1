"""The running numbers behind `RateLimiter.stats()`: one `Counts` per limit, written by what serves its callers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from aegis.redis.limiting.limit import Lane, LaneStats, LimiterStats, LimitStats


@dataclass(slots=True)
class LaneCounts:
    """Of one lane."""

    waiting: int = 0
    granted: int = 0
    refused: int = 0
    timed_out: int = 0
    cancelled: int = 0
    waited_s: float = 0.0


@dataclass(slots=True)
class Counts:
    """Of one limit."""

    allowed: int = 0
    denied: int = 0
    late: int = 0
    returned: int = 0
    server_calls: int = 0
    outages: int = 0
    held_until: float = 0.0  #: loop time
    lanes: tuple[LaneCounts, ...] = field(default_factory=lambda: tuple(LaneCounts() for _ in Lane))

    def record(self, now: float, reserved: int) -> LimitStats:
        """Freeze the numbers; `now` is loop time, `reserved` what the dispatchers of this limit hold."""
        return LimitStats(
            allowed=self.allowed,
            denied=self.denied,
            lanes={
                lane: LaneStats(**{part.name: getattr(self.lanes[lane], part.name) for part in fields(LaneStats)})
                for lane in Lane
            },
            reserved=reserved,
            late=self.late,
            returned=self.returned,
            server_calls=self.server_calls,
            outages=self.outages,
            held_for=max(0.0, self.held_until - now),
        )


def total(limits: Mapping[str, LimitStats]) -> LimiterStats:
    """The sum over all limits."""
    lanes = [lane for limit in limits.values() for lane in limit.lanes.values()]
    return LimiterStats(
        granted=sum(limit.allowed for limit in limits.values()) + sum(lane.granted for lane in lanes),
        refused=sum(limit.denied for limit in limits.values()) + sum(lane.refused for lane in lanes),
        timed_out=sum(lane.timed_out for lane in lanes),
        cancelled=sum(lane.cancelled for lane in lanes),
        late=sum(limit.late for limit in limits.values()),
        waiting=sum(lane.waiting for lane in lanes),
        server_calls=sum(limit.server_calls for limit in limits.values()),
        waited_s=sum(lane.waited_s for lane in lanes),
        limits=limits,
    )
