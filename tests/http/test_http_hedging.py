"""Hedging: one answer from the quicker of two requests, each paid for; never a third, never for an order."""

from __future__ import annotations

import asyncio

import pytest
from scripted_server import FAST, CountingLimiter, Limit, answer, hang

from aegis.backoff import Backoff
from aegis.errors import HttpTimeoutError, RateLimitTimeoutError
from aegis.http import HttpClient, RetryPolicy
from aegis.testing import until

SOON = 0.02
THROTTLED = answer(429, headers="Retry-After: 7\r\n")


class FreeOnce(CountingLimiter):
    """One permit is free; whoever does not want to wait for the next is refused."""

    async def wait(self, limit, key="", cost=1, timeout=None):
        if self.permits and timeout == 0.0:
            raise RateLimitTimeoutError(limit.name, timeout, 0.2)
        return await super().wait(limit, key, cost, timeout)


def outcomes(http: HttpClient) -> dict[str, int]:
    [upstream] = http.stats().upstreams.values()
    return {name: count for name, count in upstream.outcomes.items() if count}


async def test_the_second_answer_counts_when_the_first_is_silent(server, http):
    """Two requests, two permits, one answer; the loser's connection is closed and everything still works."""
    server.steps = [hang(), answer(body=b'{"by":"second"}')]
    limiter = CountingLimiter()
    client = http.with_rate_limiter(limiter, Limit()).with_hedging(SOON)
    response = await client.get(server.url)
    assert (response.content, response.attempts) == (b'{"by":"second"}', 2)
    assert (len(server.requests), limiter.permits) == (2, 2)
    assert outcomes(http) == {"hedged": 1, "ok": 1}
    assert (http.stats().attempts, http.stats().in_flight) == (2, 0)
    assert (await client.get(server.url)).status == 200


async def test_the_first_answer_counts_when_it_comes_first(server, http):
    """The second is cancelled; nobody waits for it."""
    gate = asyncio.Event()
    server.steps = [hang(gate=gate, then=answer(body=b'{"by":"first"}')), hang()]
    call = asyncio.create_task(http.with_hedging(SOON).get(server.url))
    await server.received(2)
    gate.set()
    assert (await call).content == b'{"by":"first"}'
    assert outcomes(http) == {"hedged": 1, "ok": 1}


async def test_who_answers_in_time_is_asked_once(server, http):
    """The second request is for the tail."""
    client = http.with_hedging(1.0)
    for _ in range(3):
        await client.get(server.url)
    assert len(server.requests) == 3


@pytest.mark.parametrize("first", [answer(500), answer(429), None])
async def test_a_bad_answer_waits_for_the_other(server, http, first):
    """An error of one is no reason to throw the other away."""
    gate, late = asyncio.Event(), asyncio.Event()
    drop = first is None
    server.steps = [hang(gate=gate, then=first or b""), hang(gate=late, then=answer(body=b'{"by":"second"}'))]
    if drop:

        async def broken(writer):
            await gate.wait()
            writer.transport.abort()

        server.steps[0] = broken
    call = asyncio.create_task(http.with_hedging(SOON).get(server.url))
    await server.received(2)
    gate.set()
    await asyncio.sleep(0.05)
    assert not call.done()
    late.set()
    assert (await call).content == b'{"by":"second"}'
    assert len(server.requests) == 2


@pytest.mark.parametrize(("first", "second"), [(THROTTLED, answer()), (answer(503), THROTTLED)])
async def test_a_pause_that_the_other_answer_asked_for_is_kept(server, http, first, second):
    """Whoever wins, and if neither does: "too fast" was said to all of us, and every process hears it."""
    gates, limiter = [asyncio.Event(), asyncio.Event()], CountingLimiter()
    server.steps = [hang(gate=gates[0], then=first), hang(gate=gates[1], then=second)]
    client = http.with_retry(RetryPolicy(attempts=2)).with_rate_limiter(limiter, Limit()).with_hedging(SOON)
    call = asyncio.create_task(client.get(server.url))
    await server.received(2)
    gates[0].set()
    await asyncio.sleep(0.05)  # so that the first is read; in the other order the winner is alone
    gates[1].set()
    await call
    assert (limiter.held, len(server.requests)) == ([7.0], 2)


async def test_both_bad_is_one_failed_attempt_that_is_tried_again(server, http):
    """Both count as attempts: of four, two are left, and then two more."""
    gate = asyncio.Event()
    bad = hang(gate=gate, then=answer(500))
    server.steps = [bad, bad, answer(500), answer(500)]
    call = asyncio.create_task(http.with_hedging(SOON).get(server.url))
    await server.received(2)
    gate.set()
    response = await call
    assert (response.status, response.attempts, len(server.requests)) == (500, 4, 4)


async def test_the_last_attempt_has_no_second_request(server, http):
    """`RetryPolicy.attempts` bounds what goes on the wire."""
    gate = asyncio.Event()
    server.steps = [answer(500), hang(gate=gate, then=answer())]
    client = http.with_retry(RetryPolicy(attempts=2, backoff=Backoff(0.001, 0.002))).with_hedging(SOON)
    call = asyncio.create_task(client.get(server.url))
    await server.received(2)
    await asyncio.sleep(5 * SOON)
    gate.set()
    assert (await call).attempts == len(server.requests) == 2


async def test_no_permit_free_now_means_no_second_request(server, http):
    """It does not wait for one: the quota is for calls, not for impatience."""
    gate = asyncio.Event()
    server.steps = [hang(gate=gate, then=answer())]
    limiter = FreeOnce()
    call = asyncio.create_task(http.with_rate_limiter(limiter, Limit()).with_hedging(SOON).get(server.url))
    await until(lambda: any(one.refusals for one in http.stats().upstreams.values()))
    gate.set()
    assert (await call).attempts == 1
    assert (len(server.requests), limiter.permits) == (1, 1)
    [upstream] = http.stats().upstreams.values()
    assert (upstream.refusals, upstream.budget_tokens) == ({"limiter": 1}, FAST.budget_tokens)


@pytest.mark.parametrize("error", [TimeoutError(), OSError("gone")])
async def test_a_limiter_that_fails_means_no_second_request(server, http, error):
    """Whatever it raises: the first request goes on, and its answer counts."""
    gate = asyncio.Event()
    server.steps = [hang(gate=gate, then=answer())]

    class Fails(CountingLimiter):
        async def wait(self, limit, key="", cost=1, timeout=None):
            if timeout == 0.0:
                raise error
            return 0.0

    call = asyncio.create_task(http.with_rate_limiter(Fails(), Limit()).with_hedging(SOON).get(server.url))
    await until(lambda: any(one.refusals for one in http.stats().upstreams.values()))
    gate.set()
    assert (await call).attempts == len(server.requests) == 1
    [upstream] = http.stats().upstreams.values()
    assert upstream.budget_tokens == FAST.budget_tokens


async def test_an_empty_budget_means_no_second_request(server, http):
    """Hedging does not add to the load of an upstream that fails."""
    policy = RetryPolicy(attempts=2, backoff=Backoff(0.001, 0.002), budget_tokens=5.0, refund=0.0)
    client = http.with_retry(policy).with_hedging(SOON)
    gate = asyncio.Event()
    server.steps = [hang(), answer(), hang(gate=gate, then=answer())]
    await client.get(server.url)
    call = asyncio.create_task(client.get(server.url))
    await until(lambda: any(one.refusals for one in http.stats().upstreams.values()))
    gate.set()
    assert (await call).attempts == 1
    assert len(server.requests) == 3


@pytest.mark.parametrize(("method", "body"), [("POST", b"x"), ("PUT", None), ("DELETE", None), ("GET", b"x")])
async def test_what_changes_something_is_never_sent_twice(server, http, method, body):
    """Not even where the caller says that it may be repeated: the two would race."""
    gate = asyncio.Event()
    server.steps = [hang(gate=gate, then=answer())]
    call = asyncio.create_task(http.with_hedging(SOON).request(method, server.url, content=body, idempotent=True))
    await server.received(1)
    await asyncio.sleep(5 * SOON)
    gate.set()
    assert (await call).attempts == 1
    assert len(server.requests) == 1


async def test_an_open_circuits_probe_is_one_request(server, http):
    """One probe decides, and it is one."""
    [breaker] = [http.with_hedging(SOON)._shared.upstream(server.url, http._settings).breaker]
    breaker._open(-100.0, 1.0)
    gate = asyncio.Event()
    server.steps = [hang(gate=gate, then=answer())]
    call = asyncio.create_task(http.with_hedging(SOON).get(server.url))
    await server.received(1)
    await asyncio.sleep(5 * SOON)
    gate.set()
    await call
    assert len(server.requests) == 1


@pytest.mark.parametrize("received", [1, 2])
async def test_cancelling_the_call_ends_both(server, http, received):
    """Before and after the second left: nothing stays in flight, the next call works."""
    server.steps = [hang(), hang()]
    client = http.with_hedging(SOON if received == 2 else 1.0)
    call = asyncio.create_task(client.get(server.url))
    await server.received(received)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert outcomes(http) == {"cancelled": received}
    assert http.stats().in_flight == 0
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "aegis.http.hedge"]
    assert (await client.get(server.url)).status == 200


async def test_the_deadline_bounds_both(server, http):
    """A second request gets what is left."""
    server.steps = [hang(), hang()]
    with pytest.raises(HttpTimeoutError) as told:
        await http.with_hedging(SOON).get(server.url, timeout=0.2)
    assert [attempt.outcome for attempt in told.value.history] == ["hedged", "timeout"]


def test_contradictions_fail_at_construction():
    """Both values are named."""
    http = HttpClient()
    with pytest.raises(ValueError, match=r"after_s=-1.*HTTP_ATTEMPT_TIMEOUT"):
        http.with_hedging(-1)
    with pytest.raises(ValueError, match=r"after_s=1000.*HTTP_ATTEMPT_TIMEOUT=10"):
        http.with_hedging(1000)
    with pytest.raises(ValueError, match=r"after_s=nan"):
        http.with_hedging(float("nan"))
    with pytest.raises(ValueError, match=r"after_s=1.*attempts=1"):
        http.without_retry().with_hedging(1)
    assert http.with_hedging(1).with_hedging(0).without_retry()
