"""Prices and charts of KIS: every page, every field, and nothing that is taken for a zero."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from decimal import Decimal

import pytest

from aegis.config import HttpConfig
from aegis.errors import BodyDecodeError
from aegis.http import HttpClient, Response
from aegis.redis import Cache, RateLimiter
from aegis.upstream import DailyBar
from aegis.upstream import kis as kis_module
from aegis.upstream._shape import expected_shape
from aegis.upstream.simulator import Market, Rules, Simulator
from aegis.upstream.simulator.market import Bar

LAST = date(2026, 2, 20)
OUTPUT = {
    "stck_prpr": "75800", "prdy_vrss": "-200", "prdy_ctrt": "-0.26", "stck_oprc": "76000", "stck_hgpr": "76200",
    "stck_lwpr": "75500", "acml_vol": "12345678", "acml_tr_pbmn": "938223456000", "stck_sdpr": "76000", "per": "11.42",
    "pbr": "N/A", "a_field_of_2030": "x",
}  # fmt: skip


def market(days: int) -> Market:
    bars = tuple(Bar(LAST - timedelta(days=back), 1, 3, 1, 2 + back, 10, 20) for back in range(days - 1, -1, -1))
    return Market({"005930": "삼성전자"}, {"005930": bars})


@pytest.mark.parametrize(("days", "pages"), [(1, 1), (99, 1), (100, 2), (101, 2), (250, 3), (300, 4)])
async def test_a_long_chart_is_read_in_pages_of_a_hundred(world, days, pages):
    """Every day once, oldest first; a full page is followed by a look at what is before it."""
    async with Simulator(market(days), Rules(kis_per_second=1000)) as simulator:
        client = world.kis(base_url=simulator.url)
        bars = await client.daily_chart("005930", date(2020, 1, 1), LAST)
        assert [bar.date for bar in bars] == [LAST - timedelta(days=back) for back in range(days - 1, -1, -1)]
        assert bars[0].close == 1 + days
        assert simulator.report()["kis"]["requests"] == pages


async def test_only_the_days_that_were_asked_for_come_back(world):
    """Both ends included; the wrong way round is nobody's business upstream."""
    async with Simulator(market(50), Rules(kis_per_second=1000)) as simulator:
        client = world.kis(base_url=simulator.url)
        first = LAST - timedelta(days=9)
        assert len(await client.daily_chart("005930", first, LAST)) == 10
        assert await client.daily_chart("005930", first, first) == [DailyBar(first, 1, 3, 1, 11, 10, 20)]
        asked = simulator.report()["kis"]["requests"]
        assert await client.daily_chart("005930", LAST, first) == []
        assert simulator.report()["kis"]["requests"] == asked


async def test_an_upstream_that_ignores_the_period_does_not_catch_us_in_a_loop(world, monkeypatch):
    """The same full page again and again ends the paging."""
    calls = 0

    async def same_page(self, code, first, last, *, adjusted):
        nonlocal calls
        calls += 1
        return [DailyBar(LAST - timedelta(days=back), 1, 1, 1, 1, 1, 1) for back in range(100)]

    monkeypatch.setattr(kis_module.KisClient, "_chart_page", same_page)
    bars = await world.kis().daily_chart("005930", date(2000, 1, 1), LAST)
    assert (len(bars), calls) == (100, 2)
    asked_for = [LAST - timedelta(days=3), LAST - timedelta(days=1)]
    assert len(await world.kis().daily_chart("005930", *asked_for)) == 3


@pytest.mark.parametrize(("adjusted", "code"), [(True, "0"), (False, "1")])
async def test_prices_are_asked_for_as_adjusted_or_as_they_were(world, monkeypatch, adjusted, code):
    """KIS's own code for it: 0 is adjusted for splits."""
    asked = []

    async def noted(self, *args, params, **options):
        asked.append(params)
        return Response(200, {}, b'{"output2": [{}]}')

    monkeypatch.setattr(kis_module.KisClient, "request", noted)
    assert await world.kis().daily_chart("005930", LAST, LAST, adjusted=adjusted) == []
    assert [params["FID_ORG_ADJ_PRC"] for params in asked] == [code]


def test_a_price_is_read_field_by_field():
    """Signed change, blanks as None, fields of later years ignored."""
    price = kis_module._price("005930", OUTPUT)
    assert (price.price, price.change, price.amount) == (75800, -200, 938223456000)
    assert (price.change_percent, price.per, price.pbr) == (Decimal("-0.26"), Decimal("11.42"), None)
    assert (price.base, price.upper_limit, price.halted) == (76000, None, False)


@pytest.mark.parametrize("broken", [{"stck_prpr": ""}, {"stck_prpr": "-"}, {"acml_vol": "1.5"}, {"prdy_vrss": "NaN"}])
def test_what_is_no_number_is_an_error_and_never_a_zero(broken):
    """A failed read that is taken for a price of 0 sells people's holdings."""
    answer = Response(200, {}, b"{}")
    with pytest.raises(BodyDecodeError, match="not the expected shape"), expected_shape(answer):
        kis_module._price("005930", OUTPUT | broken)
    with pytest.raises(BodyDecodeError, match="stck_prpr"), expected_shape(answer):
        kis_module._price("005930", {name: text for name, text in OUTPUT.items() if name != "stck_prpr"})


async def test_a_page_instead_of_a_price_is_retried_and_quoted(world):
    """Words of the page, not its markup; a body that breaks off is not quoted: it may hold half a token."""
    world.simulator.fail("html", service="kis", path="inquire-price")
    with pytest.raises(Exception, match="서비스 제공이 불가능합니다") as caught:
        await world.kis().price("005930")
    assert caught.value.attempts == 4
    assert "<" not in str(caught.value).split("not an answer", 1)[1]
    half = Response(200, {"Content-Type": "application/json"}, b'{"access_token":"eyJ0eXAiOiJKV1Qi')
    verdict = kis_module.classify(None, half)
    assert "eyJ0" not in str(verdict)
    assert "33 bytes of application/json" in verdict.message


async def test_requests_of_several_clients_stay_within_the_accounts_limit(redis, world):
    """The preset of the account kind applies by itself: real 5/s, paper 1/s."""
    world.simulator.change(kis_per_second=8)  # how exact the limiter is on a busy machine is shown elsewhere
    async with HttpClient(HttpConfig()) as http:
        limiter, cache = RateLimiter(redis), Cache(redis)
        real = kis_module.KisClient(http, limiter, cache, world.config())
        paper = kis_module.KisClient(http, limiter, cache, world.config(is_virtual=True))
        assert [rate.limit for client in (real, paper) for rate in client.limit.rates] == [5, 1]
        await asyncio.gather(*(real.price("005930") for _ in range(12)))
    report = world.simulator.report()["kis"]
    assert (report["rejected"], report["requests"]) == (0, 12)
