"""Redirects: off unless asked for, a permit per hop, and no secret for another origin."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict
from scripted_server import CountingLimiter, Limit, answer, serving

from aegis.errors import AmbiguousOutcomeError, RejectedError, UnauthorizedError
from aegis.http import Ok, Profile, Reauth, Rejected, Request
from aegis.http._url import redirected
from aegis.http.redact import Redactor

SECRETS = {
    "Authorization": "Bearer abcd",
    "Proxy-Authorization": "Basic abcd",
    "Cookie": "session=abcd",
    "appkey": "kkkk",
    "appsecret": "ssss",
    "X-Declared": "dddd",
}
PLAIN = {"tr_id": "FHKST01010100", "User-Agent": "me"}
DECLARED = Profile("declared", lambda _request, _response: Ok(), secret_names=frozenset({"X-Declared", "hush"}))


@pytest.fixture
async def other():
    async with serving() as made:
        yield made


def move(status, location):
    return answer(status, b"", f"Location: {location}\r\n")


async def test_a_redirect_is_the_answer_unless_it_was_asked_for(server, http):
    """Off by default."""
    server.steps = [move(302, "/there")]
    response = await http.get(server.url)
    assert (response.status, response.headers["Location"], len(server.requests)) == (302, "/there", 1)


async def test_the_same_origin_keeps_secrets_and_every_hop_takes_a_permit(server, http):
    """Three requests, three permits, three in the count of attempts."""
    limiter = CountingLimiter()
    server.steps = [move(301, "/a?hush=1"), move(308, "b"), answer(200, b"end")]
    client = http.with_profile(DECLARED).with_redirects().with_rate_limiter(limiter, Limit())
    response = await client.get(server.url, headers=SECRETS | PLAIN)
    assert response.content == b"end"
    assert [request.split(b" ")[1] for request in server.requests] == [b"/", b"/a?hush=1", b"/b"]
    assert limiter.permits == response.attempts == 3
    assert all(b"appkey: kkkk" in request for request in server.requests)
    assert response.url == f"{server.url}/b"


async def test_a_failed_hop_is_retried_where_it_failed(server, http):
    """The chain does not begin anew, and four attempts are four at the last place."""
    server.steps = [move(302, "/last"), answer(503), None, answer(503), answer(200, b"end")]
    response = await http.with_redirects().get(server.url)
    assert (response.content, response.attempts) == (b"end", 5)
    assert [request.split(b" ")[1] for request in server.requests] == [b"/"] + [b"/last"] * 4


async def test_another_origin_gets_no_secret_not_even_after_a_detour(server, other, http):
    """Well-known and declared headers (each occurrence), query keys and logins stay; back home they stay away too."""
    port = other.url.rpartition(":")[2]
    server.steps = [move(302, f"http://me:pw@127.0.0.1:{port}/x?crtfc_key=k&hush=h&%68ush=h&plain=1#f"), answer()]
    other.steps = [move(302, f"{server.url}/back?token=t")]
    client = http.with_profile(DECLARED).with_redirects()
    response = await client.get(f"{server.url}/?crtfc_key=k", headers=SECRETS | PLAIN)
    assert response.status == 200
    for request in (other.requests[0], server.requests[1]):
        for name, value in SECRETS.items():
            assert name.lower().encode() not in request.lower()
            assert value.encode() not in request
        assert b"tr_id: FHKST01010100" in request
    assert other.requests[0].startswith(b"GET /x?plain=1 HTTP/1.1")
    assert server.requests[1].startswith(b"GET /back HTTP/1.1")
    assert f"Host: 127.0.0.1:{port}".encode() in other.requests[0]
    hosts = {host: (one.attempts, one.outcomes) for host, one in http.stats().upstreams.items()}
    assert hosts[f"127.0.0.1:{port}"] == (1, {"redirect": 1})
    assert hosts[server.url.removeprefix("http://")] == (2, {"redirect": 1, "ok": 1})


async def test_every_occurrence_of_a_secret_header_stays(server, other, http):
    """A header that stands twice is stripped twice (the driver once stripped the first `Authorization` only)."""
    headers = CIMultiDict([("Authorization", "Bearer one"), ("appkey", "k-one"), ("tr_id", "x"), ("Host", "mine")])
    headers.extend([("Authorization", "Bearer two"), ("appkey", "k-two"), ("Cookie", "c-one"), ("Cookie", "c-two")])
    server.steps = [move(302, other.url)]
    await http.with_redirects().get(server.url, headers=headers)
    assert [name in server.requests[0] for name in (b"Bearer one", b"Bearer two", b"k-one", b"k-two")] == [True] * 4
    left = [name for name in (b"Bearer", b"k-one", b"k-two", b"c-one", b"c-two") if name in other.requests[0]]
    assert (left, b"tr_id: x" in other.requests[0]) == ([], True)
    assert b"Host: mine" in server.requests[0]
    assert b"Host: mine" not in other.requests[0]


async def test_fresh_credentials_are_for_the_first_origin_only(server, other, http):
    """A stranger that answers 401 gets none: not asked for, not sent, and that is the error."""
    asked = []

    async def renew(request, response):
        asked.append(request.url)
        return {"Authorization": "Bearer fresh", "X-Declared": "fresh"}

    profile = Profile("p", lambda _, answered: Reauth() if answered.status == 401 else Ok(), frozenset({"X-Declared"}))
    client = http.with_profile(profile).with_reauth(renew).with_redirects()
    server.steps, other.steps = [move(302, f"{other.url}/steal")], [answer(401)] * 2
    with pytest.raises(UnauthorizedError) as caught:
        await client.get(server.url, headers=SECRETS)
    assert (asked, caught.value.attempts, len(other.requests)) == ([], 2, 1)
    server.steps, other.steps = [move(302, "/here"), answer(401), answer(200, b"in")], []
    assert (await client.get(server.url, headers=SECRETS)).content == b"in"
    assert asked == [f"{server.url}/here"]


async def test_a_call_is_in_flight_where_it_is(server, other, http):
    """Also a stream that was redirected: at the end no host has a call too many or too few."""
    server.steps, other.steps = [move(302, other.url)], [answer(200, b"x" * 10_000_000)]
    async with http.with_redirects().stream("GET", server.url):
        flying = {host: one.in_flight for host, one in http.stats().upstreams.items()}
    assert sorted(flying.values()) == [0, 1]
    assert flying[other.url.removeprefix("http://")] == 1
    assert [one.in_flight for one in http.stats().upstreams.values()] == [0, 0]


def test_a_negative_number_of_redirects_is_refused(http):
    """When the client is made, not when the first redirect comes."""
    with pytest.raises(ValueError, match="hops_max=-1"):
        http.with_redirects(-1)


async def test_an_order_is_never_redirected(server, http):
    """Whether it was executed is for the caller to find out: the 3xx is the answer."""
    server.steps = [move(307, "/again")]
    assert (await http.with_redirects().post(server.url, b"buy")).status == 307
    assert len(server.requests) == 1


async def test_a_body_goes_to_no_other_origin(server, other, http):
    """It may hold a secret that nobody can strip."""
    server.steps = [move(307, other.url)]
    with pytest.raises(RejectedError, match="with its body to another origin"):
        await http.with_redirects().post_form(server.url, {"a": 1}, idempotent=True)
    assert other.requests == []
    server.steps = [move(307, "/same")]
    await http.with_redirects().post_form(server.url, {"a": 1}, idempotent=True)
    assert server.requests[-1].startswith(b"POST /same")
    assert server.requests[-1].endswith(b"a=1")


async def test_a_loop_ends(server, http):
    """Five hops by default, six requests; the error says so and holds the last answer."""
    server.steps = [move(302, "/again")] * 10
    with pytest.raises(RejectedError, match="more than 5 redirects") as caught:
        await http.with_redirects().get(server.url)
    assert (len(server.requests), caught.value.attempts, caught.value.response.status) == (6, 6, 302)


async def test_a_redirect_without_a_place_is_the_answer(server, http):
    """304 and a 302 without Location are no redirects."""
    for status in (302, 304):
        server.steps = [answer(status, b"")]
        assert (await http.with_redirects().get(server.url)).status == status


async def test_secrets_of_the_first_place_stay_masked_at_the_last(server, other, http):
    """An echo from there is masked as well: what was once a secret of this call stays one."""
    server.steps = [move(302, other.url)]
    other.steps = [answer(200, b"you came with s3cret")]
    profile = Profile("echo", lambda _request, response: Rejected("NO", response.text()))
    with pytest.raises(RejectedError) as caught:
        await http.with_profile(profile).with_redirects().get(server.url, headers={"appkey": "s3cret"})
    assert "s3cret" not in str(caught.value)


def test_nothing_is_sent_from_https_to_http():
    """Not even without secrets; nor to other schemes."""
    request = Request("GET", "https://a.example/x", {"a": "b"})
    assert redirected(request, 302, "http://a.example/x", Redactor()) == "a redirect from https to http"
    for location in ("ftp://a/", "javascript:1", "https://[bad"):
        assert isinstance(redirected(request, 302, location, Redactor()), str)


@pytest.mark.parametrize(
    ("method", "status", "then"),
    [
        ("POST", 301, "GET"),
        ("POST", 302, "GET"),
        ("PUT", 302, "PUT"),
        ("PUT", 303, "GET"),
        ("HEAD", 303, "HEAD"),
        ("POST", 307, "POST"),
        ("POST", 308, "POST"),
    ],
)
def test_the_method_changes_as_browsers_do_it(method, status, then):
    """And a GET carries neither body nor its type."""
    content = None if method == "HEAD" else b"x"
    request = Request(method, "https://a.example/x?q=1", {"Content-Type": "text/plain"}, content)
    moved = redirected(request, status, "y", Redactor())
    assert (moved.method, moved.url) == (then, "https://a.example/y")
    assert (moved.content, "Content-Type" in moved.headers) == ((None, False) if then == "GET" else (content, True))


async def test_an_ambiguous_order_stays_ambiguous_with_redirects_on(server, http):
    """The switch changes nothing for what must not be repeated."""
    server.steps = [None]
    with pytest.raises(AmbiguousOutcomeError):
        await http.with_redirects().post(server.url, b"buy")
