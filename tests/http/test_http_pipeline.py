"""The pipeline against real sockets: permits per wire request, retries, orders, breaker, secrets, charsets."""

from __future__ import annotations

import asyncio
import gzip
import pickle
import tracemalloc

import msgspec
import pytest
from scripted_server import CountingLimiter, Limit, answer

from aegis.backoff import Backoff
from aegis.config import HttpConfig
from aegis.errors import (
    AmbiguousOutcomeError,
    BodyDecodeError,
    BodyTooLargeError,
    CircuitOpenError,
    HttpConnectionError,
    HttpTimeoutError,
    RateLimitTimeoutError,
    ThrottledError,
    UnauthorizedError,
)
from aegis.http import BreakerPolicy, HttpClient, Ok, Profile, Reauth, RetryPolicy, Throttled


def by_body(request, response):
    body = response.content
    if b"slow down" in body:
        return Throttled(message="too fast")
    return Reauth() if b"stale" in body else Ok()


PROFILE = Profile("test", by_body, secret_names=frozenset({"hush"}))


async def test_a_dropped_kept_alive_connection_costs_a_permit_per_wire_request(server, http):
    """The driver's hidden second send does not exist: two requests at the server are two permits and two attempts."""
    limiter = CountingLimiter()
    client = http.with_rate_limiter(limiter, Limit())
    await client.get(server.url)
    server.steps = [None, answer(200, b"ok")]
    response = await client.get(server.url)
    assert (response.content, response.attempts) == (b"ok", 2)
    assert len(server.requests) == limiter.permits == 3 == client.stats().attempts


async def test_without_retry_makes_exactly_one_request(server, http):
    """A lost connection is one request and one error, also for a GET on a kept-alive connection."""
    await http.get(server.url)
    server.steps = [None]
    with pytest.raises(HttpConnectionError):
        await http.without_retry().get(server.url)
    assert len(server.requests) == 2


async def test_a_final_failure_is_returned_after_all_attempts_without_a_profile(server, http):
    """Four requests, then the 503 itself."""
    server.steps = [answer(503)] * 5
    response = await http.get(server.url)
    assert (response.status, response.attempts, len(server.requests)) == (503, 4, 4)


async def test_without_a_profile_the_statuses_that_pass_are_tried_again(server, http):
    """408, 429 and four of 5xx; a 501 or a 404 says the same the next time."""
    for status, attempts in ((408, 2), (429, 2), (500, 2), (502, 2), (503, 2), (504, 2), (501, 1), (404, 1), (400, 1)):
        server.steps = [answer(status)]
        assert (await http.get(server.url)).attempts == attempts, status
        server.steps = []


async def test_an_order_that_left_is_never_sent_again(server, http):
    """A POST whose connection broke is ambiguous; the caller may say that it is idempotent."""
    server.steps = [None]
    with pytest.raises(AmbiguousOutcomeError) as caught:
        await http.post_json(server.url, {"qty": 1})
    assert len(server.requests) == 1
    assert caught.value.attempts == 1
    assert pickle.loads(pickle.dumps(caught.value)).detail == caught.value.detail
    server.steps = [None]
    assert (await http.post_json(server.url, {"qty": 1}, idempotent=True)).attempts == 2


async def test_an_order_that_did_not_leave_is_sent_again(http):
    """A refused connection is safe for a POST: every attempt is made, and the outcome is not ambiguous."""
    with pytest.raises(HttpConnectionError) as caught:
        await http.post("http://127.0.0.1:1/", b"x")
    assert caught.value.attempts == 4


async def test_a_throttled_order_is_repeated_because_the_profile_says_it_was_not_executed(server, http):
    """The classifier also runs on the last attempt: a bad 200 is never returned as a success."""
    server.steps = [answer(500, b"slow down"), answer(200, b"done")]
    assert (await http.with_profile(PROFILE).post(server.url, b"x")).content == b"done"
    server.steps = [answer(200, b"slow down")] * 4
    with pytest.raises(ThrottledError) as caught:
        await http.with_profile(PROFILE).get(server.url)
    assert caught.value.attempts == len(caught.value.history) == 4


async def test_a_retry_after_beyond_the_deadline_ends_the_call_at_once(server, http):
    """It is not slept into; the shared hold moves by at most hold_max."""
    limiter = CountingLimiter()
    server.steps = [answer(429, headers="Retry-After: 3600\r\n")]
    response = await http.with_rate_limiter(limiter, Limit()).get(server.url)
    assert (response.status, response.retry_after, response.attempts) == (429, 3600.0, 1)
    assert limiter.held == [60.0]


async def test_renewed_credentials_are_tried_once_with_a_new_permit(server, http):
    """The second refusal is final."""
    limiter = CountingLimiter()

    async def renew(request, response):
        return {"Authorization": "Bearer fresh-token"}

    client = http.with_profile(PROFILE).with_rate_limiter(limiter, Limit()).with_reauth(renew)
    server.steps = [answer(500, b"stale"), answer(200, b"ok")]
    assert (await client.get(server.url, headers={"Authorization": "Bearer old-token"})).content == b"ok"
    assert b"fresh-token" in server.requests[1]
    assert limiter.permits == 2
    server.steps = [answer(500, b"stale")] * 3
    with pytest.raises(UnauthorizedError):
        await client.get(server.url)
    assert limiter.permits == len(server.requests) == 4


async def test_the_breaker_opens_before_a_permit_is_spent_and_a_limiter_refusal_is_no_failure(server, http):
    """An open circuit burns no permit; a refused permit moves no breaker."""
    limiter = CountingLimiter(refuse=True)
    policy = BreakerPolicy(calls_min=3)
    client = http.without_retry().with_breaker(policy).with_rate_limiter(limiter, Limit())
    for _ in range(10):
        with pytest.raises(RateLimitTimeoutError):
            await client.get(server.url)
    limiter.refuse = False
    server.steps = [answer(503)] * 3
    for _ in range(3):
        assert (await client.get(server.url)).status == 503
    with pytest.raises(CircuitOpenError) as caught:
        await client.get(server.url)
    assert caught.value.retry_after > 0
    assert limiter.permits == len(server.requests) == 3


async def test_an_empty_budget_returns_the_first_failure(server, http):
    """One retry's worth of tokens: the second is not made."""
    client = http.with_retry(RetryPolicy(backoff=Backoff(0.001, 0.002), budget_tokens=5.0))
    server.steps = [answer(503)] * 4
    assert (await client.get(server.url)).attempts == 2
    assert client.stats().budget_refusals == 1


async def test_the_total_deadline_bounds_a_slow_answer(server, http):
    """A timeout of the call is a timeout, whatever the attempt's own bound says."""
    server.delay_s = 0.5
    with pytest.raises(HttpTimeoutError):
        await http.get(server.url, timeout=0.1)


async def test_cancelled_calls_leave_every_connection_usable(server):
    """Forty calls cancelled in flight on a pool of four; four later ones all answer."""
    async with HttpClient(HttpConfig(max_connections=4, max_connections_per_host=4)) as client:
        server.delay_s = 0.02
        for _ in range(10):
            tasks = [asyncio.create_task(client.get(server.url)) for _ in range(4)]
            await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True)
            )
        assert [r.status for r in await asyncio.gather(*(client.get(server.url) for _ in range(4)))] == [200] * 4
        assert client.stats().in_flight == 0


async def test_a_body_above_the_cap_is_refused(server, http):
    """Declared or not."""
    server.steps = [
        answer(200, b"x" * 100_001),
        b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + b"186a1\r\n" + b"y" * 100_001 + b"\r\n0\r\n\r\n",
    ]
    for _ in range(2):
        with pytest.raises(BodyTooLargeError):
            await http.get(server.url)


async def test_a_body_that_unpacks_beyond_the_cap_is_refused_before_it_is_unpacked_whole(server, http):
    """Fifty megabytes of zeros travel as fifty thousand bytes; what is held stays near the cap."""
    bomb = gzip.compress(b"\0" * 50_000_000)
    assert len(bomb) < 100_000
    server.steps = [answer(200, bomb, "Content-Encoding: gzip\r\n")]
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError, match="100000 bytes"):
            await http.get(server.url)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


async def test_a_body_is_capped_on_the_wire_as_well(server, http):
    """Noise that unpacks to less than it weighs: chunk after chunk of an empty gzip member is still traffic."""
    member = gzip.compress(b"x" * 10)
    body = member * 6000
    assert 60_000 < 100_000 < len(body)
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(member) * 100, member * 100) for _ in range(60)) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 X\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.steps = [head + chunked]
    with pytest.raises(BodyTooLargeError):
        await http.get(server.url)


@pytest.mark.parametrize("charset", ["euc-kr", "KS_C_5601-1987", "ksc5601"])
async def test_korean_labels_are_read_as_cp949(server, http, charset):
    """A syllable that strict EUC-KR lacks is read, and nothing is ever replaced."""
    server.steps = [answer(200, "똠방각하".encode("cp949"), f"Content-Type: text/html; charset={charset}\r\n")]
    assert (await http.get(server.url)).text() == "똠방각하"
    server.steps = [answer(200, b"\xff\xff", f"Content-Type: text/html; charset={charset}\r\n")]
    with pytest.raises(BodyDecodeError):
        (await http.get(server.url)).text()


async def test_a_document_names_its_own_charset(server, http):
    """The XML prolog and the meta element count where the header is silent."""
    for prolog in (
        '<?xml version="1.0" encoding="EUC-KR" ?>',
        '<meta http-equiv="x" content="text/html; charset=euc-kr">',
    ):
        server.steps = [answer(200, (prolog + "삼성전자").encode("cp949"))]
        assert (await http.get(server.url)).text().endswith("삼성전자")


async def test_json_is_typed_and_tolerant(server, http):
    """Added fields are ignored, a wrong shape names its path."""

    class Price(msgspec.Struct):
        now: int

    server.steps = [answer(200, b'{"now": 7, "new": 1}'), answer(200, b'{"now": "x"}')]
    assert (await http.get(server.url)).json(Price).now == 7
    with pytest.raises(BodyDecodeError, match=r"\$\.now"):
        (await http.get(server.url)).json(Price)


def test_contradicting_bounds_are_refused_with_both_values():
    """At construction, not in the night."""
    with pytest.raises(ValueError, match=r"window_s=15\.0 .*HTTP_ATTEMPT_TIMEOUT=10\.0"):
        HttpClient(HttpConfig()).with_breaker(BreakerPolicy(window_s=15.0))
    slow, hasty = Backoff(9.0, 9.0, 8.0), HttpClient(HttpConfig(timeout=5.0, attempt_timeout=5.0))
    with pytest.raises(ValueError, match=r"attempts=2, .*floor_s=8\.0 .*HTTP_TIMEOUT=5\.0"):
        hasty.with_retry(RetryPolicy(2, slow, slow))
    for wrong, named in (
        ({"timeout": 5.0}, "HTTP_ATTEMPT_TIMEOUT: 10s is longer than HTTP_TIMEOUT=5s"),
        ({"connect_timeout": 11.0}, "HTTP_CONNECT_TIMEOUT: 11s is longer than HTTP_ATTEMPT_TIMEOUT=10s"),
        (
            {"max_connections": 4, "max_connections_per_host": 5},
            "HTTP_MAX_CONNECTIONS_PER_HOST: 5 is above HTTP_MAX_CONNECTIONS=4",
        ),
    ):
        with pytest.raises(ValueError, match=named):
            HttpConfig(**wrong)
