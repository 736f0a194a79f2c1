"""
Bursts of the same warning become a few lines and a count.

The same is: one logger, one template, one upstream and outcome where the record names them; arguments may differ. The
first few within a window are written, the others counted; when the window ends, one more line gives the newest of them
and the count. Errors are never folded, because each may be about an order; nor is what is below a warning, which nobody
sees unless they asked for all of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from time import monotonic

_BURSTS_MAX = 1000


@dataclass(slots=True)
class _Burst:
    ends_at: float
    written: int = 0
    folded: int = 0
    newest: logging.LogRecord | None = None


class Fold(logging.Filter):
    """Lets `burst` of the same warning pass within `window_s`; `write` gets the line about the rest."""

    def __init__(self, burst: int, window_s: float, write: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self._burst, self._window_s, self._write = burst, window_s, write
        self._bursts: dict[Hashable, _Burst] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written now."""
        if record.levelno != logging.WARNING or not self._window_s or hasattr(record, "folded"):
            return True
        now, key = monotonic(), _key(record)
        with self._lock:
            ended = self._take_ended(now)
            burst = self._bursts.get(key)
            if burst is None:
                burst = self._bursts[key] = _Burst(now + self._window_s)
            passes = burst.written < self._burst
            if passes:
                burst.written += 1
            else:
                burst.folded += 1
                burst.newest = record
                self._wake_at(burst.ends_at, now)
        self._tell(ended)
        return passes

    def flush(self) -> None:
        """Write the lines that are still owed."""
        with self._lock:
            timer, self._timer = self._timer, None
            owed, self._bursts = list(self._bursts.values()), {}
        if timer is not None:
            timer.cancel()
        self._tell(owed)

    def _take_ended(self, now: float) -> list[_Burst]:
        """Bursts whose window is over, and the oldest where there are too many to remember. They lie in their order."""
        ended = []
        for key, burst in list(self._bursts.items()):
            if burst.ends_at > now and len(self._bursts) < _BURSTS_MAX:
                break
            ended.append(self._bursts.pop(key))
        return ended

    def _wake_at(self, at: float, now: float) -> None:
        if self._timer is None:
            self._timer = threading.Timer(max(0.0, at - now), self._ring)
            self._timer.daemon = True
            self._timer.start()

    def _ring(self) -> None:
        now = monotonic()
        with self._lock:
            self._timer = None
            ended = self._take_ended(now)
            waiting = [burst.ends_at for burst in self._bursts.values() if burst.folded]
            if waiting:
                self._wake_at(min(waiting), now)
        self._tell(ended)

    def _tell(self, ended: list[_Burst]) -> None:
        for burst in ended:
            if burst.newest is not None:
                burst.newest.folded = burst.folded
                self._write(burst.newest)


def _key(record: logging.LogRecord) -> Hashable:
    event = record.msg.get("event") if isinstance(record.msg, dict) else record.msg
    about = getattr(record, "http_upstream", None), getattr(record, "http_outcome", None)
    return record.name, str(event), about
