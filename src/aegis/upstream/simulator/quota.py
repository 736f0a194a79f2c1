"""
A quota as an upstream counts it: arrivals in every sliding window, judged to the nanosecond of a monotonic clock.

A request is refused when with it any window would hold more *accepted* ones than the limit. `worst_window` counts every
arrival, refused ones included: it is what the client did, whatever the answer was. Two connections may be read in
another order than their requests came in, so arrivals are put in their place by time.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections import deque

_NS = 1_000_000_000
_HISTORY_MAX = 1_000_000
#: How much later than its neighbours an arrival may be told of, in windows; older ones are forgotten.
_WINDOWS_KEPT = 2
_FORGET_AT = 1024


class _Arrivals:
    """Moments in order of time, though they may be told a little out of order."""

    __slots__ = ("_per_ns", "_times")

    def __init__(self, per_ns: int) -> None:
        self._per_ns = per_ns
        self._times: list[int] = []

    def most_with(self, at_ns: int) -> int:
        """The most moments in any half-open window that holds `at_ns`, itself included."""
        times, per_ns = self._times, self._per_ns
        place = bisect_right(times, at_ns)
        most = place - bisect_right(times, at_ns - per_ns) + 1
        for later in range(place, bisect_right(times, at_ns + per_ns - 1)):
            most = max(most, later - bisect_right(times, times[later] - per_ns) + 2)
        return most

    def add(self, at_ns: int) -> None:
        """One more."""
        times = self._times
        insort(times, at_ns)
        past = bisect_right(times, times[-1] - _WINDOWS_KEPT * self._per_ns)
        past = max(past, len(times) - _HISTORY_MAX)
        if past >= _FORGET_AT:
            del times[:past]


class Quota:
    """At most `limit` accepted requests in any half-open window of `per_s` seconds."""

    def __init__(self, limit: int, per_s: float) -> None:
        self.limit, self.per_s = limit, per_s
        self._per_ns = round(per_s * _NS)
        self._accepted, self._arrived = _Arrivals(self._per_ns), _Arrivals(self._per_ns)
        self.requests = self.rejected = self.worst_window = 0
        self._history: deque[int] = deque(maxlen=_HISTORY_MAX)  # accepted arrivals, for `used`

    @property
    def accepted(self) -> int:
        """How many requests were let through."""
        return self.requests - self.rejected

    def arrive(self, at_ns: int) -> bool:
        """Count one arrival; False when it is over the quota. Two arrivals exactly `per_s` apart share no window."""
        self.requests += 1
        self.worst_window = max(self.worst_window, self._arrived.most_with(at_ns))
        self._arrived.add(at_ns)
        if self._accepted.most_with(at_ns) > self.limit:
            self.rejected += 1
            return False
        self._accepted.add(at_ns)
        self._history.append(at_ns)
        return True

    def forget(self) -> None:
        """Count anew. What is in the window stays in it: a client may not gain by asking for new statistics."""
        self.requests = self.rejected = self.worst_window = 0
        self._history.clear()

    def used(self, since_ns: int, until_ns: int) -> float:
        """
        The share of the quota used: what a window holds, averaged over every window between the two moments.

        The mean over all positions of the window does not depend on where the two moments cut a burst. A span shorter
        than two windows has too few positions: then it is accepted over allowed.
        """
        span_ns = until_ns - since_ns
        accepted = [at for at in self._history if since_ns <= at < until_ns]
        if span_ns < 2 * self._per_ns:
            return len(accepted) / (self.limit * span_ns / self._per_ns) if span_ns > 0 else 0.0
        last_start_ns = until_ns - self._per_ns
        held_ns = sum(min(at, last_start_ns) - max(at - self._per_ns, since_ns) for at in accepted)
        return held_ns / (self.limit * (last_start_ns - since_ns))

    def longest_silence_s(self, since_ns: int, until_ns: int) -> float:
        """The longest time without an accepted request between the two moments."""
        accepted = sorted(at for at in self._history if since_ns <= at < until_ns)
        return max(later - at for at, later in itertools.pairwise([since_ns, *accepted, until_ns])) / _NS


class Quotas:
    """One quota per key (app key, address), all with the same numbers."""

    def __init__(self, limit: int, per_s: float) -> None:
        self.limit, self.per_s = limit, per_s
        self._by_key: dict[str, Quota] = {}

    def change(self, limit: int) -> None:
        """Another limit from now on."""
        self.limit = limit
        for quota in self._by_key.values():
            quota.limit = limit

    def forget(self) -> None:
        """Count anew; windows stay."""
        for quota in self._by_key.values():
            quota.forget()

    def arrive(self, key: str, at_ns: int) -> bool:
        """Count one arrival for `key`."""
        quota = self._by_key.get(key)
        if quota is None:
            quota = self._by_key[key] = Quota(self.limit, self.per_s)
        return quota.arrive(at_ns)

    def report(self, since_ns: int, at_ns: int) -> dict[str, float]:
        """
        What was seen, over all keys.

        `worst_window`, and `quota_used` and `longest_silence_s` since `since_ns`, are the highest of any key.
        """
        seen = self._by_key.values()
        return {
            "limit": self.limit,
            "per": self.per_s,
            "requests": sum(quota.requests for quota in seen),
            "accepted": sum(quota.accepted for quota in seen),
            "rejected": sum(quota.rejected for quota in seen),
            "quota_used": round(max((quota.used(since_ns, at_ns) for quota in seen), default=0.0), 4),
            "longest_silence_s": round(
                max((quota.longest_silence_s(since_ns, at_ns) for quota in seen), default=0.0), 4
            ),
            "worst_window": max((quota.worst_window for quota in seen), default=0),
        }
