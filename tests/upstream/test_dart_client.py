"""DART through the real client: pages, empty results, ZIP or error, its quotas, its blocks, its key."""

from __future__ import annotations

import io
import itertools
import logging
import zipfile
from datetime import date, timedelta

import pytest

from aegis.config import DartConfig
from aegis.errors import CircuitOpenError, HttpError, RejectedError, ThrottledError, TransientError
from aegis.redis import Rate, RateLimit
from aegis.upstream import DartClient
from aegis.upstream import dart as dart_module
from aegis.upstream.simulator import Market, Rules, Simulator
from aegis.upstream.simulator.dart import corp_code
from aegis.upstream.simulator.market import Bar

KEY = "0123456789abcdef" * 2 + "01234567"
WIDE = RateLimit("dart-wide", Rate(100_000, per=60))


@pytest.fixture
def rules() -> Rules:
    return Rules(dart_per_minute=1000)


def client(world, key: str = KEY) -> DartClient:
    config = DartConfig(api_key=key, base_url=world.simulator.url)
    return DartClient(world.http, world.limiter, world.cache, config, WIDE)


@pytest.fixture
def dart(world) -> DartClient:
    return client(world)


def dart_codes(world) -> tuple[str, ...]:
    return world.simulator.market.codes


async def test_all_pages_of_a_long_period_are_read_once(world, dart):
    """Years are asked for in quarters and in pages of a hundred; nothing is missing, nothing is there twice."""
    first, last = date(2024, 1, 1), date(2026, 2, 20)
    found = await dart.disclosures(first, last)
    days = {bar.day for bars in world.simulator.market.bars.values() for bar in bars}
    expected = sum(number % 5 == back % 5 for back in range(len(days)) for number in range(len(dart_codes(world))))
    assert len({item.rcept_no for item in found}) == len(found) == expected > 100
    assert [item.rcept_dt for item in found] == sorted((item.rcept_dt for item in found), reverse=True)
    assert len(await dart.disclosures(last - timedelta(days=60), last, page=2)) == 100
    assert await dart.disclosures(last, first) == []
    assert await dart.disclosures(date(1999, 1, 1), date(1999, 1, 2)) == []
    with pytest.raises(RejectedError, match=r"3개월만 가능합니다.*100"):
        await dart.disclosures(first, last, page=1)


async def test_periods_join_without_a_seam(world):
    """Every day of a year is asked for once, whatever the parts; a row that comes twice is given once."""
    last = date(2026, 2, 20)
    bars = tuple(Bar(last - timedelta(days=back), 1, 1, 1, 1, 1, 1) for back in range(400))
    codes = [f"{number:06}" for number in range(5)]
    market = Market(dict.fromkeys(codes, "회사"), dict.fromkeys(codes, bars))
    async with Simulator(market, Rules(dart_per_minute=1000)) as simulator:
        config = DartConfig(api_key=KEY, base_url=simulator.url)
        dart = DartClient(world.http, world.limiter, world.cache, config, WIDE)
        found = await dart.disclosures(last - timedelta(days=365), last)
        assert [item.rcept_dt for item in found] == [last - timedelta(days=back) for back in range(366)]

        pages = [(found[:2], 2), (found[1:3], 2)]

        async def shifted(first, last, corp_code, page):
            return pages[page - 1]

        dart._page = shifted
        assert await dart.disclosures(last, last) == found[:3]


async def test_one_company(world, dart):
    """By its number: its disclosures, over any period at once, and its particulars; an unknown one is None and []."""
    number = corp_code("005930")
    found = await dart.disclosures(date(2020, 1, 1), date(2026, 2, 20), corp_code=number)
    assert {item.stock_code for item in found} == {"005930"}
    company = await dart.company(number)
    assert (company.corp_name, company.stock_code, company.acc_mt) == ("삼성전자", "005930", "12")
    assert await dart.company("00000000") is None
    assert await dart.disclosures(date(2026, 1, 1), date(2026, 2, 1), corp_code="00000000") == []


async def test_the_list_of_companies_is_loaded_once_a_day_for_all(world, dart):
    """A ZIP of an XML; a second process takes it from the cache, a second call not even from there."""
    codes = await dart.corp_codes()
    listed = {each.stock_code: each for each in codes if each.stock_code}
    assert listed["005930"].corp_name == "삼성전자"
    assert len(listed) == len(dart_codes(world))
    assert len(codes) > len(listed)
    assert await client(await world.sibling()).corp_codes() == codes
    assert world.simulator.report()["dart"]["requests"] == 1
    assert 80_000 < (await world.cache.inspect(dart._corp_codes_name)).expires_in_s <= 86_400


async def test_an_error_where_a_zip_was_asked_for_is_an_error_and_is_not_cached(world, dart):
    """DART answers with XML instead: told apart by the first bytes, with its status."""
    with pytest.raises(RejectedError) as caught:
        await client(world, "short").corp_codes()
    assert caught.value.code == "010"
    assert len(await dart.corp_codes()) > 40


@pytest.mark.parametrize("packed", [b"PK\x03\x04 and no more", b"not at all"])
def test_a_zip_that_is_none_is_a_value_error(packed):
    """Never a BadZipFile in the user's face."""
    with pytest.raises(ValueError, match="ZIP"):
        dart_module._parse_corp_codes(packed)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_with_any_byte_damaged_is_read_or_is_a_value_error(method):
    """Damaged inside, marked as encrypted, packed by an unknown method: nothing of zlib or zipfile comes through."""
    archive, outcomes = io.BytesIO(), set()
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("CORPCODE.xml", "<result></result>")
    whole = archive.getvalue()
    for place, flip in itertools.product(range(len(whole)), (0x01, 0xFF)):
        damaged = bytearray(whole)
        damaged[place] ^= flip
        try:
            outcomes.add(len(dart_module._parse_corp_codes(bytes(damaged))))
        except ValueError as exc:
            outcomes.add(type(exc))
    assert outcomes == {0, ValueError}


def test_a_zip_with_another_xml_or_a_bomb_is_a_value_error(monkeypatch):
    """The size is looked at before anything is unpacked."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("CORPCODE.xml", "<result><list>")
    with pytest.raises(ValueError, match="XML"):
        dart_module._parse_corp_codes(archive.getvalue())
    monkeypatch.setattr(dart_module, "_XML_BYTES_MAX", 5)
    with pytest.raises(ValueError, match=r"CORPCODE\.xml would be 14 bytes"):
        dart_module._parse_corp_codes(archive.getvalue())


@pytest.mark.parametrize("quota", [{"dart_per_minute": 2}, {"dart_per_day": 2}])
async def test_the_quota_stops_everybody_at_once_and_says_for_how_long(world, dart, quota):
    """Status 020 in a 200: one refusal, no knocking on, and every process holds for a minute."""
    world.simulator.change(**quota)
    for _ in range(2):
        await dart.company("00000000")
    with pytest.raises(ThrottledError) as caught:
        await dart.company("00000000")
    assert (caught.value.code, caught.value.retry_after, caught.value.attempts) == ("020", 60.0, 1)
    assert (await world.limiter.peek(WIDE, KEY)).held_for > 50
    report = world.simulator.report()
    assert report["dart"]["rejected"] + report["dart_daily"]["rejected"] == 1


async def test_a_blocked_address_is_left_alone(world, dart):
    """Resets after too many requests a minute: the circuit opens for minutes instead of knocking on."""
    world.simulator.change(dart_block_per_minute=3)
    for _ in range(3):
        await dart.company("00000000")
    for _ in range(10):
        with pytest.raises((TransientError, CircuitOpenError)):
            await dart.company("00000000")
    seen = world.simulator.report()["dart_address"]["requests"]
    assert seen == 3 + 3, "three resets in a row are enough to know; an address that knocks on stays blocked"
    with pytest.raises(CircuitOpenError) as caught:
        await dart.company("00000000")
    assert caught.value.retry_after > 500


async def test_maintenance_is_waited_for_and_pages_instead_of_data_are_errors(world, dart):
    """800 and 900 pass by; a page instead of JSON too, with an excerpt where it does not."""
    world.simulator.fail("maintenance", service="dart", times=1)
    world.simulator.fail("code", code="900", service="dart", times=1)
    assert await dart.company(corp_code("005930")) is not None
    world.simulator.fail("html", service="dart")
    with pytest.raises(TransientError, match="not an answer of DART") as caught:
        await dart.company(corp_code("005930"))
    assert caught.value.attempts > 1


async def test_the_key_is_never_shown(world, dart, caplog):
    """It travels in the query string; no log line, no error and no `repr` has it."""
    caplog.set_level(logging.DEBUG)
    await dart.company("00000000")
    world.simulator.fail("reset", service="dart", times=3)
    with pytest.raises(HttpError) as caught:
        await dart.company("00000000")
    shown = [caplog.text, str(caught.value), repr(caught.value), repr(caught.value.history), repr(dart)]
    shown += [str(vars(record)) for record in caplog.records]
    assert KEY not in "\n".join(shown)
    assert "crtfc_key=***" in caplog.text


async def test_rows_of_another_shape_are_an_error_of_ours():
    """A field that is not there, a date that is none."""
    row = dict.fromkeys(("corp_code", "corp_name", "report_nm", "rcept_no", "flr_nm", "rm"), "x")
    row["rcept_dt"] = "20260102"
    assert dart_module._disclosure({**row, "stock_code": " "}).stock_code is None
    assert dart_module._disclosure({**row, "added_in_2030": "x"}).rcept_dt == date(2026, 1, 2)
    with pytest.raises(ValueError, match="tomorrow"):
        dart_module._disclosure({**row, "rcept_dt": "tomorrow"})
