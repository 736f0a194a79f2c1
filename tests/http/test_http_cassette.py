"""Recordings: everything above the wire works on them, and no secret gets into one."""

from __future__ import annotations

import base64
import json

import pytest
from pydantic import SecretStr
from scripted_server import CountingLimiter, Limit, answer

from aegis.errors import AmbiguousOutcomeError, CassetteError, SecretInCassetteError, ThrottledError
from aegis.http import Cassette, Ok, Profile, Throttled

SECRET = "s3cret+/value=="
HEADERS = {"Authorization": f"Bearer {SECRET}", "appkey": SECRET, "tr_id": "FHKST01010100"}


def classify(request, response):
    return Throttled(0.01, code="EGW00201") if b"EGW00201" in response.content else Ok()


PROFILE = Profile("test", classify, secret_names=frozenset({"CANO"}))


async def record(client, path, url, *, save_anyway=False, **options):
    """One call, recorded; a call that fails is recorded too where that is the point."""
    with Cassette(path, record=True) as cassette:
        try:
            return await client.with_cassette(cassette).get(url, **options)
        finally:
            if save_anyway:
                cassette.save()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "tape.json"


async def test_a_recording_is_played_back_with_everything_above_the_wire(server, http, path):
    """A refusal, a lost connection and an answer: three attempts and three permits, recorded and played; no network."""
    limiter, played = CountingLimiter(), CountingLimiter()
    client = http.with_profile(PROFILE)
    server.steps = [answer(500, b"EGW00201"), None, answer(200, "삼성전자".encode("cp949"), "X-Page: 2\r\n")]
    with Cassette(path, record=True) as cassette:
        asked = client.with_rate_limiter(limiter, Limit()).with_cassette(cassette)
        recorded = await asked.get(server.url, params={"b": "1", "a": "2"}, headers=HEADERS)
    with Cassette(path) as cassette:
        asked = client.with_rate_limiter(played, Limit()).with_cassette(cassette)
        again = await asked.get(server.url, params={"a": "2", "b": "1"}, headers={"appkey": "another-key"})
        assert cassette.unplayed == 0
    assert (again.status, again.content, again.headers["x-page"]) == (200, recorded.content, "2")
    assert (again.attempts, limiter.permits, played.permits, len(server.requests)) == (3, 3, 3, 3)
    assert "삼성전자" in path.read_text()


async def test_the_same_request_gets_its_answers_in_order_and_no_more(server, http, path):
    """Two prices were recorded; a third question is an error that says so, not the last answer for ever."""
    server.steps = [answer(200, b"71900"), answer(200, b"72000"), answer(200, b"bought")]
    with Cassette(path, record=True) as cassette:
        client = http.with_cassette(cassette)
        await client.get(server.url)
        await client.get(server.url)
        await client.post_json(f"{server.url}/order", {"qty": 1, "CANO": "12345678"})
    client = http.with_cassette(cassette := Cassette(path))
    assert [(await client.get(server.url)).content for _ in range(2)] == [b"71900", b"72000"]
    with pytest.raises(CassetteError, match=r"the 2 answers to GET .* have been played already"):
        await client.get(server.url)
    with pytest.raises(CassetteError, match=r"no answer to POST .*/order with this body; it holds GET"):
        await client.post_json(f"{server.url}/order", {"qty": 2, "CANO": "12345678"})
    assert (await client.post_json(f"{server.url}/order", {"qty": 1, "CANO": "another1"})).content == b"bought"
    assert (cassette.unplayed, len(server.requests)) == (0, 3)


async def test_a_recorded_unknown_outcome_stays_unknown(server, http, path):
    """Users test with it what their program does when an order's answer is lost."""
    server.steps = [None]
    tape = Cassette(path, record=True)
    with pytest.raises(AmbiguousOutcomeError):
        await http.with_cassette(tape).post(f"{server.url}/order", b"buy")
    tape.save()
    with pytest.raises(AmbiguousOutcomeError):
        await http.with_cassette(Cassette(path)).post(f"{server.url}/order", b"buy")
    assert len(server.requests) == 1


async def test_a_stream_is_recorded_whole(server, http, path):
    """And played back in one piece; bytes that are no text as well."""
    body = b"PK\x03\x04" + bytes(range(256)) * 300
    server.steps = [answer(200, body)]
    for recording in (True, False):
        with Cassette(path, record=recording) as cassette:
            async with http.with_cassette(cassette).stream("GET", server.url) as response:
                assert b"".join([piece async for piece in response]) == body
    assert len(server.requests) == 1


async def test_no_secret_is_in_the_file_wherever_it_was(server, http, path):
    """URL, headers, form, JSON, and the upstream's echoes of them; a token that is issued; a value known by itself."""
    echo = {"access_token": "issued-token-12", "you_sent": SECRET, "me": "known-value", "price": 71900}
    server.steps = [answer(200, json.dumps(echo).encode(), "Set-Cookie: sid=cookie-value\r\n")] * 4
    with Cassette(path, record=True) as cassette:
        client = http.with_secrets(["CANO"], [SecretStr("known-value")]).with_cassette(cassette)
        await client.get(f"{server.url}/?crtfc%5Fkey=s3cret%2B%2Fvalue%3D%3D", headers=HEADERS)
        await client.get(server.url, params={"appkey": SECRET, "plain": "known-value"})
        await client.post_form(server.url, {"secretkey": SECRET, "CANO": "12345678"})
        await client.post_json(server.url, {"inner": {"appsecret": SECRET}})
    text = path.read_text()
    for secret in ("s3cret", "issued-token", "known-value", "cookie-value", "12345678", "FHKST01010100"):
        assert secret not in text
    assert "71900" in text
    assert Cassette(path)._exchanges[0].result().status == 200
    json.loads(json.loads(text)["exchanges"][0]["body"]["text"])  # a masked body is still JSON


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"\xff\xfe\x00" + SECRET.encode() + b"\xff", "body of exchange 1"),
        (base64.b64encode(SECRET.encode()), "body of exchange 1"),
        (b'{"my_token": "abcdefgh12345678"}', "'my_token' in the body of exchange 1 looks like a secret"),
    ],
)
async def test_what_cannot_be_masked_is_not_saved(server, http, path, body, where):
    """In bytes that are no text, in base64, or under a name that nobody declared: the file is not written."""
    server.steps = [answer(200, body)]
    with pytest.raises(SecretInCassetteError, match=where) as caught:
        await record(http, path, server.url, headers=HEADERS)
    assert "s3cret" not in str(caught.value)
    assert not path.exists()


async def test_an_undeclared_key_in_the_url_is_not_saved_until_it_is_declared(server, http, path):
    """`serviceKey` is how public data portals name it: declared it is masked, called harmless it is kept."""
    url = f"{server.url}/?serviceKey=abcdefgh12345678"
    with pytest.raises(SecretInCassetteError, match="'serviceKey' in the URL"):
        await record(http, path, url)
    await record(http.with_secrets(["servicekey"]), path, url)
    assert "abcdefgh" not in path.read_text()
    with Cassette(path, record=True, harmless=["serviceKey"]) as cassette:
        await http.with_cassette(cassette).get(url)
    assert "abcdefgh" in path.read_text()


async def test_a_recording_that_failed_leaves_the_old_file(server, http, path):
    """Neither a failed block nor a refused secret touches what was there."""
    path.parent.mkdir()
    path.write_text("old")
    server.steps = [answer(200, b"slow: EGW00201")] * 4
    with pytest.raises(ThrottledError):
        await record(http.with_profile(PROFILE), path, server.url)
    server.steps = [answer(200, base64.b64encode(SECRET.encode()))]
    with pytest.raises(SecretInCassetteError):
        await record(http, path, server.url, headers=HEADERS)
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["tape.json"]


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": 1, "exchanges": [{"method": 5}]}'])
def test_a_file_that_is_no_cassette_is_named(path, content):
    """With the remedy."""
    if content is not None:
        path.parent.mkdir()
        path.write_text(content)
    with pytest.raises(CassetteError, match=r"tape\.json.*record=True"):
        Cassette(path)


async def test_a_recorded_throttle_is_the_upstreams_meaning(server, http, path):
    """The profile reads the recorded bytes on every attempt."""
    server.steps = [answer(200, b"EGW00201")] * 4
    client = http.with_profile(PROFILE)
    with pytest.raises(ThrottledError):
        await record(client, path, server.url, save_anyway=True)
    with pytest.raises(ThrottledError) as caught:
        await client.with_cassette(Cassette(path)).get(server.url)
    assert (caught.value.attempts, len(server.requests)) == (4, 4)
