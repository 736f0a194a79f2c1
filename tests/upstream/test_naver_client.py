"""Naver through the real client: the interval that it publishes, charts in EUC-KR, pages that mean no."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from aegis.config import NaverConfig
from aegis.errors import BodyDecodeError, TransientError
from aegis.http import Response
from aegis.upstream import NAVER_PROFILE, NaverClient
from aegis.upstream import naver as naver_module
from aegis.upstream.naver import parse_chart
from aegis.upstream.simulator import Market, Rules

DATA = Path(__file__).parents[3] / "shared" / "data"
QUOTE = {
    "item_code": "005930", "close_price": "58,500", "compare_to_previous_close_price": "300", "open_price": "58,900",
    "high_price": "59,000", "low_price": "57,800", "accumulated_trading_volume": "21,316,295", "market_status": "CLOSE",
}  # fmt: skip


@pytest.fixture
def naver(world) -> NaverClient:
    url = world.simulator.url
    return NaverClient(world.http, world.limiter, world.cache, NaverConfig(base_url=url, chart_url=url))


@pytest.mark.parametrize("rules", [Rules(naver_polling_s=1.5)])
async def test_quotes_come_at_the_interval_that_the_server_publishes(world, naver):
    """Not faster, however fast the consumer is; and the client tells the interval."""
    seen = []
    async with contextlib.aclosing(naver.watch(["005930", "000660"])) as updates:
        async for quotes in updates:
            seen.append((time.monotonic(), [quote.code for quote in quotes]))
            if len(seen) == 2:
                break
    assert [codes for _, codes in seen] == [["005930", "000660"]] * 2
    assert seen[1][0] - seen[0][0] >= 1.5
    assert naver.polling_interval_s == 1.5
    assert world.simulator.report()["naver"]["requests"] == 2


@pytest.mark.parametrize("rules", [Rules(naver_polling_s=0.0)])
async def test_an_interval_of_nothing_is_not_taken_at_its_word(world, naver):
    """A server that publishes 0 is asked once a second, not in a loop."""
    async with contextlib.aclosing(naver.watch(["005930"])) as updates:
        await anext(updates)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(updates), 0.5)
    assert world.simulator.report()["naver"]["requests"] == 1


async def test_a_chart_is_read_whole(world, naver):
    """The bars of the market, oldest first; a code that Naver does not know has none."""
    bars = await naver.daily_chart("005930", 10)
    known = world.simulator.market.bars["005930"][-10:]
    assert [(bar.date, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in bars] == [
        (bar.day, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in known
    ]
    assert await naver.daily_chart("999999", 10) == []


@pytest.mark.parametrize(
    ("direction", "written", "change"),
    [("5", "300", -300), ("5", "-300", -300), ("4", "300", -300), ("2", "300", 300), ("3", "0", 0), ("", "-7", -7)],
)
def test_the_sign_of_a_change_is_that_of_its_direction(direction, written, change):
    """Some answers write it, some do not."""
    fields = {**QUOTE, "compare_to_previous_close_price": written, "fluctuations_ratio": "-0.51"}
    quote = naver_module._Quote(**fields, compare_to_previous_price=naver_module._Direction(direction))
    seen = naver_module._quote(quote)
    assert (seen.change, seen.price, seen.change_percent, seen.market_open) == (change, 58500, Decimal("-0.51"), False)


@pytest.mark.parametrize(
    "text",
    ["", "<html></html>", "<protocol><chartdata></protocol", '<protocol><chartdata><item data="x|1" /></protocol>'],
)
def test_a_chart_that_is_none_or_breaks_off_is_an_error(text):
    """Never a shorter chart."""
    with pytest.raises(ValueError, match=r"chart|bars"):
        parse_chart(text)


async def test_a_chart_in_another_charset_than_it_says_is_an_error(world, naver):
    """Names would be mojibake; nothing is replaced in silence."""
    world.simulator.fail("wrong-charset", service="naver", path="sise")
    with pytest.raises(BodyDecodeError):
        await naver.daily_chart("005930", 10)


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (b'{"datas":[]}', "Ok"),
        (b'<?xml version="1.0" encoding="EUC-KR" ?><protocol>', "Ok"),
        (b"", "Transient"),
        (b" \n ", "Transient"),
        (b"<!DOCTYPE HTML><html>", "Transient"),
        (b"\xef\xbb\xbf\n<html lang='ko'>", "Transient"),
        (b"<!-- x --><html>", "Transient"),
        (b'<?xml version="1.0"?><!DOCTYPE html><html xmlns="x">', "Transient"),
    ],
)
def test_a_page_where_data_was_expected_is_no_answer(body, verdict):
    """Whatever its first words."""
    assert type(NAVER_PROFILE.classify(None, Response(200, {}, body))).__name__ == verdict


async def test_the_words_of_the_page_are_in_the_error(world):
    """Without a User-Agent: status 200, and a page that says not found, in Korean."""
    bare = world.http.with_profile(NAVER_PROFILE)
    with pytest.raises(TransientError, match="페이지를 찾을 수 없습니다") as caught:
        await bare.get(f"{world.simulator.url}/api/realtime/domestic/stock/005930", headers={"User-Agent": ""})
    assert caught.value.attempts == 4


def test_a_recorded_chart_decodes():
    """A real body: EUC-KR by its prolog, 2,832 bars, each day once and in order."""
    path = DATA / "naver_fchart_005930_day.xml"
    if not path.exists():
        pytest.skip("the recorded body is not here")
    text = Response(200, {}, path.read_bytes()).text()
    assert 'name="삼성전자"' in text
    bars = parse_chart(text)
    assert len(bars) == 2832
    assert (bars[0].date, bars[0].open, bars[0].close, bars[0].volume) == (date(2014, 7, 11), 26000, 25680, 215592)
    assert [bar.date for bar in bars] == sorted({bar.date for bar in bars})


def test_the_real_market_is_replayed():
    """300 stocks, 33 days, halted days and codes with letters among them."""
    path = DATA / "krx_top300_2026.csv.gz"
    if not path.exists():
        pytest.skip("the recorded bars are not here")
    market = Market.replayed(path)
    assert len(market.codes) == 300
    assert market.names["005930"] == "삼성전자"
    assert market.last_day == date(2026, 2, 20)
    assert all(market.look(code, at / 4).price > 0 for code in market.codes for at in range(0, 132, 7))
