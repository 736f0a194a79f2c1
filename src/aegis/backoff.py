"""
Delays between attempts: numbers only, no I/O and no sleeping.

Full jitter: each delay is uniform between zero and an exponentially growing cap, so that processes which failed
together do not return together (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). Rejected:
plain doubling (herds), decorrelated jitter (no better in that comparison, and its state is harder to reason about).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """
    A schedule of delays, in seconds.

    Safe at any attempt number: the exponent is bounded before it is used, so attempt 1,000 gives `cap_s`, not an
    overflow. `floor_s` keeps a first retry from being immediate.
    """

    base_s: float = 0.2
    cap_s: float = 10.0
    floor_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.base_s <= self.cap_s:
            raise ValueError(f"base_s={self.base_s} must be above 0 and at most cap_s={self.cap_s}")
        if not 0 <= self.floor_s <= self.cap_s:
            raise ValueError(f"floor_s={self.floor_s} must lie between 0 and cap_s={self.cap_s}")

    def ceiling_s(self, attempt: int) -> float:
        """The longest delay after failed attempt number `attempt` (the first is 1)."""
        doublings = min(max(attempt - 1, 0), 64)
        return min(self.cap_s, self.base_s * float(1 << doublings))

    def delay_s(self, attempt: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """A jittered delay after failed attempt number `attempt`, between `floor_s` and `ceiling_s(attempt)`."""
        ceiling = self.ceiling_s(attempt)
        return uniform(min(self.floor_s, ceiling), ceiling)
