"""
The server's clock as this process sees it: when is a due time, on the loop's clock?

Each answer brings a moment of the server, and came at a moment of the loop. Their difference is too small by the time
that the answer travelled and lay unread, so of the last seconds' differences the greatest is the best. A moment read
with it is never too early, and late by no more than the quickest answer's way back; whether this process has been slow
does not matter. Rejected: adding the wait to the moment at which the answer was read (a starved process then takes
its slots for punctual), round-trip times halved (wrong where ways differ, and may be too early).
"""

from __future__ import annotations

from collections import deque

#: Answers that are remembered, and for how long: two clocks drift apart by at most 0.5 ms in a second.
_KEPT, _KEPT_S = 32, 5.0


class ServerClock:
    """Moments of the server (µs) on the loop's clock (s)."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, float]] = deque(maxlen=_KEPT)  # read at, offset, round trip
        self._skew = 0
        self._offset = self._doubt_s = 0.0

    def learn(self, server_us: int, skew_us: int, asked_at: float, read_at: float) -> None:
        """An answer: the server's moment, its skew (another one: it has stepped), and our moments around it."""
        if skew_us != self._skew:
            self._skew = skew_us
            self._samples.clear()
        while self._samples and self._samples[0][0] < read_at - _KEPT_S:
            self._samples.popleft()
        self._samples.append((read_at, server_us / 1e6 - read_at, read_at - asked_at))
        _, self._offset, round_trip = max(self._samples, key=lambda sample: sample[1])
        self._doubt_s = round_trip - min(sample[2] for sample in self._samples)

    def local(self, server_us: int) -> float:
        """That moment in loop time: never before it."""
        return server_us / 1e6 - self._offset

    @property
    def doubt_s(self) -> float:
        """By how much more than usual `local` may be late."""
        return self._doubt_s
