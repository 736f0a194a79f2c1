"""
What the rooms count, as samples: the only place that knows both the records of `stats()` and the names of the metrics.

Names follow Prometheus: base units last (`_seconds`, `_bytes`), `_total` for what only grows. Labels come from closed
or bounded lists (limits, lanes, hosts, outcomes), never from keys, URLs or accounts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from aegis.database import Database
from aegis.http import HttpClient
from aegis.http.records import ELAPSED_BOUNDS_S
from aegis.redis import Cache, PubSub, RateLimiter, Redis
from aegis.telemetry.sample import Sample, histogram

_STATM = Path("/proc/self/statm")


def samples_of(
    *,
    redis: Redis | None = None,
    limiter: RateLimiter | None = None,
    cache: Cache | None = None,
    bus: PubSub | None = None,
    http: HttpClient | None = None,
    db: Database | None = None,
) -> Iterator[Sample]:
    """Every number of the given rooms, and of the process. Call it in the thread of their event loop."""
    yield from _of_process()
    if redis is not None:
        yield from of_redis(redis)
    if limiter is not None:
        yield from of_limiter(limiter)
    if cache is not None:
        yield from of_cache(cache)
    if bus is not None:
        yield from of_broadcast(bus)
    if http is not None:
        yield from of_http(http)
    if db is not None:
        yield from of_database(db)


def _of_process() -> Iterator[Sample]:
    yield Sample("process_cpu_seconds", "CPU time of the process.", time.process_time(), total=True)
    if _STATM.exists():
        resident = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        yield Sample("process_resident_memory_bytes", "Memory of the process.", resident)


def of_redis(redis: Redis) -> Iterator[Sample]:
    """The shared connection."""
    now = redis.stats()
    yield Sample("redis_up", "Whether the connection is there; 1 too where Redis is disabled.", _up(now.state))
    yield Sample("redis_commands", "Commands answered.", now.commands, total=True)
    for kind, count in now.errors.items():
        yield Sample("redis_errors", "Commands that failed, by kind.", count, (("kind", kind),), total=True)
    yield Sample("redis_reconnects", "Connections made after a loss.", now.reconnects, total=True)
    yield Sample("redis_connect_failures", "Attempts to connect that failed.", now.connect_failures, total=True)
    yield Sample("redis_in_flight", "Commands in flight.", now.in_flight)
    yield Sample("redis_waiting", "Callers that wait for a connection or for room on it.", now.waiting)
    yield Sample("redis_sent_bytes", "Bytes sent.", now.bytes_sent, total=True)
    yield Sample("redis_received_bytes", "Bytes received.", now.bytes_received, total=True)
    counts = now.latency.counts
    bounds = [now.latency.upper_bound_s(bucket) for bucket in range(len(counts) - 1)]
    yield histogram("redis_command_seconds", "Time to the reply.", now.latency.sum_s, bounds, counts)


def of_limiter(limiter: RateLimiter) -> Iterator[Sample]:
    """Each limit and lane."""
    for name, now in limiter.stats().limits.items():
        limit = ("limit", name)
        for outcome, count in (("allowed", now.allowed), ("denied", now.denied)):
            labels = (limit, ("outcome", outcome))
            yield Sample("limiter_decisions", "Answers of allow, by outcome.", count, labels, total=True)
        for lane, seen in now.lanes.items():
            named = (limit, ("lane", lane.name.lower()))
            for outcome in ("granted", "refused", "timed_out", "cancelled"):
                ended = (*named, ("outcome", outcome))
                yield Sample("limiter_waits", "Ends of wait, by outcome.", getattr(seen, outcome), ended, total=True)
            yield Sample("limiter_waiting", "Callers of wait now.", seen.waiting, named)
            yield Sample("limiter_wait_seconds", "Time waited for granted permits.", seen.waited_s, named, total=True)
        yield Sample("limiter_reserved", "Permits held here now, for moments to come.", now.reserved, (limit,))
        yield Sample("limiter_late", "Permits lost: the process woke too late.", now.late, (limit,), total=True)
        yield Sample("limiter_returned", "Permits given back unused.", now.returned, (limit,), total=True)
        yield Sample("limiter_server_calls", "Calls to the server.", now.server_calls, (limit,), total=True)
        yield Sample("limiter_outages", "Calls to the server that failed.", now.outages, (limit,), total=True)
        yield Sample("limiter_held_seconds", "Time until the longest known hold ends.", now.held_for, (limit,))


def of_cache(cache: Cache) -> Iterator[Sample]:
    """Both tiers."""
    now = cache.stats()
    yield Sample("cache_up", "Whether Redis answers the cache; 1 too where Redis is disabled.", _up(now.state))
    yield Sample("cache_local_trusted", "Whether the tier in the process serves.", now.local_trusted)
    for tier, hits in (("local", now.local_hits), ("redis", now.redis_hits)):
        yield Sample("cache_hits", "Values served, by tier.", hits, (("tier", tier),), total=True)
    for name, meaning, count in (
        ("cache_misses", "Callers for whom there was no value.", now.misses),
        ("cache_unreadable", "Values in Redis that could not be read.", now.unreadable),
        ("cache_loads", "Loaders run by this process.", now.loads),
        ("cache_load_errors", "Loaders that failed.", now.load_errors),
        ("cache_joined", "Callers who waited for a load of this process.", now.joined),
        ("cache_waited", "Loads that were left to another process.", now.waited),
        ("cache_stale_serves", "Hits past their time to live.", now.stale_serves),
        ("cache_refreshes", "Loads in the background.", now.refreshes),
        ("cache_refused_stores", "Loads whose value was overtaken.", now.refused_stores),
        ("cache_errors", "Questions that Redis did not answer.", now.errors),
        ("cache_evictions", "Entries pushed out of the process.", now.evictions),
        ("cache_invalidations", "Entries dropped because the server said so.", now.invalidations),
        ("cache_read_bytes", "Bytes of values read.", now.bytes_read),
        ("cache_written_bytes", "Bytes of values written.", now.bytes_written),
    ):
        yield Sample(name, meaning, count, total=True)
    yield Sample("cache_local_entries", "Entries in the process.", now.local_entries)
    yield Sample("cache_local_bytes", "Bytes of entries in the process.", now.local_bytes)


def of_broadcast(bus: PubSub) -> Iterator[Sample]:
    """One topic, its lag first."""
    now = bus.stats()
    topic = (("topic", bus.topic),)
    for quantile, lag_s in (("0.5", now.lag_p50_s), ("0.99", now.lag_p99_s)):
        labels = (*topic, ("quantile", quantile))
        yield Sample("broadcast_lag_seconds", "From publish to arrival, an upper bound.", lag_s, labels)
    yield Sample("broadcast_connected", "Whether the connection that listens is up.", now.connected, topic)
    yield Sample("broadcast_silent_seconds", "Since the server was last heard.", now.silent_s, topic)
    yield Sample("broadcast_pending", "Ticks in the outbox.", now.pending, topic)
    yield Sample("broadcast_buffered", "Updates that wait for a consumer.", now.buffered, topic)
    yield Sample("broadcast_subscriptions", "Subscriptions.", now.subscriptions, topic)
    for name, meaning, count in (
        ("broadcast_published", "Ticks published.", now.published),
        ("broadcast_frames", "Frames published.", now.frames),
        ("broadcast_received", "Ticks received.", now.received),
        ("broadcast_frames_received", "Frames received.", now.frames_received),
        ("broadcast_outbox_conflated", "Ticks folded before they were sent.", now.outbox_conflated),
        ("broadcast_conflated", "Ticks folded for slow consumers.", now.conflated),
        ("broadcast_evicted", "Updates dropped for slow consumers, each reported.", now.evicted),
        ("broadcast_gaps", "Losses reported.", now.gaps),
        ("broadcast_repairs", "Partitions read again.", now.repairs),
        ("broadcast_restored", "Values written again that the server had lost.", now.restored),
        ("broadcast_heartbeats", "Heartbeats heard.", now.heartbeats),
        ("broadcast_reconnects", "Reconnects of the connection that listens.", now.reconnects),
    ):
        yield Sample(name, meaning, count, topic, total=True)


def of_http(http: HttpClient) -> Iterator[Sample]:
    """Each upstream and outcome."""
    for host, now in http.stats().upstreams.items():
        upstream = ("upstream", host)
        for outcome, count in now.outcomes.items():
            labels = (upstream, ("outcome", outcome))
            yield Sample("http_requests", "Requests on the wire, by outcome.", count, labels, total=True)
        for by, count in now.refusals.items():
            labels = (upstream, ("by", by))
            yield Sample("http_refusals", "Requests that were kept from being made.", count, labels, total=True)
        for state in ("closed", "half-open", "open"):
            labels = (upstream, ("state", state))
            yield Sample("http_circuit", "1 for the state that the circuit is in.", now.circuit == state, labels)
        for name, meaning, value in (
            ("http_calls", "Calls.", now.calls),
            ("http_failures", "Calls that ended with an error.", now.failures),
            ("http_retries", "Requests repeated.", now.retries),
            ("http_permit_wait_seconds", "Time waited for permits.", now.permit_wait_s),
            ("http_body_bytes", "Bytes of bodies received, decoded.", now.body_bytes),
            ("http_circuit_opened", "How often the circuit opened.", now.circuit_opened),
        ):
            yield Sample(name, meaning, value, (upstream,), total=True)
        yield Sample("http_in_flight", "Calls in flight.", now.in_flight, (upstream,))
        yield Sample("http_budget_tokens", "Tokens left for retries.", now.budget_tokens, (upstream,))
        counts = now.elapsed_counts
        meaning = "Time from the request to the end of its answer."
        yield histogram("http_request_seconds", meaning, now.elapsed_s, ELAPSED_BOUNDS_S, counts, upstream)


def of_database(db: Database) -> Iterator[Sample]:
    """The pool."""
    now = db.stats()
    for state in ("idle", "active", "connecting", "closing"):
        labels = (("state", state),)
        yield Sample("database_connections", "Connections, by state.", getattr(now, state), labels)
    yield Sample("database_connections_max", "Most connections of this process.", now.max)
    yield Sample("database_waiting", "Callers that wait for a connection.", now.waiting)
    for reason, count in (
        ("lifetime", now.closed_by_lifetime),
        ("idle_time", now.closed_by_idle_time),
        ("dirty", now.closed_dirty),
        ("lost", now.lost),
    ):
        yield Sample("database_closed", "Connections closed, by reason.", count, (("reason", reason),), total=True)
    for name, meaning, value in (
        ("database_acquires", "Connections handed out.", now.acquired),
        ("database_acquire_seconds", "Time from asking to having a connection.", now.acquire_wait_s),
        ("database_waits", "Acquires that found no idle connection.", now.waited),
        ("database_wait_seconds", "Time that those waited.", now.waited_s),
        ("database_canceled", "Acquires whose caller was cancelled.", now.canceled),
        ("database_timeouts", "Acquires that timed out.", now.timeouts),
        ("database_refused", "Acquires refused because too many waited.", now.refused),
        ("database_opened", "Connections opened.", now.opened),
        ("database_connect_failures", "Attempts to connect that failed.", now.connect_failures),
        ("database_resets", "Sessions reset.", now.resets),
        ("database_leaks", "Connections reported as held for too long.", now.leaks),
    ):
        yield Sample(name, meaning, value, total=True)


def _up(state: str) -> bool:
    return state in {"connected", "up", "disabled"}
