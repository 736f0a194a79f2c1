"""What a limit is, and the records in which the limiter answers: frozen, no I/O."""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: Widening of every window, in seconds. 50 ms costs 5 % of a limit per second: with 20 ms, the demo on a machine whose
#: two cores were shared by a dozen busy processes put 7 requests into one window of 5.
PAD_S = 0.05
#: How far ahead a lane may take permits: a share of the pace's window, and at most so many seconds.
_HORIZONS = ((1.0, 60.0), (0.25, 2.0), (0.1, 1.0))
#: No horizon is shorter: a process needs so long to wake up, ask and be answered.
_HORIZON_MIN_S = 0.05


class Lane(enum.IntEnum):
    """How urgent a caller is."""

    URGENT = 0
    NORMAL = 1
    BULK = 2


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` permits in any window of `per` seconds."""

    limit: int
    per: float

    def __post_init__(self) -> None:
        if type(self.limit) is not int:
            raise TypeError(f"Rate(limit={self.limit!r}): limit must be a whole number")
        if self.limit < 1 or not self.per > 0 or not math.isfinite(self.per):
            raise ValueError(f"Rate(limit={self.limit}, per={self.per}): limit must be at least 1 and per above 0")


@dataclass(frozen=True, slots=True, init=False)
class RateLimit:
    """A named limit: all of its rates hold together. `pad` widens every window against jitter, in seconds."""

    name: str
    rates: tuple[Rate, ...]
    pad: float
    hold_max: float  #: longest pause that one refusal of the upstream may cause, in seconds
    cost_max: int = field(compare=False, repr=False)  #: the most permits that one call can ever get
    _hash: int = field(compare=False, repr=False)

    def __init__(self, name: str, *rates: Rate, pad: float = PAD_S, hold_max: float = 60.0) -> None:
        if not name:
            raise ValueError("a RateLimit needs a name: its keys, its messages and its numbers stand under it")
        if not rates:
            raise ValueError(f"RateLimit({name!r}) needs at least one Rate")
        if not (pad >= 0 and hold_max >= 0 and math.isfinite(pad) and math.isfinite(hold_max)):
            raise ValueError(f"RateLimit({name!r}): pad={pad} and hold_max={hold_max} must not be negative")
        values = {"name": name, "rates": rates, "pad": pad, "hold_max": hold_max}
        values |= {"cost_max": min(rate.limit for rate in rates), "_hash": hash((name, rates, pad, hold_max))}
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    def __hash__(self) -> int:
        """Once computed, because every call looks its limit up."""
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew where it is unpickled: hashes of texts differ between processes."""
        return (functools.partial(RateLimit, pad=self.pad, hold_max=self.hold_max), (self.name, *self.rates))

    @property
    def pace(self) -> Rate:
        """
        The rate that sets the pace: the shortest window that holds several permits, else the longest of the others.

        It decides how far ahead permits are taken, how much a process that comes anew is credited, and how permits are
        spread after a hold.
        """
        several = [rate for rate in self.rates if rate.limit > 1]
        return min(several, key=lambda rate: rate.per) if several else max(self.rates, key=lambda rate: rate.per)

    def horizon_s(self, lane: Lane) -> float:
        """How far ahead this lane may take permits, in seconds."""
        share, longest_s = _HORIZONS[lane]
        return max(_HORIZON_MIN_S, min(share * (self.pace.per + self.pad), longest_s))


class Decision(NamedTuple):
    """The answer of `allow`: whether, how many permits are left in the first rate's window, seconds until the next."""

    allowed: bool
    remaining: int
    retry_after: float


class Usage(NamedTuple):
    """
    How a limit stands: permits used and left in the first rate's window, seconds to the next one, seconds held.

    `used` are those that are due, so it is never above the limit; `remaining` is without those that processes have
    reserved for moments to come (`LimitStats.reserved` tells how many each of them has).
    """

    used: int
    remaining: int
    next_in: float
    held_for: float


@dataclass(frozen=True, slots=True)
class LaneStats:
    """What callers of `wait` got in one lane."""

    waiting: int  #: now
    granted: int
    refused: int  #: at once, because their timeout could not be met
    timed_out: int  #: after their timeout, because others came first or Redis was away
    cancelled: int
    waited_s: float  #: by those who were granted


@dataclass(frozen=True, slots=True)
class LimitStats:
    """Totals of one limit, over all of its keys, in one `RateLimiter`."""

    allowed: int  #: by `allow`
    denied: int  #: by `allow`
    lanes: Mapping[Lane, LaneStats]  #: of `wait`
    reserved: int  #: permits held here now, for moments to come
    late: int  #: permits not used because the process woke up too late
    returned: int  #: permits given back to the server, because nobody here waited any more
    server_calls: int
    outages: int  #: calls to the server that failed
    held_for: float  #: seconds until the longest hold known here ends


@dataclass(frozen=True, slots=True)
class LimiterStats:
    """Totals of one `RateLimiter`, and each of its limits by name."""

    granted: int
    refused: int
    timed_out: int
    cancelled: int
    late: int
    waiting: int
    server_calls: int
    waited_s: float
    limits: Mapping[str, LimitStats]
