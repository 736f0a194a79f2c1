"""One token for all: issued once, watched for, dropped only by comparison, never shown."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from upstream_world import APP_KEY, APP_SECRET

from aegis.errors import TokenRefusedError
from aegis.redis import Rate, RateLimit
from aegis.testing import until
from aegis.upstream import Token
from aegis.upstream import _token as token_module
from aegis.upstream.simulator import Rules

FLEET = Path(__file__).parent / "token_fleet.py"


async def test_three_processes_that_start_together_issue_one_token(world, valkey_server):
    """Real processes on one Redis: one issue, nothing refused, and each can ask for a price with it."""
    spec = json.dumps({"redis": valkey_server.url, "kis": world.simulator.url, "key": APP_KEY, "secret": APP_SECRET})
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, FLEET, spec, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.PIPE
        )
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert await process.stdout.readline() == b"ready\n"
        for process in processes:
            process.stdin.write(b"go\n")
        seen = [json.loads(await process.stdout.readline()) for process in processes]
    finally:
        for process in processes:
            process.stdin.close()
            await process.wait()
    assert len({each["token"] for each in seen}) == 1
    assert all(each["price"] > 0 for each in seen)
    report = world.simulator.report()
    assert (report["tokens_issued"], report["tokens_refused"]) == (1, 0)


async def test_too_soon_is_waited_out_by_all_and_asked_again_once(world):
    """Somebody else was issued one just now: EGW00133 once, an interval of waiting, then one issue serves everybody."""
    clients = [world.kis(), (await world.sibling()).kis(), (await world.sibling()).kis()]
    await world.issue_elsewhere()
    began = time.monotonic()
    tokens = await asyncio.gather(*(client.token() for client in clients))
    assert len(set(tokens)) == 1
    assert 0.3 < time.monotonic() - began < 5
    report = world.simulator.report()
    assert (report["tokens_issued"], report["tokens_refused"]) == (2, 1)


@pytest.mark.parametrize("rules", [Rules(kis_per_second=1000, token_interval_s=60)])
async def test_who_waits_takes_the_token_that_a_sibling_shares(world):
    """The minute is not waited to its end: the store is watched, and the token is there within a second."""
    waiting, sibling = world.kis(), await world.sibling()
    await world.issue_elsewhere()
    asking = asyncio.create_task(waiting.token())
    await until(lambda: world.simulator.report()["tokens_refused"])
    shared = Token("from-a-sibling", datetime.now(UTC) + timedelta(hours=1))
    await sibling.cache.set(waiting._token._name, shared, ttl=3600)
    began = time.monotonic()
    assert await asking == "from-a-sibling"
    assert time.monotonic() - began < 2


async def test_a_refused_token_is_dropped_only_while_it_is_the_shared_one(world):
    """A client with an old token takes the newer one of its siblings, which stays where it is; nothing is issued."""
    old, sibling = world.kis(), await world.sibling()
    await old.price("005930")
    stale = old._token._known
    world.simulator.state.tokens.void()
    await asyncio.sleep(world.simulator.rules.token_interval_s)
    newer = Token(await world.issue_elsewhere(), datetime.now(UTC) + timedelta(hours=1))
    await sibling.cache.set(old._token._name, newer, ttl=3600)
    issued = world.simulator.report()["tokens_issued"]
    assert (await old.price("005930")).price > 0
    assert old._token._known == newer != stale
    assert await sibling.cache.get(old._token._name, Token) == newer
    assert world.simulator.report()["tokens_issued"] == issued


async def test_maintenance_voids_the_token_and_the_fleet_recovers_with_one_issue(world):
    """Everybody is refused at the same time; the old token is dropped once, one is issued, every call succeeds."""
    clients = [world.kis(), (await world.sibling()).kis(), (await world.sibling()).kis()]
    await asyncio.gather(*(client.price("005930") for client in clients))
    await asyncio.sleep(world.simulator.rules.token_interval_s)
    world.simulator.state.tokens.void()
    prices = await asyncio.gather(*(client.price("005930") for client in clients for _ in range(5)))
    assert all(price.price > 0 for price in prices)
    report = world.simulator.report()
    assert (report["tokens_issued"], report["tokens_refused"]) == (2, 0)


async def test_wrong_credentials_are_told_at_once_to_everybody_who_waits(world):
    """Waiting does not help, so nobody waits; processes that did not ask themselves get the same error, same words."""
    await world.kis().token()
    wrong = {"app_secret": "not-the-secret", "is_virtual": True}  # another environment: the token is not shared
    clients = [world.kis(**wrong), (await world.sibling()).kis(**wrong)]
    began = time.monotonic()
    errors = await asyncio.gather(*(client.token() for client in clients), return_exceptions=True)
    assert time.monotonic() - began < 3
    for error in errors:
        assert isinstance(error, TokenRefusedError), error
        assert (error.code, error.retry_after) == ("EGW00105", None)
        assert "KIS_APP_SECRET" in str(error)
        assert "not-the-secret" not in str(error)


async def test_paper_and_real_have_tokens_of_their_own(world):
    """The names under which they lie differ, and neither holds the key."""
    real, paper = world.kis()._token._name, world.kis(is_virtual=True)._token._name
    assert real != paper
    assert APP_KEY not in real


async def test_a_token_is_shared_until_its_end(world):
    """Not shorter, so that nobody issues without need; not longer, so that nobody uses a dead one."""
    client = world.kis()
    await client.token()
    entry = await world.cache.inspect(client._token._name)
    assert 86_400 - 60 - 30 < entry.expires_in_s <= 86_400 - 60


async def test_an_issue_that_fails_is_not_repeated_within_the_interval(world):
    """A blank 500 may have been an issue: knocking again at once would be the EGW00133 of everybody."""
    world.simulator.fail("blank-500", service="kis", path="tokenP", times=1)
    began = time.monotonic()
    assert await world.kis().token()
    assert time.monotonic() - began >= world.simulator.rules.token_interval_s
    report = world.simulator.report()
    assert (report["tokens_issued"], report["tokens_refused"]) == (1, 0)


def test_the_end_of_a_token_is_korean_time():
    """Nine hours east of Greenwich, a minute early; `expires_in` is not looked at, since it is known to be wrong."""
    token = token_module._token(token_module._Issued("t", "2026-04-21 08:59:59"))
    assert token.expires_at == datetime(2026, 4, 20, 23, 58, 59, tzinfo=UTC)


async def test_an_expired_token_is_not_used(world):
    """By our own clock, before the upstream has to say so."""
    client = world.kis()
    first = await client.token()
    client._token._known = Token(first, datetime.now(UTC) - timedelta(seconds=1))
    await world.cache.delete(client._token._name)
    await asyncio.sleep(world.simulator.rules.token_interval_s)
    await client.token()
    assert client._token._known.left_s > 0
    assert world.simulator.report()["tokens_issued"] == 2


@pytest.mark.parametrize("rules", [Rules(token_interval_s=60)])
async def test_a_second_issue_within_the_minute_is_never_even_sent(world):
    """Our own shared limit of one a minute knows it before KIS has to say so."""
    limit = RateLimit("test-token", Rate(1, per=60))
    client = world.kis(token_limit=limit)
    await client.token()
    await world.cache.delete(client._token._name)
    client._token._known = None
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.token(), 1.2)
    report = world.simulator.report()
    assert (report["tokens_issued"], report["tokens_refused"]) == (1, 0)


async def test_nothing_ever_shows_a_token_or_a_secret(world, caplog):
    """Not in logs at DEBUG (ours and the libraries'), not in errors, not in any `repr`; also when all goes wrong."""
    caplog.set_level(logging.DEBUG)
    client = world.kis()
    token = await client.token()
    world.simulator.state.tokens.void()
    await client.price("005930")
    with pytest.raises(Exception, match=r"EGW|OPSQ") as caught:
        await client.request("GET", "/uapi/domestic-stock/v1/quotations/inquire-price", "FHKST01010100")
    shown = "\n".join(
        [caplog.text, str(caught.value), repr(caught.value), repr(caught.value.response), repr(client._token._known)]
        + [str(vars(record)) for record in caplog.records]
    )
    for secret in (token, APP_KEY, APP_SECRET, "AppSecretOfATest"):
        assert secret not in shown


def test_a_token_without_a_readable_end_is_none():
    """The words say what was wrong and do not show the token."""
    with pytest.raises(ValueError, match="tomorrow") as caught:
        token_module._token(token_module._Issued("very-secret-token", "tomorrow"))
    assert "very-secret-token" not in str(caught.value)
