"""No secret leaves but on the wire: every well-known name and every declared one, in all four places."""

from __future__ import annotations

import logging
import pickle
import traceback

import pytest
from scripted_server import answer

from aegis.errors import HttpError
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
        ('{"appsecret": "a\\"bc", "x": 1}', '{"appsecret": ***, "x": 1}'),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("crtfc_key='abc' failed", "crtfc_key=*** failed"),
        ("no secret = here", "no secret = ***"),
        ("tokens: 5", "tokens: 5"),
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
        ("https://h", "https://h"),
        ("", ""),
    ],
)
def test_a_url_is_masked_in_every_part(url, masked):
    """User, password, secret keys however they are spelled, and the fragment."""
    assert Redactor().url(url) == masked
