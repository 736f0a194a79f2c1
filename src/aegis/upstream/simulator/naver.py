"""
Naver as the simulator speaks it: real-time quotes in both shapes, charts in both shapes.

Without a User-Agent it answers 200 with a page that says no. The older shapes are in EUC-KR.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import quoteattr

import msgspec
from aiohttp import web

from aegis.upstream._shape import KST, day
from aegis.upstream.simulator.market import Bar, Look
from aegis.upstream.simulator.state import State

_NOT_FOUND = "<html><head><title>네이버 금융</title></head><body>페이지를 찾을 수 없습니다</body></html>"
_DIRECTIONS = {1: ("2", "상승", "RISING"), 0: ("3", "보합", "UNCHANGED"), -1: ("5", "하락", "FALLING")}
_QUERY = "SERVICE_ITEM:"

Handler = Callable[[web.Request, bytes], web.Response]


class Naver:
    """What Naver answers to."""

    name = "naver"

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path, handler."""
        return [
            ("GET", "/api/realtime/domestic/stock/{codes}", self._for_browsers(self.quotes)),
            ("GET", "/api/realtime", self._for_browsers(self.quotes_as_of_old)),
            ("GET", "/sise.nhn", self._for_browsers(self.chart)),
            ("GET", "/siseJson.naver", self._for_browsers(self.chart_as_text)),
        ]

    def admit(self, request: web.Request, at_ns: int) -> web.Response | None:
        """Count the arrival. What Naver does above its courtesy limit is unknown; to refuse is the strict choice."""
        within = self._state.naver.arrive(request.remote or "", at_ns)
        return None if within else self.refuse("403")

    @staticmethod
    def refuse(code: str) -> web.Response:
        """A page, whatever the status."""
        status = int(code) if code.isdigit() else 200 if code else 500
        return web.Response(status=status, text=_NOT_FOUND, content_type="text/html", charset="utf-8")

    def quotes(self, request: web.Request, body: bytes) -> web.Response:
        """Quotes of the comma-separated codes; unknown ones are left out."""
        del body
        now = datetime.now(UTC).astimezone(KST)
        datas = [_quote(look, now) for look in self._looks(request.match_info["codes"].split(","))]
        answer = {"pollingInterval": self._polling_ms, "datas": datas, "time": now.strftime("%Y%m%d%H%M%S")}
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json", charset="utf-8")

    def quotes_as_of_old(self, request: web.Request, body: bytes) -> web.Response:
        """`?query=SERVICE_ITEM:005930`: numbers, an unsigned change whose sign stands in `rf`, and EUC-KR."""
        del body
        query = request.query.get("query", "")
        if not query.startswith(_QUERY):
            return self.refuse("200")
        datas = [_old_quote(look) for look in self._looks(query.removeprefix(_QUERY).split(","))]
        result = {"pollingInterval": self._polling_ms, "areas": [{"name": "SERVICE_ITEM", "datas": datas}]}
        now_ms = round(datetime.now(UTC).timestamp() * 1000)
        text = msgspec.json.encode({"resultCode": "success", "result": {**result, "time": now_ms}}).decode()
        return web.Response(body=text.encode("cp949"), content_type="application/json", charset="EUC-KR")

    def chart(self, request: web.Request, body: bytes) -> web.Response:
        """`sise.nhn`: the last `count` days as XML in EUC-KR; no days for a code that is not listed."""
        del body
        code, count = request.query.get("symbol", ""), request.query.get("count", "")
        if request.query.get("timeframe") != "day" or not count.isdigit():
            return self.refuse("200")
        bars = self._state.market.bars.get(code, ())[-int(count) :]
        name = quoteattr(self._state.market.names.get(code, ""))
        head = f'<chartdata symbol="{code}" name={name} count="{len(bars)}" timeframe="day" precision="0">'
        items = "\n".join(f'<item data="{_bar(bar, "|")}" />' for bar in bars)
        text = f'<?xml version="1.0" encoding="EUC-KR" ?>\n<protocol>\n{head}\n{items}\n</chartdata>\n</protocol>'
        return web.Response(body=text.encode("cp949"), content_type="text/xml", charset="EUC-KR")

    def chart_as_text(self, request: web.Request, body: bytes) -> web.Response:
        """`siseJson.naver`: nearly JSON, with single quotes and stray blank lines."""
        del body
        try:
            first, last = day(request.query["startTime"]), day(request.query["endTime"])
        except (KeyError, ValueError):
            return self.refuse("200")
        bars = self._state.market.bars.get(request.query.get("symbol", ""), ())
        rows = [f'\n["{bar.day:%Y%m%d}", {_bar(bar, ", ", 1)}, 46.63]' for bar in bars if first <= bar.day <= last]
        head = "['날짜', '시가', '고가', '저가', '종가', '거래량', '외국인소진율']"
        text = f"\n\n\t\n [{','.join([head, *rows])}\n]\n\n"
        return web.Response(text=text, content_type="text/html", charset="utf-8")

    @property
    def _polling_ms(self) -> int:
        return round(self._state.rules.naver_polling_s * 1000)

    def _looks(self, codes: list[str]) -> list[Look]:
        return [look for code in codes if (look := self._state.look(code))]

    def _for_browsers(self, handler: Handler) -> Handler:
        def handle(request: web.Request, body: bytes) -> web.Response:
            if not request.headers.get("User-Agent"):
                self._state.violation(f"{request.path} without a User-Agent")
                return self.refuse("200")
            return handler(request, body)

        return handle


def _bar(bar: Bar, separator: str, first: int = 0) -> str:
    fields = (f"{bar.day:%Y%m%d}", bar.open, bar.high, bar.low, bar.close, bar.volume)
    return separator.join(map(str, fields[first:]))


def _quote(look: Look, now: datetime) -> dict[str, Any]:
    change, bar = look.price - look.base, look.bar
    code, text, name = _DIRECTIONS[(change > 0) - (change < 0)]
    return {
        "itemCode": look.code,
        "stockName": look.name,
        "closePrice": f"{look.price:,}",
        "compareToPreviousClosePrice": f"{change:,}",
        "compareToPreviousPrice": {"code": code, "text": text, "name": name},
        "fluctuationsRatio": f"{100 * change / look.base if look.base else 0:.2f}",
        "openPrice": f"{bar.open:,}",
        "highPrice": f"{bar.high:,}",
        "lowPrice": f"{bar.low:,}",
        "accumulatedTradingVolume": f"{look.volume:,}",
        "marketStatus": "OPEN",
        "localTradedAt": now.isoformat(timespec="seconds"),
    }


def _old_quote(look: Look) -> dict[str, Any]:
    change, bar = look.price - look.base, look.bar
    return {
        "cd": look.code,
        "nm": look.name,
        "sv": look.base,
        "nv": look.price,
        "cv": abs(change),
        "cr": round(100 * abs(change) / look.base, 2) if look.base else 0.0,
        "rf": _DIRECTIONS[(change > 0) - (change < 0)][0],
        "mt": "1",
        "ms": "OPEN",
        "tyn": "N",
        "pcv": look.base,
        "ov": bar.open,
        "hv": bar.high,
        "lv": bar.low,
        "aq": look.volume,
        "aa": look.volume * look.price,
    }
