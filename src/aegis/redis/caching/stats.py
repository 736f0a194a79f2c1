"""What the cache counts, what it reports, and the times to live that it names."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

Lifetime = float | timedelta

TIME_MAX_S = 32_000_000_000  #: a thousand years; far above, Redis refuses what overflows its 64 bits


class TTL:
    """Times to live, in seconds."""

    SHORT = 60.0
    MEDIUM = 600.0
    LONG = 3600.0
    DAILY = 86400.0


def milliseconds(time: Lifetime, key: str, name: str = "ttl") -> int:
    """
    A time to live as whole milliseconds.

    Raises:
        ValueError: it is zero, negative, less than a millisecond or more than a thousand years; names the key.
    """
    seconds = time.total_seconds() if isinstance(time, timedelta) else time
    ms = round(seconds * 1000) if 0 < seconds <= TIME_MAX_S else 0  # also refuses NaN
    if ms == 0:
        raise ValueError(f"{name}={time!r} of cache key {key!r} is not between 0.001 and {TIME_MAX_S} seconds")
    return ms


@dataclass(slots=True)
class Counters:
    """Counted in place; `CacheStats` is the copy for readers."""

    local_hits: int = 0
    redis_hits: int = 0
    misses: int = 0
    unreadable: int = 0
    loads: int = 0
    load_errors: int = 0
    joined: int = 0
    waited: int = 0
    stale_serves: int = 0
    refreshes: int = 0
    refused_stores: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What happened since the cache was made. A namespace shares the counts of the cache that it belongs to."""

    local_hits: int  #: served from this process
    redis_hits: int  #: served from Redis
    misses: int  #: callers for whom there was no value
    unreadable: int  #: values in Redis that were foreign, damaged, of another schema or version: misses
    loads: int  #: loaders that were run by this process
    load_errors: int  #: of those, how many failed
    joined: int  #: callers who waited for a load that this process was running already
    waited: int  #: loads that were left to another process
    stale_serves: int  #: hits past their time to live, within `stale_s`
    refreshes: int  #: loads in the background, early or because of a stale serve
    refused_stores: int  #: loads whose value was not stored: the key was set or deleted meanwhile, or the lease lost
    errors: int  #: questions that Redis did not answer, or refused
    bytes_read: int
    bytes_written: int
    local_entries: int
    local_bytes: int
    evictions: int
    invalidations: int  #: entries that the server told this process to drop
    state: str  #: `up`, `down` (going on without Redis) or `disabled`
    local_trusted: bool  #: whether the in-process tier serves: its invalidation link is alive

    @property
    def hits(self) -> int:
        """Hits of both tiers."""
        return self.local_hits + self.redis_hits

    @property
    def bytes(self) -> int:
        """Bytes exchanged with Redis as values."""
        return self.bytes_read + self.bytes_written
