"""Logging in with Sentinels: their user and password are not those of the servers, and both may speak TLS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tls_front import Tls, mixed_front

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedSentinel, EmbeddedValkey
from aegis.embedded._group import asking
from aegis.errors import RedisUnavailableError
from aegis.redis import Rate, RateLimit, RateLimiter, Redis

RIGHTS = (
    "~*",
    "&*",
    "+@read",
    "+@write",
    "+@scripting",
    "+@pubsub",
    "+@connection",
    "+info",
    "+time",
    "+client",
    "+role",
)


@pytest.fixture
def guarded(valkey_sentinel: EmbeddedSentinel) -> Iterator[EmbeddedSentinel]:
    """One user of the servers, another of the Sentinels; the default users are off for clients who do not say who."""
    users = [(server, ("collector", "on", ">c0llect", *RIGHTS)) for server in valkey_sentinel.servers]
    users += [(sentinel, ("watcher", "on", ">w4tch", "&*", "+@all")) for sentinel in valkey_sentinel.sentinels]
    for server, user in users:
        _ask(server, "ACL", "SETUSER", *user)
    yield valkey_sentinel
    for server, user in users:
        _ask(server, "ACL", "DELUSER", user[0])


def _ask(server: EmbeddedValkey, *command: str) -> None:
    with asking(server) as ask:
        ask(*command)


async def test_both_logins_over_tls(
    guarded: EmbeddedSentinel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rooms work with the rights that docs/scaling.md names; certificates are verified; no password is ever shown."""
    tls = Tls(tmp_path)
    context = tls.server_context("127.0.0.1")
    first = guarded.servers[0]
    async with mixed_front(first, context) as port, mixed_front(guarded.sentinels[0], context) as sentinel_port:
        await asyncio.to_thread(guarded.reach_primary_at, port)
        login = "sentinel_username=watcher&sentinel_password=w4tch"
        url = f"rediss+sentinel://collector:c0llect@127.0.0.1:{sentinel_port}/aegis?{login}"
        try:
            with caplog.at_level(logging.DEBUG, "aegis.redis"):
                async with Redis(RedisConfig(url=url, tls_ca_file=tls.ca_file)) as redis:
                    info = await redis.execute("CLIENT", "INFO")
                    assert b"user=collector" in info
                    assert (await RateLimiter(redis).allow(RateLimit("guarded", Rate(1, per=1)))).allowed
                    assert await redis.raw.ping()
                for wrong, why in (("c0llect", "WRONGPASS"), ("w4tch", "invalid username-password|WRONGPASS")):
                    with pytest.raises(RedisUnavailableError, match=why) as refused:
                        await Redis(RedisConfig(url=url.replace(wrong, "wr0ng"), tls_ca_file=tls.ca_file)).__aenter__()
                    assert "wr0ng" not in str(refused.value)
                with pytest.raises(RedisUnavailableError, match="certificate"):
                    await Redis(RedisConfig(url=url)).__aenter__()
        finally:
            await asyncio.to_thread(guarded.reach_primary_at, first.port)
    assert not any(secret in caplog.text for secret in ("c0llect", "w4tch", "wr0ng"))
