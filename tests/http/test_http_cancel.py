"""Cancellation at every point of a call leaves the pool, the limiter and the breaker as if the call had never been."""

from __future__ import annotations

import asyncio
import random

import pytest
from scripted_server import CountingLimiter, Limit, answer, hang

from aegis.backoff import Backoff
from aegis.config import HttpConfig
from aegis.http import BreakerPolicy, HttpClient, RetryPolicy
from aegis.testing import until

HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf of it"


async def cancelled(task):
    """Cancel, and see that the cancellation came through untouched."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_call_cancelled_while_it_waits_for_a_permit_sends_nothing(server, http):
    """The limiter sees the cancellation, the server sees nothing, and the next call gets the permit."""
    limiter = CountingLimiter(gate=asyncio.Event())
    client = http.with_rate_limiter(limiter, Limit())
    task = asyncio.create_task(client.get(server.url))
    await until(lambda: limiter.waiting == 1)
    await cancelled(task)
    assert (limiter.waiting, limiter.permits, len(server.requests), client.stats().in_flight) == (0, 0, 0, 0)
    limiter.gate.set()
    assert (await client.get(server.url)).status == 200


async def test_a_call_cancelled_between_two_attempts_makes_no_second(server, http):
    """In the back-off nothing is held: no permit, no connection, no place in the breaker."""
    limiter = CountingLimiter()
    slow = RetryPolicy(backoff=Backoff(3.0, 3.0, 3.0))
    client = http.with_retry(slow).with_rate_limiter(limiter, Limit())
    server.steps = [answer(503)]
    task = asyncio.create_task(client.get(server.url))
    await until(lambda: client.stats().retries == 1)
    await cancelled(task)
    assert (len(server.requests), limiter.permits, client.stats().in_flight) == (1, 1, 0)
    assert (await client.get(server.url)).attempts == 1
    assert server.connections == 1


async def test_a_cancelled_probe_of_a_half_open_breaker_frees_its_place(server, http):
    """Cancelled in the permit wait and in flight: the next call is the probe, and it closes the circuit."""
    limiter = CountingLimiter()
    client = http.without_retry().with_breaker(BreakerPolicy(calls_min=2, open_s=0.02))
    client = client.with_rate_limiter(limiter, Limit())
    server.steps = [answer(503), answer(503), hang(), answer(200)]
    for _ in range(2):
        await client.get(server.url)
    assert list(client.stats().circuits.values()) == ["open"]
    await asyncio.sleep(0.03)
    limiter.gate = asyncio.Event()
    task = asyncio.create_task(client.get(server.url))
    await until(lambda: limiter.waiting == 1)
    assert list(client.stats().circuits.values()) == ["half-open"]
    await cancelled(task)
    limiter.gate.set()
    task = asyncio.create_task(client.get(server.url))
    await server.received(3)
    await cancelled(task)
    assert (await client.get(server.url)).status == 200
    assert list(client.stats().circuits.values()) == ["closed"]


async def test_a_call_cancelled_in_the_middle_of_a_body_gives_its_connection_up(server):
    """A connection with half an answer on it is never reused; the only place in the pool is free again."""
    async with HttpClient(HttpConfig(max_connections=1, max_connections_per_host=1)) as client:
        server.steps = [hang(HALF), answer(200, b"whole")]
        task = asyncio.create_task(client.get(server.url))
        await server.received(1)
        await asyncio.sleep(0.01)  # so that the half is read; the promise holds without it as well
        await cancelled(task)
        assert (await client.get(server.url, timeout=2.0)).content == b"whole"
        assert (server.connections, client.stats().failures) == (2, 0)


async def test_a_call_cancelled_while_it_waits_for_a_connection_keeps_its_place_from_nobody(server):
    """The waiter of a full pool goes; the connection, once free, serves the next."""
    async with HttpClient(HttpConfig(max_connections=1, max_connections_per_host=1)) as client:
        gate = asyncio.Event()
        server.steps = [hang(gate=gate, then=answer(200, b"first"))]
        first = asyncio.create_task(client.get(server.url))
        await server.received(1)
        waiting = asyncio.create_task(client.get(server.url))
        await until(lambda: client.stats().attempts == 2)
        await cancelled(waiting)
        gate.set()
        assert (await first).content == b"first"
        assert (await client.get(server.url, timeout=2.0)).status == 200
        assert len(server.requests) == 2


async def test_forty_times_ten_calls_cancelled_at_random_leave_every_connection_usable(server):
    """Four connections, 400 calls cancelled anywhere; then four calls that can only end if all four work at once."""
    chance = random.Random(5)
    async with HttpClient(HttpConfig(max_connections=4, max_connections_per_host=4)) as client:
        ended = []
        for _ in range(40):
            server.delay_s = chance.choice((0.0, 0.001, 0.004))
            tasks = [asyncio.create_task(client.get(server.url)) for _ in range(10)]
            await asyncio.sleep(chance.uniform(0, 0.006))
            for task in tasks:
                task.cancel()
            ended += await asyncio.gather(*tasks, return_exceptions=True)
        broken = [end for end in ended if isinstance(end, Exception)]
        assert broken == []
        assert sum(isinstance(end, asyncio.CancelledError) for end in ended) > 100
        server.delay_s, all_here, here = 0.0, asyncio.Event(), 0

        async def together(writer):
            nonlocal here
            here += 1
            if here == 4:
                all_here.set()
            await all_here.wait()
            writer.write(answer(200, b"together"))

        server.routes["/together"] = together
        answers = await asyncio.gather(*(client.get(f"{server.url}/together", timeout=3.0) for _ in range(4)))
        assert [response.content for response in answers] == [b"together"] * 4
        stats = client.stats()
        assert (stats.in_flight, list(stats.circuits.values())) == (0, ["closed"])
