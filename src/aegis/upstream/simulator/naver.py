"""Naver as the simulator speaks it: real-time quotes. Without a User-Agent it answers 200 with a page that says no."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from aegis.upstream.simulator.kis import KST
from aegis.upstream.simulator.market import Look
from aegis.upstream.simulator.state import ARRIVED, State

_POLLING_INTERVAL_MS = 7000
_NOT_FOUND = "<html><head><title>네이버 금융</title></head><body>페이지를 찾을 수 없습니다</body></html>"
_DIRECTIONS = {1: ("2", "상승", "RISING"), 0: ("3", "보합", "UNCHANGED"), -1: ("5", "하락", "FALLING")}


def routes(state: State) -> list[web.RouteDef]:
    """What Naver answers to."""
    return [web.get("/api/realtime/domestic/stock/{codes}", _Naver(state).quotes)]


class _Naver:
    def __init__(self, state: State) -> None:
        self._state = state

    async def quotes(self, request: web.Request) -> web.Response:
        """Quotes of the comma-separated codes; unknown ones are left out."""
        if not self._state.naver.arrive(request.remote or "", request[ARRIVED]):
            # What Naver does above its courtesy limit is not documented; a refusal is the strict choice.
            return web.Response(status=403, text=_NOT_FOUND, content_type="text/html")
        if not request.headers.get("User-Agent"):
            return web.Response(text=_NOT_FOUND, content_type="text/html")
        looks = [look for code in request.match_info["codes"].split(",") if (look := self._state.look(code))]
        now = datetime.now(UTC).astimezone(KST)
        body = {
            "pollingInterval": _POLLING_INTERVAL_MS,
            "datas": [_quote(look, now) for look in looks],
            "time": now.strftime("%Y%m%d%H%M%S"),
        }
        return web.Response(body=msgspec.json.encode(body), content_type="application/json", charset="utf-8")


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
