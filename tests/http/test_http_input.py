"""What callers pass in: URLs as people write them, bodies of any size, and what cannot be sent at all."""

from __future__ import annotations

import pytest
from scripted_server import answer

from aegis.errors import BodyDecodeError, HttpTimeoutError, OneShotBodyError, RejectedError
from aegis.http import BreakerPolicy, HttpClient
from aegis.http.breaker import Breaker
from aegis.http.redact import Redactor


@pytest.mark.parametrize(
    ("path", "on_the_wire"),
    [
        ("/a b", b"/a%20b"),
        ("/삼성?q=전자", b"/%EC%82%BC%EC%84%B1?q=%EC%A0%84%EC%9E%90"),
        ("/ok%2Fok?a=%41+b", b"/ok%2Fok?a=%41+b"),
        ("/a://b:c/?d=e://f:g", b"/a://b:c/?d=e://f:g"),
    ],
)
async def test_a_url_goes_out_in_ascii_and_what_is_encoded_already_stays(server, http, path, on_the_wire):
    """Spaces and Korean are percent-encoded; an encoded slash, which some signatures depend on, is not touched."""
    await http.get(server.url + path)
    assert server.requests[0].startswith(b"GET " + on_the_wire + b" HTTP/1.1\r\n")


async def test_parameters_of_all_kinds_arrive_as_they_are_meant(server, http):
    """Plain ones take a short cut; signs, spaces, Korean, numbers and lists are encoded as a form is."""
    await http.get(
        f"{server.url}/?a=1", params={"plain": "Az0_.~-", "sign": "+/=&", "한": "글 자", "n": 5, "l": [1, 2]}
    )
    line = server.requests[0].split(b" ")[1]
    assert line == b"/?a=1&plain=Az0_.~-&sign=%2B%2F%3D%26&%ED%95%9C=%EA%B8%80+%EC%9E%90&n=5&l=1&l=2"


@pytest.mark.parametrize(
    ("method", "url", "headers"),
    [
        ("GET", "{}/a\r\nX-Evil: 1", {}),
        ("GET", "nonsense", {}),
        ("GET", "ftp://127.0.0.1/", {}),
        ("GET", "http://[::1", {}),
        ("GET", "http://127.0.0.1:99999/", {}),
        ("GE T", "{}", {}),
        ("G\r\nX: Y", "{}", {}),
        ("POST", "{}", {"X": "a\r\nY: b"}),
    ],
)
async def test_what_cannot_be_sent_is_refused_at_once(server, http, caplog, method, url, headers):
    """Never sent, never tried twice, never ambiguous; no breaker moves, and no line break reaches a log."""
    client = http.with_breaker(BreakerPolicy(calls_min=1))
    with pytest.raises(RejectedError) as caught:
        await client.request(method, url.format(server.url), headers=headers)
    assert server.requests == []
    assert caught.value.attempts <= 1
    assert not {"\r", "\n"} & set(str(caught.value) + "".join(record.getMessage() for record in caplog.records))
    assert "open" not in client.stats().circuits.values()


async def test_a_head_answer_may_announce_any_length(server, http):
    """Its body never comes, so the cap on bodies does not apply."""
    server.steps = [answer()[:-2].replace(b"Content-Length: 2", b"Content-Length: 99999999")]
    response = await http.request("HEAD", server.url)
    assert (response.content, response.headers["Content-Length"]) == (b"", "99999999")


async def test_a_large_body_is_sent_whole_on_every_attempt(server, http):
    """Two megabytes, a failure, and the same two megabytes: what was sent once can be sent again."""
    body = bytes(range(256)) * 8192
    server.steps = [answer(503), None, answer(200)]
    response = await http.post(server.url, body, idempotent=True)
    assert response.attempts == 3
    assert [request.endswith(body) for request in server.requests] == [True] * 3


def pieces():
    yield b"first "
    yield b"second"


async def async_pieces():
    for piece in pieces():
        yield piece


@pytest.mark.parametrize("source", [pieces, async_pieces, lambda: [b"first ", b"second"]])
async def test_a_body_made_by_a_function_is_made_anew_for_every_attempt(server, http, source):
    """A failed attempt, a lost one, and each time the whole body from its beginning."""
    server.chunked = True
    server.steps = [answer(503), None, answer(200)]
    response = await http.post(server.url, source, idempotent=True)
    assert response.attempts == 3
    for request in server.requests:
        assert b"Transfer-Encoding: chunked" in request
        assert request.endswith(b"6\r\nfirst \r\n6\r\nsecond\r\n0\r\n\r\n")


@pytest.mark.parametrize("source", [pieces, async_pieces, lambda: [b"first ", b"second"]])
async def test_a_body_that_can_be_read_once_is_refused_before_anything_is_sent(server, http, source):
    """Not after the first failure, when it is too late; without retries it is sent as it is."""
    server.chunked = True
    with pytest.raises(OneShotBodyError, match=r"RetryPolicy\.attempts=4.*without_retry"):
        await http.post(server.url, source())
    with pytest.raises(OneShotBodyError):
        await http.without_retry().with_redirects().post(server.url, source())
    assert server.requests == []
    assert (await http.without_retry().post(server.url, source())).status == 200
    assert server.requests[0].endswith(b"6\r\nfirst \r\n6\r\nsecond\r\n0\r\n\r\n")


def raises_late():
    yield b"first"
    raise KeyError("mine")


async def raises_late_async():
    yield b"first"
    raise OSError("mine")


def raises_at_once():
    raise ValueError("mine")


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    ("body", "error"),
    [
        (raises_late, KeyError),
        (raises_late_async, OSError),
        (raises_at_once, ValueError),
        (lambda: ["text"], TypeError),
        (lambda: None, TypeError),
    ],
)
async def test_a_callers_own_error_in_a_body_is_his_and_no_failure_of_the_upstream(server, http, method, body, error):
    """As it is, after one attempt; the server never sees a whole body, and nobody's circuit opens."""
    server.chunked = True
    client = http.with_breaker(BreakerPolicy(calls_min=1))
    with pytest.raises(error):
        await client.request(method, server.url, content=body)
    stats = client.stats()
    assert (server.requests, stats.attempts, stats.failures, stats.in_flight) == ([], 1, 1, 0)
    assert list(stats.circuits.values()) == ["closed"]


@pytest.mark.parametrize("options", [{"content": 123}, {"headers": {"a": 1}}, {"headers": {b"a": "1"}}])
async def test_a_body_or_header_of_another_type_is_refused_before_anything_is_sent(server, http, options):
    """With and without retries, by a sentence that names the type."""
    for client in (http, http.without_retry()):
        with pytest.raises(TypeError, match=r"int|b'a'"):
            await client.request("POST", server.url, **options)
    assert (server.requests, http.stats().attempts) == ([], 0)


@pytest.mark.parametrize("content", ["글", bytearray("글".encode()), memoryview("글".encode())])
async def test_text_and_buffers_are_bytes(server, http, content):
    """Text goes out as UTF-8."""
    await http.post(server.url, content)
    assert server.requests[0].endswith("글".encode())


async def test_a_timeout_that_is_no_number_is_refused_and_one_in_the_past_sends_nothing(server, http):
    """A deadline computed too late is a timeout like any other; NaN would be no deadline at all."""
    with pytest.raises(ValueError, match="nan"):
        await http.get(server.url, timeout=float("nan"))
    for late in (0.0, -1.0):
        with pytest.raises(HttpTimeoutError, match="nothing was sent"):
            await http.get(server.url, timeout=late)
    assert server.requests == []
    assert (await http.get(server.url, timeout=float("inf"))).status == 200


@pytest.mark.parametrize("label", ["hex", "undefined", "unicode_escape", "raw-unicode-escape", "idna", "utf-7"])
async def test_a_charset_that_is_no_charset_is_a_decode_error(server, http, label):
    """Python knows codecs that are no text, one that always fails, and some that take any text for another."""
    server.steps = [answer(200, b"41+AGE-", f"Content-Type: text/plain; charset={label}\r\n")]
    with pytest.raises(BodyDecodeError):
        (await http.get(server.url)).text()


async def test_a_host_with_two_breakers_shows_the_worse(server, http):
    """Two policies, one host: an alarm on `stats().circuits` sees the open one."""
    server.steps = [answer(503)]
    await http.without_retry().with_breaker(BreakerPolicy(calls_min=1)).get(server.url)
    await http.get(server.url)
    assert list(http.stats().circuits.values()) == ["open"]


def test_a_breaker_that_sees_only_successes_keeps_one_windows_counts():
    """Years of success need no more memory than half a minute."""
    breaker = Breaker(BreakerPolicy(window_s=30.0))
    for second in range(10_000):
        breaker.leave(breaker.enter(float(second))[0], float(second), failed=False)
    assert len(breaker._slices) <= 10


@pytest.mark.parametrize("echo", ["a%2bb%2fc", "a%2Bb%2Fc", r"a+b\/c", "a+b/c", r"a\"quote"])
def test_an_echoed_secret_is_masked_in_every_spelling(echo):
    """Lower-case escapes and the escaped slashes of PHP's JSON as well."""
    redactor = Redactor()
    values = redactor.values("https://me:a%2Bb%2Fc@h/", {"appkey": 'a"quote'})
    assert echo not in redactor.text(f"you sent {echo}, fool", values)


async def test_a_cookie_of_one_answer_is_not_sent_with_the_next_request(server, http):
    """Accounts share a client: what one was given must not travel with another."""
    server.steps = [answer(200, headers="Set-Cookie: sid=one\r\n")]
    url = server.url.replace("127.0.0.1", "localhost")  # a cookie jar ignores addresses
    await http.get(url)
    await http.get(url)
    assert b"sid=one" not in server.requests[1]


async def test_the_password_in_a_url_is_a_secret(server, http):
    """It goes out as Basic authorization, and is shown nowhere."""
    response = await http.get(server.url.replace("//", "//me:s3cret@"))
    assert b"Authorization: Basic" in server.requests[0]
    assert response.url.startswith("http://***@127")


async def test_a_closed_client_says_so():
    """Before its `async with` and after it."""
    client = HttpClient()
    with pytest.raises(Exception, match="not open"):
        await client.get("http://127.0.0.1/")
