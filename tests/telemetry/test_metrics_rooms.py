"""The numbers of the rooms: every statistic has a metric, and it says what `stats()` says, on real servers."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from aegis.redis import Lane
from aegis.telemetry import samples_of
from aegis.telemetry.rooms import of_broadcast, of_cache, of_database, of_http, of_limiter, of_redis

LIMIT = "metrics-test"  #: of the `busy` fixture

#: Fields of the rooms' statistics that no metric needs, with the reason.
LEFT_OUT = {
    "redis": {"state", "connections", "in_flight_max", "latency", "errors"},  # up; reconnects + 1; histogram; by kind
    "cache": {"state"},  # up
    "broadcast": set(),
    "database": {"total"},  # the sum of the states
}


def values(runtime):
    return {(sample.name, *(value for _, value in sample.labels)): sample.value for sample in runtime.samples()}


async def test_metrics_say_what_the_rooms_say(busy):
    """By limit and lane, tier, upstream and outcome, state and reason; taken in one moment."""
    found = values(busy)
    limit = busy.limiter.stats().limits[LIMIT]
    normal = limit.lanes[Lane.NORMAL]
    assert found["limiter_waits", LIMIT, "normal", "granted"] == normal.granted == 2
    assert found["limiter_waits", LIMIT, "normal", "refused"] == normal.refused == 1
    assert found["limiter_decisions", LIMIT, "denied"] == limit.denied == 1
    assert {name[2] for name in found if name[0] == "limiter_waiting"} >= {"urgent", "normal", "bulk"}
    cache = busy.cache.stats()
    assert found["cache_hits", "local"] + found["cache_hits", "redis"] == cache.hits >= 1
    assert (found["cache_loads",], found["cache_misses",]) == (cache.loads, cache.misses)
    bus = busy.bus.stats()
    assert found["broadcast_received", busy.bus.topic] == bus.received >= 1
    assert found["broadcast_lag_seconds", busy.bus.topic, "0.5"] == bus.lag_p50_s
    http = busy.http.stats()
    (host,) = (host for host in http.upstreams if host != "127.0.0.1:1")
    assert found["http_requests", host, "ok"] == http.upstreams[host].outcomes["ok"] == 2
    assert found["http_requests", host, "ambiguous"] == found["http_requests", host, "throttled"] == 1
    assert found["http_refusals", host, "budget"] == 1
    assert found["http_refusals", host, "limiter"] == 1
    assert found["http_requests", "127.0.0.1:1", "connect"] == 1
    assert found["http_circuit", host, "closed"] == 1
    assert found["http_circuit", host, "open"] == 0
    pool = busy.db.stats()
    assert found["database_connections", "idle"] == pool.idle
    assert (found["database_acquires",], found["database_connections_max",]) == (pool.acquired, pool.max)
    assert (found["redis_up",], found["redis_errors", "WRONGTYPE"]) == (1, 1)
    assert found["process_cpu_seconds",] > 0
    histograms = {sample.name: sample for sample in busy.samples() if sample.buckets}
    assert histograms["redis_command_seconds"].buckets[-1][1] == busy.redis.stats().latency.count
    assert "s3cret" not in str(found)


async def test_every_statistic_of_a_room_is_a_metric(busy):
    """Each field is given a number of its own, and that number is found again; or it is left out with a reason."""
    rooms = {
        "redis": (busy.redis, of_redis),
        "cache": (busy.cache, of_cache),
        "broadcast": (busy.bus, of_broadcast),
        "database": (busy.db, of_database),
    }
    for room, (thing, samples) in rooms.items():
        record = thing.stats()
        fields = [field.name for field in dataclasses.fields(record) if field.name not in LEFT_OUT[room]]
        marks = {field: 1_000_001 + number for number, field in enumerate(fields)}
        marked = SimpleNamespace(topic="quotes", stats=lambda record=record, marks=marks: replace(record, **marks))
        found = {sample.value for sample in samples(marked)}
        assert [field for field, mark in marks.items() if mark not in found] == [], room
    upstream = next(iter(busy.http.stats().upstreams.values()))
    limit = busy.limiter.stats().limits[LIMIT]
    for record, samples, around, left_out in (
        (upstream, of_http, lambda one: SimpleNamespace(upstreams={"h": one}), {"outcomes", "refusals", "circuit"}),
        (limit, of_limiter, lambda one: SimpleNamespace(limits={"l": one}), {"lanes"}),
        (limit.lanes[Lane.NORMAL], of_limiter, lambda one: around_lane(limit, one), set()),
    ):
        fields = [field.name for field in dataclasses.fields(record)]
        fields = [
            name for name in fields if name not in left_out | {"elapsed_counts", "attempts"}
        ]  # a histogram; a sum
        marks = {field: 1_000_001 + number for number, field in enumerate(fields)}
        whole = around(replace(record, **marks))
        found = {sample.value for sample in samples(SimpleNamespace(stats=lambda whole=whole: whole))}
        assert [field for field, mark in marks.items() if mark not in found] == [], record


def around_lane(limit, lane):
    return SimpleNamespace(limits={"l": replace(limit, lanes={Lane.NORMAL: lane})})


async def test_rooms_that_are_not_there_cost_nothing(runtime):
    """A process without a database has no metrics of one, and none is zero by mistake."""
    names = {sample.name for sample in samples_of(redis=runtime.redis)}
    assert {name.partition("_")[0] for name in names} == {"redis", "process"}


async def test_the_documented_names_are_those_of_the_metrics(busy):
    """All of them, and no other, in the table of docs/telemetry.md."""
    page = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ") and "_" in line.split("|")[2]]
    documented = {name for row in rows[1:] for code in re.findall("`(.*?)`", row) for name in code.split()}
    served = {sample.name + "_total" * sample.total for sample in busy.samples()} | {"process_up"}
    assert documented == served
