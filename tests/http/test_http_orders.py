"""Orders: sent once, unless it is certain that nothing was executed; everything known is on the error."""

from __future__ import annotations

import asyncio
import pickle
import traceback

import pytest
from scripted_server import FAST, CountingLimiter, Limit, answer, hang

from aegis.config import HttpConfig
from aegis.errors import (
    AmbiguousOutcomeError,
    BodyDecodeError,
    HttpConnectionError,
    HttpError,
    HttpTimeoutError,
    RejectedError,
    TransientError,
)
from aegis.http import Ambiguous, HttpClient, Ok, Profile, Rejected, Throttled, Transient

UNKNOWN = b'{"msg_cd":"EGW00301"}'


def classify(request, response):
    """As KIS: the code in the body decides, whatever the status."""
    for code, verdict in (
        (b"EGW00301", Ambiguous("EGW00301", "connection to the ledger timed out")),
        (b"EGW00302", Ambiguous("EGW00302", "no answer from the ledger")),
        (b"EGW00201", Throttled(0.01, code="EGW00201")),
        (b"EXECUTED", Throttled(0.01, executed=True)),
        (b"SURELYNOT", Transient("SURELYNOT", executed=False)),
        (b"PERHAPS", Transient("PERHAPS")),
        (b"NO", Rejected("NO", "not allowed")),
    ):
        if code in response.content:
            return verdict
    return Ok()


@pytest.fixture
def broker(http):
    return http.with_profile(Profile("broker", classify))


@pytest.mark.parametrize("code", [b"EGW00301", b"EGW00302"])
async def test_an_order_that_the_upstream_itself_is_unsure_of_is_ambiguous_and_sent_once(server, broker, code):
    """The answer came, complete and with status 500 or 200, and still nobody knows: one request, one permit."""
    for status in (500, 200):
        limiter = CountingLimiter()
        server.steps, seen = [answer(status, b'{"msg_cd":"%b"}' % code)], len(server.requests)
        with pytest.raises(AmbiguousOutcomeError) as caught:
            await broker.with_rate_limiter(limiter, Limit()).post_json(f"{server.url}/order", {"qty": 1})
        error = caught.value
        assert (error.code, error.attempts, error.method, error.response.status) == (code.decode(), 1, "POST", status)
        assert error.url.endswith("/order")
        assert code in error.response.content
        assert [(a.outcome, a.status) for a in error.history] == [("ambiguous", status)]
        assert (len(server.requests) - seen, limiter.permits) == (1, 1)


async def test_a_query_that_the_upstream_is_unsure_of_is_repeated(server, broker):
    """Asking again for a price is harmless; if it stays so it is a passing failure, never an ambiguous one."""
    server.steps = [answer(500, UNKNOWN), answer(200, b"price")]
    assert (await broker.get(server.url)).attempts == 2
    server.steps = [answer(500, UNKNOWN)] * 4
    with pytest.raises(TransientError) as caught:
        await broker.get(server.url)
    assert (caught.value.attempts, caught.value.code) == (4, "EGW00301")


@pytest.mark.parametrize(
    ("body", "requests", "error"),
    [
        (b"EGW00201", 2, None),
        (b"SURELYNOT", 2, None),
        (b"EXECUTED", 1, "ThrottledError"),
        (b"PERHAPS", 1, "AmbiguousOutcomeError"),
        (b"NO", 1, "RejectedError"),
    ],
)
async def test_an_order_is_repeated_only_where_it_was_certainly_not_executed(server, broker, body, requests, error):
    """The profile's word counts, the status does not."""
    server.steps = [answer(500, body), answer(200, b"done")]
    ended = None
    try:
        assert (await broker.post(server.url, b"buy")).content == b"done"
    except HttpError as exc:
        ended = type(exc).__name__
    assert (ended, len(server.requests)) == (error, requests)


@pytest.mark.parametrize("step", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", hang()])
async def test_an_order_without_a_whole_answer_is_ambiguous(server, broker, step):
    """Dropped before the answer, cut in its middle, or silent until the deadline: sent once, and said so."""

    async def cut(writer):
        writer.write(step)
        writer.close()

    server.steps = [cut if isinstance(step, bytes) else step]
    with pytest.raises(AmbiguousOutcomeError, match="unknown") as caught:
        await broker.post(server.url, b"buy", timeout=0.3)
    assert caught.value.attempts == len(server.requests) == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.history, again.attempts) == (str(caught.value), caught.value.history, 1)


async def test_an_order_that_found_no_connection_in_time_did_not_leave(server):
    """Every place of the pool is taken, or the server accepts and never shakes hands: a timeout, not a mystery."""
    async with HttpClient(HttpConfig(max_connections=1, max_connections_per_host=1)) as client:
        gate = asyncio.Event()
        server.steps = [hang(gate=gate, then=answer(200))]
        first = asyncio.create_task(client.get(server.url))
        await server.received(1)
        with pytest.raises(HttpTimeoutError):
            await client.post(server.url, b"buy", timeout=0.1)
        gate.set()
        assert (await first).status == 200
        with pytest.raises(HttpTimeoutError):
            await client.post(server.url.replace("http:", "https:"), b"buy", timeout=0.1)
        assert client.stats().ambiguous == 0
    assert [request[:3] for request in server.requests] == [b"GET"]


async def test_a_profile_that_fails_does_not_hide_that_an_order_may_be_executed(server, http):
    """A fault of the classifier is an unknown outcome for an order, and names its place but not the answer's words."""

    def faulty(request, response):
        raise KeyError(response.text())

    client = http.with_profile(Profile("faulty", faulty))
    server.steps = [answer(200, b"words")] * 2
    with pytest.raises(AmbiguousOutcomeError, match=r"'faulty'.*KeyError in test_http_orders\.py:\d+") as caught:
        await client.post(server.url, b"buy")
    with pytest.raises(BodyDecodeError, match=r"'faulty'.*KeyError") as query:
        await client.get(server.url)
    for error in (caught.value, query.value):
        assert "words" not in "".join(traceback.format_exception(error))
        assert (error.attempts, error.response.content) == (1, b"words")
    assert len(server.requests) == 2


async def test_a_first_order_that_failed_unsent_and_a_second_that_left_is_ambiguous(server, broker):
    """What counts is the attempt that left: refused first, then dropped after it was sent."""
    server.steps = [answer(500, b"EGW00201"), None]
    with pytest.raises(AmbiguousOutcomeError) as caught:
        await broker.with_retry(FAST).post(server.url, b"buy")
    assert [a.outcome for a in caught.value.history] == ["throttled", "ambiguous"]
    assert len(server.requests) == 2


async def test_a_long_complaint_of_the_upstream_is_cut(server, http):
    """An error is a line, not a page; the whole answer is in `response`."""
    client = http.with_profile(Profile("long", lambda _request, response: Rejected("NO", response.text())))
    server.steps = [answer(400, b"x" * 10_000)]
    with pytest.raises(RejectedError) as caught:
        await client.post(server.url, b"buy")
    assert (len(str(caught.value)) < 700, len(caught.value.response.content)) == (True, 10_000)


async def test_ambiguous_outcomes_are_counted_and_no_connection_is_none(server, broker):
    """`stats().ambiguous` is what to alarm on; a refused connection is not among them."""
    server.steps = [None]
    with pytest.raises(AmbiguousOutcomeError):
        await broker.post(server.url, b"buy")
    with pytest.raises(HttpConnectionError):
        await broker.post("http://127.0.0.1:1/", b"buy")
    server.steps = [answer(500, b"NO")]
    with pytest.raises(RejectedError):
        await broker.post(server.url, b"buy")
    stats = broker.stats()
    assert (stats.ambiguous, stats.failures, stats.calls) == (1, 3, 3)
