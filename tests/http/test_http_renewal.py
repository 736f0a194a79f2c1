"""Stale credentials: one renewal for everybody who needs it, and no more than one per call."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from scripted_server import FAST, CountingLimiter, Limit, answer

from aegis.errors import RejectedError, UnauthorizedError
from aegis.http import Ok, Profile, Reauth
from aegis.testing import until

OLD, NEW = {"Authorization": "Bearer old-token"}, {"Authorization": "Bearer new-token"}


class Authority:
    """Issues tokens, and counts how often it was asked."""

    def __init__(self):
        self.asked, self.gate, self.error = 0, asyncio.Event(), None
        self.gate.set()

    async def renew(self, request, response):
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return NEW


def strict(server):
    """Make the server refuse every request that does not carry the new token."""

    async def step(writer):
        fresh = b"new-token" in server.requests[-1]
        writer.write(answer(200 if fresh else 401, b"ok" if fresh else b"stale"))

    server.steps = [step] * 200


def classify(request, response):
    return Reauth("STALE") if response.status == 401 else Ok()


PROFILE = Profile("test", classify)


async def test_a_crowd_with_a_stale_token_renews_it_once(server, http):
    """Twenty calls are refused together: one renewal, twenty repeats, every one with a permit of its own."""
    authority, limiter = Authority(), CountingLimiter()
    client = http.with_profile(PROFILE).with_reauth(authority.renew).with_rate_limiter(limiter, Limit())
    strict(server)
    authority.gate.clear()
    calls = [asyncio.create_task(client.get(server.url, headers=OLD)) for _ in range(20)]
    await server.received(20)
    await until(lambda: authority.asked == 1)
    authority.gate.set()
    assert [r.content for r in await asyncio.gather(*calls)] == [b"ok"] * 20
    assert (authority.asked, limiter.permits, len(server.requests)) == (1, 40, 40)


async def test_a_renewal_is_no_retry(server, http):
    """It costs a permit, but none of the attempts: two of them are still two after it."""
    authority = Authority()
    client = http.with_retry(replace(FAST, attempts=2)).with_profile(PROFILE).with_reauth(authority.renew)
    server.steps = [answer(401, b"stale"), None, answer(200, b"ok")]
    response = await client.get(server.url, headers=OLD)
    assert (response.content, response.attempts, authority.asked) == (b"ok", 3, 1)


async def test_an_answer_to_an_old_request_does_not_renew_again(server, http):
    """It left before the last renewal ended, so its refusal says nothing about the new token."""
    authority, slow = Authority(), asyncio.Event()
    client = http.with_profile(PROFILE).with_reauth(authority.renew)

    async def late(writer):
        await slow.wait()
        writer.write(answer(401, b"stale"))

    strict(server)
    server.steps.insert(0, late)
    straggler = asyncio.create_task(client.get(server.url, headers=OLD))
    await server.received(1)
    await client.get(server.url, headers=OLD)
    assert authority.asked == 1
    slow.set()
    assert (await straggler).content == b"ok"
    assert authority.asked == 1
    await client.get(server.url, headers=OLD)
    assert authority.asked == 2


async def test_the_caller_that_began_a_renewal_may_be_cancelled(server, http):
    """The renewal goes on for the others."""
    authority = Authority()
    client = http.with_profile(PROFILE).with_reauth(authority.renew)
    strict(server)
    authority.gate.clear()
    first = asyncio.create_task(client.get(server.url, headers=OLD))
    await until(lambda: authority.asked == 1)
    second = asyncio.create_task(client.get(server.url, headers=OLD))
    await server.received(2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    authority.gate.set()
    assert (await second).content == b"ok"
    assert authority.asked == 1


async def test_a_renewal_ends_with_the_deadline_of_its_caller(server, http):
    """The call fails with the refusal it has; what was begun is ended when the client closes."""
    authority = Authority()
    client = http.with_profile(PROFILE).with_reauth(authority.renew)
    strict(server)
    authority.gate.clear()
    with pytest.raises(UnauthorizedError) as caught:
        await client.get(server.url, headers=OLD, timeout=0.2)
    assert (caught.value.code, caught.value.attempts) == ("STALE", 1)


async def test_a_failed_renewal_is_the_callers_error_and_the_next_call_may_try_again(server, http):
    """Nothing is remembered of a failure."""
    authority = Authority()
    client = http.with_profile(PROFILE).with_reauth(authority.renew)
    strict(server)
    authority.error = RejectedError("no")
    with pytest.raises(RejectedError):
        await client.get(server.url, headers=OLD)
    assert client.stats().in_flight == 0
    authority.error = None
    assert (await client.get(server.url, headers=OLD)).content == b"ok"
