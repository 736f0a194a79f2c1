"""
Naver's finance pages (네이버 금융): real-time quotes and daily charts.

Nothing is documented. Without a User-Agent the answer is 200 with a page that says "not found", so an answer that is
not of the expected shape is an error that passes, with an excerpt of it. The chart is XML in EUC-KR.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime

import msgspec

from aegis.config import NaverConfig
from aegis.http import HttpClient, Ok, Profile, Rejected, Request, Response, Throttled, Transient, Verdict
from aegis.redis import Cache, RateLimit, RateLimiter
from aegis.upstream._shape import KST
from aegis.upstream.kis import DailyBar
from aegis.upstream.presets import NAVER_RATE_LIMIT

_PAUSE_S = 1.0
_EXCERPT = 80
_PAGES = (b"<!doctype html", b"<html")
_ITEM = re.compile(r'<item data="(\d{8})\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|(\d+)"')
#: A browser's name; some of Naver's pages answer nobody else.
_USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0 Safari/537.36"


def classify(request: Request, response: Response) -> Verdict:
    """What an answer of Naver means: a page where data was expected is an error, whatever its status."""
    del request
    if response.status in {403, 429}:
        return Throttled(_PAUSE_S, code=str(response.status))
    if response.status >= 500:
        return Transient(str(response.status))
    if not response.ok:
        return Rejected(str(response.status))
    head = response.content[:_EXCERPT].strip()
    if not head or head.lower().startswith(_PAGES):
        return Transient(str(response.status), f"a page instead of data: {head.decode(errors='backslashreplace')}")
    return Ok()


NAVER_PROFILE = Profile(name="naver", classify=classify, default_headers={"User-Agent": _USER_AGENT})


class NaverQuote(msgspec.Struct, frozen=True):
    """One stock now, in won and shares. `change` is signed."""

    code: str
    name: str
    price: int
    change: int
    open: int
    high: int
    low: int
    volume: int
    market_open: bool


class _Quote(msgspec.Struct, rename="camel"):
    item_code: str
    close_price: str
    compare_to_previous_close_price: str
    open_price: str
    high_price: str
    low_price: str
    accumulated_trading_volume: str
    market_status: str
    stock_name: str = ""


class _Quotes(msgspec.Struct, rename="camel"):
    datas: list[_Quote]
    polling_interval: int = 0


class NaverClient:
    """Quotes and charts, paid for at the shared courtesy limit."""

    def __init__(
        self,
        http: HttpClient,
        limiter: RateLimiter,
        cache: Cache,
        config: NaverConfig,
        limit: RateLimit = NAVER_RATE_LIMIT,
    ) -> None:
        del cache
        self._url, self._chart_url = config.base_url, config.chart_url
        self._http = http.with_profile(NAVER_PROFILE).with_rate_limiter(limiter, limit)
        #: What the server asked pollers to wait, by its last answer; 0.0 before the first.
        self.polling_interval_s = 0.0

    async def quotes(self, codes: Sequence[str]) -> list[NaverQuote]:
        """Real-time quotes; codes that Naver does not know are left out."""
        answer = await self._http.get(f"{self._url}/api/realtime/domestic/stock/{','.join(codes)}")
        found = answer.json(_Quotes)
        self.polling_interval_s = found.polling_interval / 1000
        return [_quote(quote) for quote in found.datas]

    async def daily_chart(self, code: str, days: int) -> list[DailyBar]:
        """The last `days` daily bars, oldest first; Naver gives no amounts (0)."""
        params = {"symbol": code, "timeframe": "day", "count": days, "requestType": 0}
        answer = await self._http.get(f"{self._chart_url}/sise.nhn", params=params)
        return parse_chart(answer.text())


def parse_chart(text: str) -> list[DailyBar]:
    """The bars of a chart body, oldest first."""
    return [_bar(match.groups()) for match in _ITEM.finditer(text)]


def _bar(fields: Sequence[str]) -> DailyBar:
    day, opened, high, low, close, volume = fields
    return DailyBar(_day(day), int(opened), int(high), int(low), int(close), int(volume), 0)


def _day(text: str) -> date:
    return datetime.strptime(text, "%Y%m%d").replace(tzinfo=KST).date()


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def _quote(quote: _Quote) -> NaverQuote:
    return NaverQuote(
        quote.item_code,
        quote.stock_name,
        _number(quote.close_price),
        _number(quote.compare_to_previous_close_price),
        _number(quote.open_price),
        _number(quote.high_price),
        _number(quote.low_price),
        _number(quote.accumulated_trading_volume),
        market_open=quote.market_status == "OPEN",
    )
