"""
What the server last said to the lanes of one process: when to come back, and when their permits could be due.

State only: no I/O, no timer. The dispatcher tells it every answer and asks it before it asks the server. Moments are
loop time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis.redis.limiting.gate import Gate, Told, Turn
from aegis.redis.limiting.limit import Lane


class Outlook:
    """Of one limit and key."""

    def __init__(self, gate: Gate) -> None:
        self._limit, self._windows_us, self._clock = gate.limit, gate.windows_us, gate.clock
        self._told: dict[Lane, Told] = {}  # lanes in which the server expects us
        self._ask_at = dict.fromkeys(Lane, 0.0)  # before that it does not

    @property
    def lanes(self) -> list[Lane]:
        """Those in which the server expects us."""
        return list(self._told)

    def believe(self, turn: Turn) -> None:
        """An answer: whoever is not told anything may ask at any time."""
        self._told = {told.lane: told for told in turn.told}
        self.ask_from(0.0)
        for told in turn.told:
            self._ask_at[told.lane] = self._clock.local(told.back_us)

    def ask_from(self, moment: float) -> None:
        """Every lane shall ask, from that moment on."""
        self._ask_at = dict.fromkeys(Lane, moment)

    def forget(self) -> None:
        """The server does not expect us any more, or we do not know."""
        self._told = {}

    def leave(self, lanes: Sequence[Lane]) -> None:
        """We are not waiting in these lanes any more."""
        for lane in lanes:
            del self._told[lane]

    def next_ask(self, missing: Sequence[int]) -> float:
        """When to ask for what is missing, by lane; inf when nothing is."""
        return min((self._ask_at[lane] for lane in Lane if missing[lane]), default=math.inf)

    def earliest(self, lane: Lane, place: int) -> float | None:
        """When the permit at that place could be due if nobody else took any; None when nothing is known."""
        told = self._told.get(lane)
        if told is None:
            return None
        first = self._clock.local(told.first_us) + self._rounds_s(place - 1)
        if place <= told.permits:
            return first
        return max(first, self._clock.local(told.last_us) + self._rounds_s(place - told.permits))

    def last(self, lane: Lane) -> float | None:
        """When the last permit that the lane waits for could be due."""
        told = self._told.get(lane)
        return None if told is None else self._clock.local(told.last_us)

    def _rounds_s(self, permits: int) -> float:
        """How long so many permits take at least."""
        rates = zip(self._limit.rates, self._windows_us, strict=True)
        return max(permits // rate.limit * window_us for rate, window_us in rates) / 1e6
