"""What each upstream allows, hides and means: the data of the presets and profiles, answer by answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aegis.config import KisConfig
from aegis.errors import MissingSettingError
from aegis.http import Request, Response
from aegis.redis import Rate, RateLimit
from aegis.upstream import DART_PROFILE, KIS_PROFILE, NAVER_PROFILE, KisClient, presets
from aegis.upstream import dart as dart_module
from aegis.upstream import kis as kis_module
from aegis.upstream import naver as naver_module

PRESETS = {
    "KIS_RATE_LIMIT": (Rate(5, per=1),),
    "KIS_PAPER_RATE_LIMIT": (Rate(1, per=1),),
    "KIS_NEW_CUSTOMER_RATE_LIMIT": (Rate(3, per=1),),
    "KIS_LEDGER_RATE_LIMIT": (Rate(1, per=1),),
    "KIS_TOKEN_RATE_LIMIT": (Rate(1, per=60),),
    "DART_RATE_LIMIT": (Rate(100, per=60),),
    "DART_DAILY_RATE_LIMIT": (Rate(100, per=60), Rate(20_000, per=86_400)),
    "NAVER_RATE_LIMIT": (Rate(10, per=1),),
}


def test_presets_are_the_published_numbers_with_source_and_date():
    """Each number stands below a comment that says where it is from and when that was read; names never collide."""
    found = {name: value for name, value in vars(presets).items() if isinstance(value, RateLimit)}
    assert {name: limit.rates for name, limit in found.items()} == PRESETS
    assert len({limit.name for limit in found.values()}) == len(found)
    text = Path(presets.__file__).read_text()
    for name in found:
        comment = re.search(rf"((?:^#: .*\n|^#: ?\n)+)^{name} = ", text, re.MULTILINE)
        assert comment, name
        assert re.search(r"20\d\d-\d\d|the reference's", comment[1]), name


def test_profiles_say_what_is_secret_and_how_to_knock():
    """Names of secrets, the headers that an upstream wants, TLS for an old server, a long pause after resets."""
    assert {"authorization", "appkey", "appsecret", "secretkey", "approval_key", "CANO"} <= KIS_PROFILE.secret_names
    assert {"crtfc_key"} <= DART_PROFILE.secret_names
    assert KIS_PROFILE.default_headers["custtype"] == "P"
    assert NAVER_PROFILE.default_headers["User-Agent"].startswith("Mozilla/")
    assert (KIS_PROFILE.tls, DART_PROFILE.tls, NAVER_PROFILE.tls) == ("modern", "legacy_rsa", "modern")
    assert DART_PROFILE.breaker.resets_max == 3
    assert DART_PROFILE.breaker.reset_open_s >= 600


def answer(status: int, body: bytes) -> Response:
    return Response(status, {}, body)


ASKED = Request("GET", "https://upstream/", {})


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (500, b'{"rt_cd":"1","msg_cd":"EGW00201","msg1":"x"}', "Throttled"),
        (200, b'{"rt_cd":"1","msg_cd":"EGW00201","msg1":"x"}', "Throttled"),
        (500, b'{"rt_cd":"1","msg_cd":"EGW00215","msg1":"x"}', "Throttled"),
        (500, b'{"rt_cd":"1","msg_cd":"EGW00123","msg1":"x"}', "Reauth"),
        (200, b'{"rt_cd":"1","msg_cd":"EGW00121","msg1":"x"}', "Reauth"),
        (500, b'{"rt_cd":"1","msg_cd":"EGW00301","msg1":"x"}', "Ambiguous"),
        (500, b'{"rt_cd":"1","msg_cd":"EGW00302","msg1":"x"}', "Ambiguous"),
        (500, b'{"rt_cd":"1","msg_cd":"","msg1":""}', "Transient"),
        (500, b'{"rt_cd":"1","msg_cd":"EGW02004","msg1":"x"}', "Rejected"),
        (403, b'{"error_code":"EGW00133","error_description":"x"}', "Rejected"),
        (200, b'{"rt_cd":"0","msg_cd":"MCA00000","msg1":"x   "}', "Ok"),
        (200, b'{"access_token":"t"}', "Ok"),
        (200, b"<html>", "Transient"),
        (502, b"", "Transient"),
        (404, b"", "Rejected"),
    ],
)
def test_kis_answers_mean_what_they_say(status, body, verdict):
    """The body decides, whatever the status."""
    assert type(kis_module.classify(ASKED, answer(status, body))).__name__ == verdict


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (b'{"status":"000","message":"x"}', "Ok"),
        (b'{"status":"013","message":"x"}', "Empty"),
        (b'{"status":"020","message":"x"}', "Throttled"),
        (b'{"status":"800","message":"x"}', "Transient"),
        (b'{"status":"900","message":"x"}', "Transient"),
        (b'{"status":"010","message":"x"}', "Rejected"),
        (b'{"status":"011","message":"x"}', "Rejected"),
        (b'{"status":"012","message":"x"}', "Rejected"),
        (b'{"status":"014","message":"x"}', "Rejected"),
        (b'{"status":"021","message":"x"}', "Rejected"),
        (b'{"status":"100","message":"x"}', "Rejected"),
        (b'{"status":"101","message":"x"}', "Rejected"),
        (b'{"status":"901","message":"x"}', "Rejected"),
        (b'{"status":"777","message":"a status of 2030"}', "Rejected"),
        (b"<result><status>020</status><message>x</message></result>", "Throttled"),
        (
            "<?xml version='1.0' encoding='euc-kr'?><result>\n<status>010</status><message>등록</message>".encode(
                "cp949"
            ),
            "Rejected",
        ),
        (b"PK\x03\x04rest", "Ok"),
        (b"<html>", "Transient"),
    ],
)
def test_dart_answers_mean_what_they_say(body, verdict):
    """HTTP always says 200; a ZIP is known by its first bytes."""
    assert type(dart_module.classify(ASKED, answer(200, body))).__name__ == verdict


@pytest.mark.parametrize("module", [dart_module, kis_module, naver_module])
@pytest.mark.parametrize(
    ("status", "verdict"),
    [(301, "Transient"), (403, None), (404, "Rejected"), (408, "Transient"), (429, "Throttled"), (502, "Transient")],
)
def test_a_gateways_page_means_what_its_status_says(module, status, verdict):
    """Of a page that is none of the upstream's own nothing else is known; 429 is never final, 408 neither."""
    verdict = verdict or ("Throttled" if module is naver_module else "Rejected")
    assert type(module.classify(ASKED, answer(status, b"<html>slow down"))).__name__ == verdict


@pytest.mark.parametrize("missing", ["app_key", "app_secret"])
def test_missing_credentials_name_their_variable(missing):
    """The error names the variable to set."""
    config = KisConfig(**({"app_key": "k", "app_secret": "s"} | {missing: None}))
    with pytest.raises(MissingSettingError, match=f"KIS_{missing.upper()}"):
        KisClient(None, None, None, config)
