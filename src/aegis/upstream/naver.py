"""
Naver's finance pages (네이버 금융): real-time quotes and daily charts.

Nothing is documented. Without a User-Agent the answer is 200 with a page that says "not found", so an answer that is
not of the expected shape is an error that passes, with an excerpt of it. Charts are XML in EUC-KR. The quotes say
themselves how often they want to be asked for.
"""

from __future__ import annotations

import asyncio
import re
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal

import msgspec

from aegis.config import NaverConfig
from aegis.http import HttpClient, Ok, Profile, Request, Response, Throttled, Transient, Verdict
from aegis.redis import Cache, RateLimit, RateLimiter
from aegis.upstream._shape import PAUSE_S, DailyBar, by_status, day, exact, excerpt, expected_shape, whole
from aegis.upstream.presets import NAVER_RATE_LIMIT

_HEAD_BYTES = 500
_EXCERPT_CHARS = 80
_ITEM = re.compile(r'<item\s+data="(\d{8})\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|(\d+)"')
#: A browser's name; some of Naver's pages answer nobody else.
_USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0 Safari/537.36"
_FALLING = frozenset({"4", "5"})  # lower limit, falling
#: However short the interval is that the server publishes, nobody polls faster.
_INTERVAL_MIN_S = 1.0
_INTERVAL_MAX_S = 300.0


def classify(request: Request, response: Response) -> Verdict:
    """What an answer of Naver means: a page where data was expected is an error, whatever its status."""
    del request
    if response.status == 403:
        return Throttled(PAUSE_S, code="403")
    if not 200 <= response.status < 300:
        return by_status(response, "Naver")
    if not response.content.strip() or _is_page(response.content):
        return Transient(str(response.status), f"a page instead of data: {excerpt(response)}")
    return Ok()


def _is_page(content: bytes) -> bool:
    head = content[:_HEAD_BYTES].removeprefix(BOM_UTF8).lstrip().lower()
    return head.startswith(b"<") and (not head.startswith(b"<?xml") or b"<html" in head)


NAVER_PROFILE = Profile(name="naver", classify=classify, default_headers={"User-Agent": _USER_AGENT})


class NaverQuote(msgspec.Struct, frozen=True):
    """One stock now, in won and shares. `change` is signed, against the close of the day before."""

    code: str
    name: str
    price: int
    change: int
    open: int
    high: int
    low: int
    volume: int
    market_open: bool
    change_percent: Decimal | None = None


class _Direction(msgspec.Struct):
    code: str = ""


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
    fluctuations_ratio: str = ""
    compare_to_previous_price: _Direction = msgspec.field(default_factory=_Direction)


class _Quotes(msgspec.Struct, rename="camel"):
    datas: list[_Quote]
    polling_interval: float = 0


class NaverClient:
    """Quotes and charts, paid for at the shared courtesy limit. Errors are those of `aegis.http`."""

    def __init__(
        self,
        http: HttpClient,
        limiter: RateLimiter,
        cache: Cache,
        config: NaverConfig,
        limit: RateLimit = NAVER_RATE_LIMIT,
    ) -> None:
        del cache  # every client is built from the same four
        self._url, self._chart_url = config.base_url, config.chart_url
        self._http = http.with_profile(NAVER_PROFILE).with_rate_limiter(limiter, limit)
        #: What the server asked pollers to wait, by its last answer; 0.0 before the first.
        self.polling_interval_s = 0.0

    async def quotes(self, codes: Sequence[str]) -> list[NaverQuote]:
        """Real-time quotes; codes that Naver does not know are left out."""
        answer = await self._http.get(f"{self._url}/api/realtime/domestic/stock/{','.join(codes)}")
        with expected_shape(answer):
            found = answer.json(_Quotes)
            self.polling_interval_s = found.polling_interval / 1000
            return [_quote(quote) for quote in found.datas]

    async def watch(self, codes: Sequence[str]) -> AsyncIterator[list[NaverQuote]]:
        """
        Quotes for ever, at the interval that the server publishes (7 s while the market is open, 70 s after).

        An error ends it, after the retries of the client; start anew when you want to go on.
        """
        while True:
            yield await self.quotes(codes)
            await asyncio.sleep(min(max(self.polling_interval_s, _INTERVAL_MIN_S), _INTERVAL_MAX_S))

    async def daily_chart(self, code: str, days: int) -> list[DailyBar]:
        """The last `days` daily bars, oldest first; Naver gives no amounts (0). Empty for a code it does not know."""
        params = {"symbol": code, "timeframe": "day", "count": days, "requestType": 0}
        answer = await self._http.get(f"{self._chart_url}/sise.nhn", params=params)
        with expected_shape(answer):
            return parse_chart(answer.text())


def parse_chart(text: str) -> list[DailyBar]:
    """
    The bars of a body of `sise.nhn` (XML), oldest first.

    Raises:
        ValueError: it is no chart, breaks off, or has a bar that cannot be read.
    """
    if "<chartdata" not in text or not text.rstrip().endswith("</protocol>"):
        raise ValueError(f"no whole chart: {text[:_EXCERPT_CHARS]!r}")
    bars = [_bar(match.groups()) for match in _ITEM.finditer(text)]
    if len(bars) != text.count("<item"):
        raise ValueError(f"{text.count('<item')} bars, of which {len(bars)} can be read")
    return bars


def _bar(fields: Sequence[str]) -> DailyBar:
    opened, high, low, close, volume = map(int, fields[1:])
    return DailyBar(day(fields[0]), opened, high, low, close, volume, amount=0)


def _signed(change: int, direction: str) -> int:
    """Some answers give a sign, some do not; the direction is always there."""
    return -abs(change) if direction in _FALLING else abs(change) if direction else change


def _quote(quote: _Quote) -> NaverQuote:
    direction = quote.compare_to_previous_price.code
    return NaverQuote(
        quote.item_code,
        quote.stock_name,
        price=whole(quote.close_price),
        change=_signed(whole(quote.compare_to_previous_close_price), direction),
        open=whole(quote.open_price),
        high=whole(quote.high_price),
        low=whole(quote.low_price),
        volume=whole(quote.accumulated_trading_volume),
        market_open=quote.market_status == "OPEN",
        change_percent=exact(quote.fluctuations_ratio),
    )
