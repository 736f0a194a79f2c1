"""The client on a real Sentinel group that loses no primary: finding it, logging in, TLS. The rest: test_failover_*."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from failover_load import FAST
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


async def test_the_group_has_its_primary_where_it_was_put(valkey_sentinel: EmbeddedSentinel) -> None:
    """The URL names the Sentinels and the group; they see every replica in step."""
    assert valkey_sentinel.primary is valkey_sentinel.servers[0]
    assert valkey_sentinel.url.startswith("redis+sentinel://127.0.0.1:")
    assert valkey_sentinel.url.endswith("/aegis")
    await asyncio.to_thread(valkey_sentinel.wait_until_whole)


async def test_a_sentinel_that_is_dead_and_one_that_hangs_cost_a_moment(valkey_sentinel: EmbeddedSentinel) -> None:
    """All are asked at once, so the third answers within the time for a connection."""
    dead, hung, _ = valkey_sentinel.sentinels
    dead.kill()
    hung.pause()
    try:
        async with Redis(RedisConfig(url=valkey_sentinel.url, connect_timeout=3.0)) as client:
            assert await client.execute("SET", "k", 1) == b"OK"
    finally:
        hung.resume()
        await asyncio.to_thread(dead.start)


async def test_no_sentinel_and_an_unknown_name_are_told_apart(valkey_sentinel: EmbeddedSentinel) -> None:
    """The error names the group, and what the Sentinels did not know."""
    with pytest.raises(RedisUnavailableError, match=r"other of Sentinels.*no healthy primary.*No such master"):
        await Redis(RedisConfig(url=valkey_sentinel.url.replace("/aegis", "/other"), **FAST)).__aenter__()
    with pytest.raises(RedisUnavailableError, match=r"no healthy primary.*Connect call failed"):
        await Redis(RedisConfig(url="redis+sentinel://127.0.0.1:1/aegis", **FAST)).__aenter__()
