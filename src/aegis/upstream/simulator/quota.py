"""
A quota as an upstream counts it: arrivals in every sliding window, judged to the nanosecond of a monotonic clock.

A request is refused when as many as the limit were *accepted* in the window that ends with it. `worst_window` counts
every arrival, refused ones included: it is what the client did, whatever the answer was.
"""

from __future__ import annotations

from collections import deque

_NS = 1_000_000_000
_HISTORY_MAX = 1_000_000


class Quota:
    """At most `limit` accepted requests in any half-open window of `per_s` seconds."""

    def __init__(self, limit: int, per_s: float) -> None:
        self.limit, self.per_s = limit, per_s
        self._per_ns = round(per_s * _NS)
        self._accepted: deque[int] = deque()
        self._arrived: deque[int] = deque()
        self.requests = self.rejected = self.worst_window = 0
        self._history: deque[int] = deque(maxlen=_HISTORY_MAX)  # accepted arrivals, for `used`

    @property
    def accepted(self) -> int:
        """How many requests were let through."""
        return self.requests - self.rejected

    def arrive(self, at_ns: int) -> bool:
        """Count one arrival; False when it is over the quota. Two arrivals exactly `per_s` apart share no window."""
        oldest = at_ns - self._per_ns
        for times in (self._accepted, self._arrived):
            while times and times[0] <= oldest:
                times.popleft()
        self.requests += 1
        self._arrived.append(at_ns)
        self.worst_window = max(self.worst_window, len(self._arrived))
        if len(self._accepted) >= self.limit:
            self.rejected += 1
            return False
        self._accepted.append(at_ns)
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
        """What was seen, over all keys; `worst_window`, and `quota_used` since `since_ns`, are the highest of any."""
        seen = self._by_key.values()
        return {
            "limit": self.limit,
            "per": self.per_s,
            "requests": sum(quota.requests for quota in seen),
            "accepted": sum(quota.accepted for quota in seen),
            "rejected": sum(quota.rejected for quota in seen),
            "quota_used": round(max((quota.used(since_ns, at_ns) for quota in seen), default=0.0), 4),
            "worst_window": max((quota.worst_window for quota in seen), default=0),
        }
