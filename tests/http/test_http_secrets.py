"""No secret leaves but on the wire: every well-known name and every declared one, in all four places."""

from __future__ import annotations

import logging
import pickle
import traceback

import pytest
from pydantic import SecretStr
from scripted_server import answer

from aegis.errors import HttpError, RejectedError
from aegis.http import Profile, Reauth, Throttled
from aegis.http.redact import WELL_KNOWN, Redactor

SECRET = "s3cret+/value=="
ENCODED = "s3cret%2B%2Fvalue%3D%3D"
DECLARED = frozenset({"hush", "CANO-2"})


def echo(request, response):
    return Throttled(message=response.text())


@pytest.mark.parametrize("name", sorted(WELL_KNOWN | DECLARED))
async def test_no_secret_of_any_name_is_shown_anywhere(server, http, caplog, name):
    """The upstream echoes what it got: not in any log at DEBUG, error, traceback, repr, statistic or pickle's repr."""
    caplog.set_level(logging.DEBUG)
    client = http.with_profile(Profile("echo", echo, secret_names=DECLARED))
    spelled = name.replace("_", "%5F").replace("-", "%2d").upper()
    calls = (
        lambda: client.get(server.url, params={name: SECRET}),
        lambda: client.get(f"{server.url}/?{spelled}={ENCODED}"),
        lambda: client.get(server.url, headers={name.title(): SECRET}),
        lambda: client.post_form(server.url, {name: SECRET}),
        lambda: client.post_json(server.url, {"inner": {name: SECRET}}),
        lambda: client.get(f"http://127.0.0.1:1/?{name}={ENCODED}"),
        lambda: client.get(f"nonsense://x/?{name}={ENCODED}"),
    )
    shown = [repr(client)]
    for call in calls:
        server.steps = [answer(200, f"you sent {SECRET} and {ENCODED} as {name}={SECRET}".encode())] * 4
        with pytest.raises(HttpError) as caught:
            await call()
        error = caught.value
        shown += [
            str(error),
            repr(error),
            *traceback.format_exception(error),
            repr(error.history),
            repr(error.response),
        ]
        shown += [repr(pickle.loads(pickle.dumps(error))), repr(client.stats())]
    assert len(server.requests) >= 5
    shown += [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    assert [text for text in shown if SECRET in text or ENCODED in text or "s3cret" in text] == []
    assert {"aegis.http"} <= {record.name for record in caplog.records}


async def test_credentials_that_were_renewed_stay_secret_both(server, http, caplog):
    """The refused token and the new one are masked, whichever the upstream echoes."""
    caplog.set_level(logging.DEBUG)

    def refuse(request, response):
        return Reauth(message=response.text())

    async def renew(request, response):
        return {"Authorization": "Bearer second-token"}

    client = http.with_profile(Profile("echo", refuse)).with_reauth(renew)
    server.steps = [answer(401, b"x first-token"), answer(401, b"x first-token second-token")]
    with pytest.raises(HttpError) as caught:
        await client.get(server.url, headers={"Authorization": "Bearer first-token"})
    assert len(server.requests) == 2
    text = str(caught.value) + "".join(record.getMessage() for record in caplog.records)
    assert "first-token" not in text
    assert "second-token" not in text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("appkey=abc&x=1", "appkey=***&x=1"),
        ('{"appsecret": "a\\"bc", "x": 1}', '{"appsecret": "***", "x": 1}'),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("crtfc_key='abc' failed", "crtfc_key='***' failed"),
        ("no secret = here", "no secret = ***"),
        ("tokens: 5", "tokens: 5"),
        ("Authorization: Basic bWU6cHc= x", "Authorization: ***"),
        ("{'Cookie': 'a=1; sid=2', 'x': 1}", "{'Cookie': '***', 'x': 1}"),
        (r"{\"appkey\": \"abc\", \"x\": 1}", r"{\"appkey\": \"***\", \"x\": 1}"),
        ("GET /?crtfc%5Fkey=abc&x=1", "GET /?crtfc%5Fkey=***&x=1"),
        ("next=https%3A%2F%2Fh%2F%3Ftoken%3Dabc", "next=https%3A%2F%2Fh%2F%3Ftoken%3D***"),
        ("100%25 of x%3D1", "100%25 of x%3D1"),
        ('{"token": ["S", {"a": "S]"}], "x": 1}', '{"token": ***, "x": 1}'),
        ('{"a": {"token":{"b":["S"]}}}', '{"a": {"token":***}}'),
        (r"{\"token\":[\"S\"], \"x\": 1}", r"{\"token\":***, \"x\": 1}"),
        ("{'token': ['S', 'S'], 'x': 1}", "{'token': ***, 'x': 1}"),
        ('{"token": ["S", "S', '{"token": ***'),
        ("q=%7B%22crtfc_key%22%3A%22S%22%7D&x=1", "q=%7B%22crtfc_key%22%3A***&x=1"),
        ("crtfc_key[]=S&token[0]=S&x=1", "crtfc_key[]=***&token[0]=***&x=1"),
        ("<r><password>S</password><x>1</x></r>", "<r><password>***</password><x>1</x></r>"),
        ('<a:token n="1"><![CDATA[S<]]></a:token>', '<a:token n="1">***</a:token>'),
    ],
)
def test_free_text_is_masked_by_name(text, masked):
    """Query, JSON, header and sentence; a longer word that merely begins alike is left alone."""
    assert Redactor().text(text) == masked


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("https://me:pw@h:1/p?token=a&b=c#token=d", "https://***@h:1/p?token=***&b=c#***"),
        ("https://h/p@q?a=1", "https://h/p@q?a=1"),
        ("https://h/?%74oken=a&TOKEN=b&token", "https://h/?%74oken=***&TOKEN=***&token"),
        ("https://h/?next=%2F%3Ftoken%3Dabc&x=1", "https://h/?next=%2F%3Ftoken%3D***&x=1"),
        ("https://S@h/x", "https://***@h/x"),
        ("https://me:S/x?a=1", "https://me:***/x?a=1"),
        ("https://h:80/a:b//c:d/?e:f", "https://h:80/a:b//c:d/?e:f"),
        ("https://[::1]:8080?a=b:c", "https://[::1]:8080?a=b:c"),
        ("https://h/?a=1;crtfc_key=S", "https://h/?a=1;crtfc_key=***"),
        ("https://h/?crtfc_key[]=S&crtfc_key%5B%5D=S", "https://h/?crtfc_key[]=***&crtfc_key%5B%5D=***"),
        ("https://h/?q=%7B%22crtfc_key%22%3A%22S%22%7D&x=1", "https://h/?q=%7B%22crtfc_key%22%3A***&x=1"),
        ("https://h", "https://h"),
        ("", ""),
    ],
)
def test_a_url_is_masked_in_every_part(url, masked):
    """User, password, secret keys however they are spelled, and the fragment."""
    assert Redactor().url(url) == masked


async def test_a_secret_known_by_value_is_masked_under_any_name(server, http, caplog):
    """A key in a path, in a header that nobody declared, in an echo: the value itself is enough."""
    caplog.set_level(logging.DEBUG)
    client = http.with_profile(Profile("echo", echo)).with_secrets(values=[SecretStr("k3y/value"), "plain-one"])
    server.steps = [answer(200, b"you sent k3y%2Fvalue and plain-one")] * 4
    with pytest.raises(HttpError) as caught:
        await client.get(f"{server.url}/bot/plain-one?x=k3y%2fvalue", headers={"X-Mine": "k3y/value"})
    shown = [str(caught.value), caught.value.response.url, repr(client), repr(client._settings)]
    shown += [record.getMessage() for record in caplog.records if record.name == "aegis.http"]
    assert [text for text in shown if "k3y" in text or "plain-one" in text] == []


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("", b'{"token": ["s3cret", 12345678], "x": {"appkey": {"a": "s3cret", "b": ["\\u0073ecret-2"]}}}'),
        ("", b"q=1&token={'a': 's3cret', 'b': 12345678, 'c': 'secret-2'}"),
        ("", b"<r><password>s3cret</password><token x='1'><![CDATA[secret-2]]></token><appkey>12345678</appkey></r>"),
        ("?q=%7B%22crtfc_key%22%3A%22s3cret%22%7D&a=1;token=12345678&appkey[]=secret-2", None),
        ("?next=%2F%3Ftoken%3Ds3cret%26appkey%3D12345678&crtfc_key%5B%5D=secret-2", None),
    ],
)
def test_every_value_below_a_secret_name_is_masked_in_an_echo(url, body):
    """Whatever holds it, the upstream may repeat it bare: so it must be known by value."""
    redactor = Redactor()
    values = redactor.values(f"https://h/{url}", {}, body)
    assert redactor.text("bad: s3cret, 12345678, secret-2", values) == "bad: ***, ***, ***"


@pytest.mark.parametrize("login", ["s3cret", "s3cret:", "me:s3cret", "s%33cret"])
def test_a_login_without_a_password_is_a_secret_itself(login):
    """As APIs have it that take their key for the user's name."""
    assert Redactor().text("bad key s3cret", Redactor().values(f"https://{login}@h/", {})) == "bad key ***"


async def test_no_secret_is_in_what_observers_and_statistics_get(server, http):
    """Metrics and traces are made of these: host and port, outcomes, masked URLs."""
    seen = []
    http.observe(seen.append)
    server.steps = [answer(200, b"fine")]
    await http.get(f"{server.url.replace('//', '//me:s3cret@')}/?token=s3cret")
    with pytest.raises(HttpError):
        await http.get("http://me:s3cret@127.0.0.1:1/?appkey=s3cret")
    with pytest.raises(RejectedError, match="port that is a number") as caught:
        await http.get("http://me:s3cret/")
    assert [call.error for call in seen] == ["", "HttpConnectionError"]
    assert "s3cret" not in repr(seen) + repr(http.stats()) + str(caught.value)
