"""Bodies that come in pieces: begun like any call, bounded to the end, and never mistaken for an error page."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging

import pytest
from scripted_server import CountingLimiter, Limit, answer, hang

from aegis.config import HttpConfig
from aegis.errors import (
    AmbiguousOutcomeError,
    BodyTooLargeError,
    ClosedError,
    HttpConnectionError,
    HttpStatusError,
    HttpTimeoutError,
    ThrottledError,
)
from aegis.http import HttpClient, Ok, Profile, Throttled
from aegis.testing import until

LARGE = bytes(range(256)) * 4096  # 1 MiB; the `http` fixture caps whole bodies at 100,000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n"


async def read(response):
    return b"".join([piece async for piece in response])


async def fetched(client, method, url, pieces=None, **options):
    """The whole body of a stream; `pieces` holds what came even where it broke off."""
    pieces = [] if pieces is None else pieces
    async with client.stream(method, url, **options) as response:
        async for piece in response:
            pieces.append(piece)
    return b"".join(pieces)


def classify(request, response):
    return Throttled(message="too fast") if b"slow down" in response.content else Ok()


PROFILE = Profile("test", classify)


async def test_a_body_larger_than_the_cap_arrives_whole_and_its_connection_is_used_again(server, http, caplog):
    """Ten times the cap, in pieces; one attempt, one permit, one event with all bytes; then the same connection."""
    caplog.set_level(logging.DEBUG, "aegis.http")
    limiter = CountingLimiter()
    client = http.with_rate_limiter(limiter, Limit())
    server.steps = [answer(200, LARGE, "X: y\r\n")]
    async with client.stream("GET", server.url, params={"token": "s3cret"}) as response:
        assert (response.status, response.headers["x"], response.attempts) == (200, "y", 1)
        assert "s3cret" not in response.url + repr(response)
        assert client.stats().in_flight == 1
        assert await read(response) == LARGE
        assert response.received_bytes == len(LARGE)
    assert (client.stats().in_flight, client.stats().body_bytes, limiter.permits) == (0, len(LARGE), 1)
    calls = [record for record in caplog.records if hasattr(record, "http_attempts")]
    assert [(call.http_bytes, call.http_outcome) for call in calls] == [(len(LARGE), "ok")]
    await client.get(server.url)
    assert server.connections == 1


async def test_the_beginning_is_retried_and_a_short_error_means_what_it_means(server, http):
    """A 503, a lost connection and a 200 that says "slow down" are attempts like any other; then the file."""
    client = http.with_profile(Profile("test", classify)).with_rate_limiter(CountingLimiter(), Limit())
    server.steps = [None, answer(200, b"slow down"), answer(200, LARGE)]
    async with client.stream("GET", server.url) as response:
        assert response.attempts == 3
        assert await read(response) == LARGE
    server.steps = [answer(200, b"slow down")] * 4
    with pytest.raises(ThrottledError):
        await fetched(client, "GET", server.url)


async def test_a_large_answer_with_an_error_status_is_read_whole_within_the_cap(server, http):
    """It is an answer, not a file: classified by its body, and refused beyond the cap."""
    client = http.with_profile(PROFILE).without_retry()
    server.steps = [answer(500, b"slow down" + b"x" * 90_000), answer(500, LARGE)]
    with pytest.raises(ThrottledError):
        await fetched(client, "GET", server.url)
    with pytest.raises(BodyTooLargeError):
        await fetched(client, "GET", server.url)
    server.steps = [answer(404, b"none")]
    async with http.stream("GET", server.url) as response:
        with pytest.raises(HttpStatusError):
            response.raise_for_status()
        assert await read(response) == b"none"


@pytest.mark.parametrize(("method", "error"), [("GET", HttpConnectionError), ("POST", AmbiguousOutcomeError)])
async def test_a_body_that_breaks_off_is_an_error_and_is_not_begun_anew(server, http, method, error):
    """Half of it may be with the reader already. Of an order nobody knows what became."""

    async def cut(writer):
        writer.write(HEAD + LARGE[:200_000])
        await writer.drain()
        writer.close()

    server.steps = [cut]
    pieces = []
    with pytest.raises(error):
        await fetched(http, method, server.url, pieces)
    assert len(b"".join(pieces)) >= 65_536
    assert (len(server.requests), http.stats().failures, http.stats().in_flight) == (1, 1, 0)


async def test_a_body_that_stalls_ends_with_the_attempts_bound(server):
    """Silence after the first pieces is noticed although the call's deadline is far."""
    async with HttpClient(HttpConfig(attempt_timeout=0.2, connect_timeout=0.1)) as client:
        server.steps = [hang(HEAD + LARGE[:200_000])]
        with pytest.raises(HttpTimeoutError, match="stalled"):
            await fetched(client, "GET", server.url, timeout=30.0)


async def test_a_body_that_drips_ends_with_the_deadline(server, http):
    """It never stalls, and still it ends."""

    async def drip(writer):
        writer.write(HEAD + LARGE[:70_000])
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.01)

    server.steps = [drip]
    with pytest.raises(HttpTimeoutError):
        await fetched(http, "GET", server.url, timeout=0.4)


async def test_a_body_has_the_bound_that_the_caller_names(server, http):
    """Decoded bytes: a megabyte of zeros that travels as a thousand bytes is a megabyte."""
    server.steps = [answer(200, gzip.compress(b"\0" * 1_000_000), "Content-Encoding: gzip\r\n")] * 2
    assert len(await fetched(http, "GET", server.url, body_bytes_max=1_000_000)) == 1_000_000
    with pytest.raises(BodyTooLargeError, match="999999"):
        await fetched(http, "GET", server.url, body_bytes_max=999_999)


async def test_a_reader_that_leaves_early_gives_the_connection_up(server):
    """By break, by exception and by cancellation: the only place of the pool is free again."""
    async with HttpClient(HttpConfig(max_connections=1, max_connections_per_host=1)) as client:
        server.steps = [answer(200, LARGE), answer(200, LARGE), hang(HEAD + LARGE[:200_000])]
        async with client.stream("GET", server.url) as response:
            async for _ in response:
                break
        with contextlib.suppress(KeyError):
            async with client.stream("GET", server.url) as response:
                raise KeyError
        task = asyncio.create_task(fetched(client, "GET", server.url))
        await until(lambda: client.stats().in_flight == 1 and len(server.requests) == 3)
        await asyncio.sleep(0.01)  # so that it reads already; the promise holds without it as well
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.get(server.url, timeout=2.0)).status == 200
        assert client.stats().in_flight == 0


async def test_a_stream_follows_redirects_and_lets_go_of_each_hop(server):
    """However much a hop has to say beside its Location: the only place of the pool is free for the next."""
    async with HttpClient(HttpConfig(max_connections=1, max_connections_per_host=1)) as client:
        server.steps = [answer(302, LARGE, "Location: /there\r\n"), answer(200, LARGE)]
        assert await fetched(client.with_redirects(), "GET", server.url, timeout=10.0) == LARGE


async def test_a_body_is_read_once_and_only_while_it_is_open(server, http):
    """A second pass, and one after the end, say so instead of giving nothing."""
    server.steps = [answer(200, b"short"), answer(200, LARGE)]
    async with http.stream("GET", server.url) as response:
        assert await read(response) == b"short"
        with pytest.raises(ClosedError):
            await read(response)
    async with http.stream("GET", server.url) as response:
        pass
    with pytest.raises(ClosedError):
        await read(response)


async def test_the_answer_of_head_has_no_body(server, http):
    """However long it says to be."""
    server.steps = [answer()[:-2].replace(b"Content-Length: 2", b"Content-Length: 99999999")]
    async with http.stream("HEAD", server.url) as response:
        assert await read(response) == b""
