"""
A circuit breaker as pure arithmetic on a clock that the caller passes in.

Closed it counts outcomes in slices of a sliding window; open it refuses; after `open_s` it lets one probe through, and
the probe decides. Outcomes of requests that began before the last change of state are ignored. Some upstreams answer
too many requests with a day of connection resets, and every further request prolongs it: a run of broken connections
opens a second, longer kind of open.
"""

from __future__ import annotations

from dataclasses import dataclass

_SLICES = 10


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """
    Opens at `failure_ratio` of at least `calls_min` outcomes within `window_s`; stays open for `open_s`.

    `resets_max` connections in a row that broke without an answer open it for `reset_open_s`; 0 switches that off.
    """

    failure_ratio: float = 0.5
    calls_min: int = 20
    window_s: float = 30.0
    open_s: float = 5.0
    resets_max: int = 0
    reset_open_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.failure_ratio <= 1:
            raise ValueError(f"failure_ratio={self.failure_ratio} must be above 0 and at most 1")
        if self.calls_min < 1 or self.window_s <= 0 or self.open_s <= 0:
            raise ValueError(f"calls_min={self.calls_min}, window_s={self.window_s}, open_s={self.open_s}: not above 0")
        if self.resets_max < 0 or self.reset_open_s < self.open_s:
            raise ValueError(
                f"resets_max={self.resets_max} must not be negative, "
                f"reset_open_s={self.reset_open_s} not below open_s={self.open_s}"
            )


class Breaker:
    """One upstream's breaker. Every `enter` that passes owes one `leave`."""

    __slots__ = ("_era", "_open_until", "_probing", "_resets", "_slices", "opened", "policy")

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.opened = 0
        self._era = 0
        self._open_until: float | None = None
        self._probing = False
        self._resets = 0
        self._slices: dict[int, list[int]] = {}

    def __repr__(self) -> str:
        return f"Breaker({self.state}, opened {self.opened} times)"

    @property
    def state(self) -> str:
        """`closed`, `open` (which includes waiting for a probe's turn) or `half-open`."""
        if self._open_until is None:
            return "closed"
        return "half-open" if self._probing else "open"

    def enter(self, now: float) -> tuple[int, float]:
        """`(era, 0.0)` to pass, or `(-1, seconds)` until the next probe may pass."""
        if self._open_until is None:
            return self._era, 0.0
        if now < self._open_until:
            return -1, self._open_until - now
        if self._probing:
            return -1, self.policy.open_s
        self._probing = True
        return self._era, 0.0

    def leave(self, era: int, now: float, *, failed: bool | None, reset: bool = False) -> None:
        """
        The outcome of what `enter` let pass; None (cancelled, throttled) counts neither way.

        `reset`: the connection broke, and no answer came.
        """
        if era != self._era:
            return
        if failed is not None:
            self._resets = self._resets + 1 if reset else 0
        blocked = 0 < self.policy.resets_max <= self._resets
        if self._open_until is not None:
            self._probing = False
            if failed is True:
                self._open(now, self.policy.reset_open_s if blocked else self.policy.open_s)
            elif failed is False:
                self._era += 1
                self._open_until = None
        elif blocked and failed:
            self._open(now, self.policy.reset_open_s)
        elif failed is not None:
            self._count(now, failed)

    def _count(self, now: float, failed: bool) -> None:
        slice_s = self.policy.window_s / _SLICES
        current = int(now / slice_s)
        counts = self._slices.get(current)
        if counts is None:
            self._slices = {number: pair for number, pair in self._slices.items() if number > current - _SLICES}
            counts = self._slices[current] = [0, 0]
        counts[0] += 1
        counts[1] += failed
        if not failed:
            return
        total = sum(pair[0] for pair in self._slices.values())
        failures = sum(pair[1] for pair in self._slices.values())
        if total >= self.policy.calls_min and failures >= total * self.policy.failure_ratio:
            self._open(now, self.policy.open_s)

    def _open(self, now: float, seconds: float) -> None:
        self._era += 1
        self.opened += 1
        self._slices.clear()
        self._probing = False
        self._open_until = now + seconds
