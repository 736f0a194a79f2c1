"""The server's clock as this process sees it: its own monotonic clock and an offset, learned from round trips."""

from __future__ import annotations

import time
from collections import deque


class ServerClock:
    """
    Time of the server in µs, right to about half of the shortest recent round trip.

    The monotonic clock carries it between two readings, so a local clock that is set does not disturb it.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=16)  # (round trip, offset), seconds
        self._offset_s: float | None = None

    @property
    def known(self) -> bool:
        """Whether the server's time has been heard yet."""
        return self._offset_s is not None

    def heard(self, sent_at: float, received_at: float, server_us: int) -> None:
        """The server said its time between two moments of our monotonic clock."""
        self._samples.append((received_at - sent_at, server_us / 1e6 - (sent_at + received_at) / 2))
        self._offset_s = min(self._samples)[1]

    def now_us(self) -> int:
        """Now, or -1 while the server's time is unknown."""
        return self.at_us(time.monotonic())

    def at_us(self, moment: float) -> int:
        """A moment of our monotonic clock, on the server's clock; -1 while that is unknown."""
        return -1 if self._offset_s is None else int((moment + self._offset_s) * 1e6)
