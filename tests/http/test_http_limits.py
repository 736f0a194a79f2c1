"""With the real limiter on a real server: permits, holds and refusals as the upstream would see them."""

from __future__ import annotations

import asyncio
import logging
import pickle
from time import monotonic

import pytest
from scripted_server import FAST, CountingLimiter, Limit, answer

from aegis.backoff import Backoff
from aegis.errors import (
    CircuitOpenError,
    HttpTimeoutError,
    RateLimitTimeoutError,
    RedisUnavailableError,
    ThrottledError,
    TransientError,
)
from aegis.http import BreakerPolicy, Ok, Profile, RetryPolicy, Throttled, Transient
from aegis.redis import Rate, RateLimit, RateLimiter
from aegis.testing import until

#: A permit that a stalled machine takes up later than half of `pad` is lost and another one taken: none of that here.
WIDE_PAD_S = 6.0
SLOW = RateLimit("http-test", Rate(2, per=30.0), pad=WIDE_PAD_S)


def classify(request, response):
    if b"slow down" in response.content:
        return Throttled(7.5, message="too fast")
    return Transient("down") if response.status == 503 else Ok()


PROFILE = Profile("test", classify)


async def test_every_request_on_the_wire_takes_a_permit_of_the_shared_limiter(server, http, redis):
    """A dropped kept-alive connection and a 503 are requests like any other: three sent, three permits gone."""
    limiter, limit = RateLimiter(redis), RateLimit("http-test", Rate(50, per=30.0), pad=WIDE_PAD_S)
    client = http.with_rate_limiter(limiter, limit, key="account")
    await client.get(server.url)
    server.steps = [None, answer(503), answer(200)]
    response = await client.get(server.url)
    assert (response.attempts, len(server.requests)) == (3, 4)
    assert (await limiter.peek(limit, key="account")).used == 4


async def test_a_permit_that_cannot_come_in_time_ends_the_call_before_anything_is_sent(server, http, redis, caplog):
    """The refusal is the limiter's own error, at once, counted as a failed call and as no failure of the upstream."""
    client = http.with_rate_limiter(RateLimiter(redis), SLOW).with_breaker(BreakerPolicy(calls_min=1))
    for _ in range(2):
        await client.get(server.url)
    began = monotonic()
    with pytest.raises(RateLimitTimeoutError) as caught:
        await client.get(server.url, timeout=2.0)
    assert monotonic() - began < 1.0
    assert caught.value.retry_after_s > 20
    assert (len(server.requests), client.stats().failures) == (2, 1)
    assert list(client.stats().circuits.values()) == ["closed"]
    assert [r.http_outcome for r in caplog.records if r.levelno == logging.ERROR] == ["limiter"]


async def test_a_cancelled_permit_wait_gives_its_slot_to_the_next(server, http, redis):
    """The reservation of a cancelled call is free again, so nobody waits for a request that never comes."""
    limiter, limit = RateLimiter(redis), RateLimit("http-test", Rate(1, per=0.5))
    client = http.with_rate_limiter(limiter, limit)
    await client.get(server.url)
    task = asyncio.create_task(client.get(server.url))
    await until(lambda: limiter.stats().waiting == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await client.get(server.url, timeout=1.5)
    assert len(server.requests) == 2


async def test_a_refusal_of_the_upstream_holds_everybody_back(server, http, redis):
    """One process is told to come back in 7.5 s: another process' limiter knows it, and the error says when."""
    limiter, other = RateLimiter(redis), RateLimiter(redis)
    limit = RateLimit("http-test", Rate(50, per=1.0))
    server.steps = [answer(200, b"slow down")]
    with pytest.raises(ThrottledError) as caught:
        await http.with_profile(PROFILE).with_rate_limiter(limiter, limit).get(server.url, timeout=3.0)
    assert (caught.value.retry_after, caught.value.stopped_by, caught.value.attempts) == (7.5, "deadline", 1)
    assert 6.0 < (await other.peek(limit)).held_for <= 7.5


@pytest.mark.parametrize(("header", "pause"), [("", 7.5), ("Retry-After: 3\r\n", 7.5), ("Retry-After: 50\r\n", 50.0)])
async def test_of_the_profiles_pause_and_the_headers_the_longer_one_counts(server, http, header, pause):
    """For the hold, for the error, and for the rule that a pause beyond the deadline ends the call at once."""
    limiter = CountingLimiter()
    client = http.with_profile(PROFILE).with_rate_limiter(limiter, Limit())
    server.steps = [answer(200, b"slow down", header)]
    with pytest.raises(ThrottledError) as caught:
        await client.get(server.url)
    assert (caught.value.retry_after, limiter.held, caught.value.stopped_by) == (pause, [pause], "deadline")


async def test_a_failure_that_passes_tells_the_headers_pause(server, http):
    """A verdict without a pause of its own leaves the header's."""
    server.steps = [answer(503, headers="Retry-After: 99\r\n")]
    with pytest.raises(TransientError) as caught:
        await http.with_profile(PROFILE).get(server.url)
    assert caught.value.retry_after == 99.0


@pytest.mark.parametrize("status", [429, 503])
async def test_a_retry_after_is_waited_for_and_told_to_everybody(server, http, status):
    """Too fast or down for maintenance: the pause is the upstream's, and every process keeps it."""
    limiter, times = CountingLimiter(), []

    async def stamp(writer):
        times.append(monotonic())
        writer.write(answer(200) if len(times) > 1 else answer(status, headers="Retry-After: 1\r\n"))

    server.steps = [stamp, stamp]
    response = await http.with_rate_limiter(limiter, Limit()).get(server.url)
    assert (response.status, response.attempts, limiter.held) == (200, 2, [1.0])
    assert times[1] - times[0] >= 1.0


async def test_a_retry_after_on_the_last_attempt_is_told_and_not_slept(server, http):
    """There is no further attempt to wait for: the answer comes at once, and the others are still warned."""
    limiter = CountingLimiter()
    server.steps = [answer(429, headers="Retry-After: 4\r\n")]
    began = monotonic()
    response = await http.without_retry().with_rate_limiter(limiter, Limit()).get(server.url)
    assert (response.status, response.retry_after, response.attempts, limiter.held) == (429, 4.0, 1, [4.0])
    assert monotonic() - began < 3.0


@pytest.mark.parametrize(("status", "slow"), [(429, "throttle_backoff"), (503, "backoff")])
async def test_too_fast_and_broken_have_scales_of_their_own(server, http, status, slow):
    """A refusal for speed and a failure each wait on their own scale."""
    quick = Backoff(0.001, 0.001)
    scales = {"backoff": quick, "throttle_backoff": quick, slow: Backoff(0.3, 0.3, 0.3)}
    server.steps = [answer(status)]
    began = monotonic()
    assert (await http.with_retry(RetryPolicy(**scales)).get(server.url)).attempts == 2
    assert monotonic() - began >= 0.3


async def test_a_garbled_retry_after_is_no_pause(server, http):
    """The ordinary back-off applies, and nobody is held."""
    limiter = CountingLimiter()
    server.steps = [answer(429, headers="Retry-After: soon\r\n"), answer(503, headers="Retry-After: -5\r\n")]
    response = await http.with_rate_limiter(limiter, Limit()).get(server.url)
    assert (response.status, response.attempts, limiter.held) == (200, 3, [])


async def test_too_fast_is_no_failure_of_the_upstream(server, http):
    """It answers, and says when to come back: neither a 429 nor a profile's refusal opens the circuit."""
    client = http.without_retry().with_breaker(BreakerPolicy(calls_min=2))
    server.steps = [answer(429)] * 4 + [answer(200, b"slow down")] * 4
    for _ in range(4):
        assert (await client.get(server.url)).status == 429
    for _ in range(4):
        with pytest.raises(ThrottledError):
            await client.with_profile(PROFILE).get(server.url)
    assert (len(server.requests), list(client.stats().circuits.values())) == (8, ["closed"])


class Broken(CountingLimiter):
    """Raises what it is told to, when a permit is asked for or when a pause is told."""

    def __init__(self, in_wait=None, in_hold=None):
        super().__init__()
        self.in_wait, self.in_hold = in_wait, in_hold

    async def wait(self, limit, key="", cost=1, timeout=None):
        if self.in_wait is not None:
            raise self.in_wait
        return await super().wait(limit, key, cost, timeout)

    async def hold(self, limit, seconds, key=""):
        raise self.in_hold


FAILURES = [RedisUnavailableError("h:1", "refused"), TimeoutError("mine"), OSError("gone"), RuntimeError("a bug")]


@pytest.mark.parametrize("error", FAILURES)
async def test_a_hold_that_cannot_be_shared_does_not_spoil_the_answer(server, http, caplog, error):
    """The answer is there; that the others do not know of the pause is a warning."""
    server.steps = [answer(429, headers="Retry-After: 9\r\n")]
    response = await http.without_retry().with_rate_limiter(Broken(in_hold=error), Limit()).get(server.url)
    assert (response.status, response.retry_after) == (429, 9.0)
    assert "http hold not shared" in caplog.text


@pytest.mark.parametrize("error", FAILURES)
async def test_without_a_permit_nothing_is_sent_whatever_the_limiter_raises(server, http, error):
    """Its error is the call's, once; a TimeoutError of its own is not mistaken for the call's deadline."""
    records = []
    http.observe(records.append)
    with pytest.raises(type(error)) as caught:
        await http.with_rate_limiter(Broken(in_wait=error), Limit()).post(server.url, b"buy")
    assert (caught.value, server.requests, http.stats().in_flight) == (error, [], 0)
    assert [(record.outcome, record.error) for record in records] == [("limiter", type(error).__name__)]


class OnePermit(CountingLimiter):
    async def wait(self, limit, key="", cost=1, timeout=None):
        self.refuse = self.permits > 0
        return await super().wait(limit, key, cost, timeout)


async def test_an_error_says_what_kept_the_next_attempt_from_being_made(server, http):
    """By an open circuit, the limiter, the deadline or the budget; the first failure stays the error."""
    client = http.with_profile(PROFILE)
    breaker = BreakerPolicy(calls_min=1)
    cases = {
        "circuit": client.with_breaker(breaker),
        "limiter": client.with_rate_limiter(OnePermit(), Limit()),
        "budget": client.with_retry(type(FAST)(backoff=FAST.backoff, budget_tokens=5.0)),
    }
    for reason, case in cases.items():
        server.steps = [answer(503)] * 4
        with pytest.raises(TransientError, match="no further attempt") as caught:
            await case.get(server.url)
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.stopped_by, error.response.status, error.code) == (reason, 503, "down")
        assert error.retry_budget_exhausted == (reason == "budget")
    with pytest.raises(CircuitOpenError):
        await client.with_breaker(breaker).get(server.url)


async def test_a_returned_response_says_it_as_well(server, http):
    """Without a profile there is no error to carry it."""
    server.steps = [answer(503)] * 4
    response = await http.with_rate_limiter(OnePermit(), Limit()).get(server.url)
    assert (response.status, response.stopped_by, response.attempts) == (503, "limiter", 1)
    server.steps = [answer(503)] * 4
    response = await http.get(server.url)
    assert (response.stopped_by, response.attempts) == ("", 4)


async def test_a_limiter_that_oversleeps_does_not_send_after_the_deadline(server, http):
    """The total deadline holds for a limiter that ignores its timeout, and the wait is counted."""
    client = http.with_rate_limiter(CountingLimiter(gate=asyncio.Event()), Limit())
    with pytest.raises(HttpTimeoutError, match="nothing was sent"):
        await client.get(server.url, timeout=0.1)
    assert server.requests == []
    assert client.stats().permit_wait_s >= 0.09
