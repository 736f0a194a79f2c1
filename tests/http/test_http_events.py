"""What a call tells: one structured event per attempt and one per call; and policies that fit upstream and limit."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
from time import monotonic

import pytest
from scripted_server import FAST, CountingLimiter, Limit, answer, hang

from aegis.backoff import Backoff
from aegis.config import HttpConfig
from aegis.errors import (
    AmbiguousOutcomeError,
    CircuitOpenError,
    ClosedError,
    HttpConnectionError,
    HttpTimeoutError,
    RateLimitTimeoutError,
)
from aegis.http import BreakerPolicy, HttpClient, Ok, Profile, Reauth, RetryPolicy
from aegis.redis import Rate, RateLimit
from aegis.testing import until

HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


async def test_each_attempt_and_each_call_is_one_structured_event(server, http, caplog):
    """Method, masked URL, number, permit wait, status, bytes, seconds and outcome, as fields, not as prose."""
    caplog.set_level(logging.DEBUG, "aegis.http")
    server.steps = [answer(503, b"down"), answer(200, b"done!")]
    await http.with_rate_limiter(CountingLimiter(), Limit()).get(f"{server.url}/p?token=x")
    events = [(record.levelname, record.getMessage().split(" GET ")[0]) for record in caplog.records]
    assert [event if "retry" not in event[1] else "retry" for event in events] == [
        ("DEBUG", "http attempt"),
        "retry",
        ("DEBUG", "http attempt"),
        ("DEBUG", "http call"),
    ]
    first, retry, _, call = (record.__dict__ for record in caplog.records)
    assert retry["levelname"] == "WARNING"
    url = f"{server.url}/p?token=***"
    assert {name: first[name] for name in first if name.startswith("http_") and not name.endswith("_s")} == {
        "http_call": call["http_call"],
        "http_upstream": server.url.removeprefix("http://"),
        "http_method": "GET",
        "http_url": url,
        "http_attempt": 1,
        "http_status": 503,
        "http_bytes": 4,
        "http_outcome": "transient",
    }
    assert re.fullmatch(r"http retry GET .*: transient: again in [0-9.]+ s", retry["message"])
    assert first["http_permit_wait_s"] >= 0
    assert 0 < first["http_elapsed_s"] < call["http_elapsed_s"]
    assert (call["http_attempts"], call["http_status"], call["http_bytes"], call["http_outcome"]) == (2, 200, 9, "ok")


async def test_an_observer_gets_one_record_per_call_with_all_its_attempts(server, http, caplog):
    """Traces are made of it. What an observer raises is logged, and spoils neither the call nor other observers."""
    seen = []

    def faulty(call):
        raise KeyError

    http.observe(faulty)
    http.with_retry(FAST).observe(seen.append)
    server.steps = [answer(503), answer(200)]
    assert (await http.get(f"{server.url}/p?token=x")).attempts == 2
    with pytest.raises(HttpConnectionError):
        await http.without_retry().get("http://127.0.0.1:1/")
    good, bad = seen
    assert (good.method, good.url, good.outcome, good.error) == ("GET", f"{server.url}/p?token=***", "ok", "")
    assert good.upstream == server.url.removeprefix("http://")
    first, second = good.attempts
    assert [(one.number, one.outcome, one.status) for one in good.attempts] == [(1, "transient", 503), (2, "ok", 200)]
    assert 0 <= first.started_s < first.started_s + first.elapsed_s <= second.started_s
    assert second.started_s + second.elapsed_s <= good.elapsed_s
    assert (bad.outcome, bad.error, len(bad.attempts)) == ("connect", "HttpConnectionError", 1)
    assert [r.message for r in caplog.records if "observer" in r.message] == [
        "an observer of the HTTP client failed"
    ] * 2


async def test_statistics_tell_hosts_and_outcomes_apart(server, http):
    """Requests begun, by what they came to; refusals, by what refused; time, bytes, circuit and budget of each host."""
    server.steps = [answer(503), answer(429), answer(200, b"12345")]
    await http.get(server.url)
    host = server.url.removeprefix("http://")
    with pytest.raises(HttpConnectionError):
        await http.get("http://127.0.0.1:1/")
    limiter = CountingLimiter(refuse=True)
    with pytest.raises(RateLimitTimeoutError):
        await http.with_rate_limiter(limiter, Limit()).get(server.url)
    server.steps = [hang()]
    task = asyncio.create_task(http.get(server.url))
    await server.received(4)
    stats = http.stats()
    here, there = stats.upstreams[host], stats.upstreams["127.0.0.1:1"]
    assert (here.calls, here.attempts, here.retries, here.failures, here.in_flight) == (3, 4, 2, 1, 1)
    assert here.outcomes == {"transient": 1, "throttled": 1, "ok": 1}
    assert (here.refusals, here.circuit, here.circuit_opened) == ({"limiter": 1}, "closed", 0)
    assert (here.body_bytes, sum(here.elapsed_counts), here.elapsed_s > 0) == (9, 3, True)
    assert here.budget_tokens == 100 - 5 - 1 + 1
    assert (there.outcomes, there.attempts, there.failures) == ({"connect": 4}, 4, 1)
    assert (stats.calls, stats.attempts, stats.retries, stats.failures, stats.in_flight) == (4, 8, 5, 2, 1)
    assert (stats.throttled, stats.ambiguous, stats.circuit_refusals, stats.budget_refusals) == (1, 0, 0, 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert http.stats().upstreams[host].outcomes["cancelled"] == 1


async def test_closing_ends_what_is_in_flight(server):
    """Wherever a call waits, long before any limit of its own; only of an order that left nobody knows the outcome."""
    server.routes = {
        "/silent": hang(),
        "/half": hang(HALF + b"x" * 100_000),
        "/busy": answer(503),
        "/stale": answer(401),
    }
    records, gated, renewing = [], CountingLimiter(gate=asyncio.Event()), asyncio.Event()

    async def renew(request, response):
        renewing.set()
        await asyncio.Event().wait()

    async def read():
        async with client.stream("GET", f"{server.url}/half") as response:
            async for _ in response:
                pass

    async with HttpClient(HttpConfig(timeout=300.0, attempt_timeout=15.0)) as root:
        client = root.with_retry(RetryPolicy(backoff=Backoff(100.0, 200.0, 100.0)))
        client.observe(records.append)
        renewed = client.with_profile(Profile("p", lambda _, answered: Reauth() if answered.status == 401 else Ok()))
        calls = [
            client.get(f"{server.url}/silent"),
            client.get(f"{server.url}/half"),
            client.get(f"{server.url}/busy"),
            client.with_hedging(0.01).get(f"{server.url}/half"),
            client.with_rate_limiter(gated, Limit()).get(server.url),
            renewed.with_reauth(renew).get(f"{server.url}/stale"),
            read(),
            client.post(f"{server.url}/silent", b"buy"),
            client.post(f"{server.url}/half", b"buy"),
        ]
        tasks = [asyncio.create_task(call) for call in calls]
        await server.received(9)
        await until(lambda: gated.waiting and client.stats().retries and renewing.is_set())
    async with asyncio.timeout(10):
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [ClosedError] * 7 + [AmbiguousOutcomeError] * 2
    assert sorted(record.outcome for record in records) == ["ambiguous"] * 2 + ["closed"] * 7
    assert (client.stats().in_flight, list(client.stats().circuits.values())) == (0, ["closed"])


async def test_every_call_is_told_also_one_that_no_upstream_ended(server, http):
    """A renewal that raises or gives nothing, and a cancelled caller, of a call and of a stream."""
    records = []
    http.observe(records.append)
    stale = http.with_profile(Profile("p", lambda _, answered: Reauth() if answered.status == 401 else Ok()))

    async def broken(request, response):
        raise RuntimeError("the token service is down: secret")

    async def empty(request, response):
        return None

    async def read():
        async with http.stream("GET", server.url) as response:
            async for _ in response:
                reading.set()

    reading = asyncio.Event()
    server.steps = [answer(401), answer(401), hang(), hang(HALF + b"x" * 100_000)]
    with pytest.raises(RuntimeError):
        await stale.with_reauth(broken).get(server.url)
    with pytest.raises(TypeError, match=r"with_reauth.* not NoneType"):
        await stale.with_reauth(empty).get(server.url)
    for number, call in ((3, http.get(server.url)), (4, read())):
        task = asyncio.create_task(call)
        await server.received(number)
        await (reading.wait() if number == 4 else asyncio.sleep(0))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    ends = [("raised", "RuntimeError"), ("raised", "TypeError"), ("cancelled", ""), ("cancelled", "")]
    assert [(record.outcome, record.error) for record in records] == ends
    assert (http.stats().calls, http.stats().failures, http.stats().in_flight) == (4, 2, 0)


async def test_a_failed_call_is_one_error_line(http, caplog):
    """At ERROR, with the count of attempts; the attempts themselves are DEBUG and stay silent."""
    caplog.set_level(logging.INFO, "aegis.http")
    with pytest.raises(HttpConnectionError):
        await http.without_retry().get("http://127.0.0.1:1/")
    (record,) = caplog.records
    assert (record.levelname, record.http_attempts, record.http_outcome) == ("ERROR", 1, "connect")


def test_an_unconfigured_process_prints_nothing():
    """A failure is an exception, not a line on somebody's terminal."""
    program = """
import asyncio
from aegis.errors import HttpConnectionError
from aegis.http import HttpClient, RetryPolicy
from aegis.backoff import Backoff
async def main():
    async with HttpClient() as http:
        try:
            await http.with_retry(RetryPolicy(backoff=Backoff(0.001, 0.002))).get("http://127.0.0.1:1/")
        except HttpConnectionError:
            pass
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("", "")


async def test_an_answer_that_drips_is_bounded_by_the_deadline(server, http):
    """A byte every 20 ms satisfies any read timeout for ever; the total does not care."""

    async def drip(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)

    server.steps = [drip]
    began = monotonic()
    with pytest.raises(HttpTimeoutError):
        await http.get(server.url, timeout=0.3)
    assert 0.25 < monotonic() - began < 1.5
    assert (await http.get(server.url)).status == 200


async def test_an_attempt_has_a_bound_of_its_own(server, http):
    """A hung attempt is given up in time for another, within one deadline."""
    server.steps = [hang(), answer(200, b"second")]
    http._shared.config = http._shared.config.model_copy(update={"attempt_timeout": 0.1})
    response = await http.with_retry(FAST).get(server.url, timeout=3.0)
    assert (response.content, response.attempts) == (b"second", 2)


async def test_a_profile_brings_the_breaker_that_fits_its_upstream(server, http):
    """Two resets: no third request for ten minutes, and the wait is said. The caller's own breaker overrules it."""
    policy = BreakerPolicy(resets_max=2, reset_open_s=600.0)
    profile = Profile("blocks", lambda _request, _response: Ok(), breaker=policy)
    server.steps = [None] * 4
    with pytest.raises(HttpConnectionError) as caught:
        await http.with_profile(profile).get(server.url)
    assert (caught.value.attempts, caught.value.stopped_by, len(server.requests)) == (2, "circuit", 2)
    with pytest.raises(CircuitOpenError) as caught:
        await http.with_profile(profile).get(server.url)
    assert 590 < caught.value.retry_after <= 600
    own = http.with_breaker(BreakerPolicy(calls_min=50)).with_profile(profile)
    server.steps = []
    assert (await own.get(server.url)).status == 200


def test_a_breaker_that_its_limit_can_never_open_is_refused():
    """Two calls a minute never make twenty in thirty seconds; the message names both numbers, in either order."""
    slow, policy = RateLimit("slow", Rate(2, per=60.0)), BreakerPolicy(calls_min=20)
    with pytest.raises(ValueError, match=r"calls_min=20 .*'slow' allows 1 calls in window_s=30\.0"):
        HttpClient().with_breaker(policy).with_rate_limiter(CountingLimiter(), slow)
    with pytest.raises(ValueError, match="calls_min=20"):
        HttpClient().with_rate_limiter(CountingLimiter(), slow).with_breaker(policy)
    HttpClient().with_rate_limiter(CountingLimiter(), slow)
    HttpClient().with_breaker(BreakerPolicy(calls_min=1)).with_rate_limiter(CountingLimiter(), slow)
