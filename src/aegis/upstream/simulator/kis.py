"""
KIS as the simulator speaks it: token, current price, daily chart, cash order.

Shapes and refusals follow public recordings and the official samples. Every value in a body is a string, as in the
original.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import msgspec
from aiohttp import web

from aegis.upstream.simulator.market import Bar, Look
from aegis.upstream.simulator.state import ARRIVED, State

KST = timezone(timedelta(hours=9), "KST")
_CHART_ROWS_MAX = 100
_LIMIT_SHARE = 0.3  # the daily price limit on the KRX is 30 % around the base

_RATE = ("EGW00201", "초당 거래건수를 초과하였습니다.")
_EXPIRED = ("EGW00123", "기간이 만료된 token 입니다.")
_INVALID = ("EGW00121", "유효하지 않은 token 입니다.")

Handler = Callable[[web.Request], Awaitable[web.Response]]


def routes(state: State) -> list[web.RouteDef]:
    """What KIS answers to."""
    service = _Kis(state)
    quotations = "/uapi/domestic-stock/v1/quotations"
    return [
        web.post("/oauth2/tokenP", service.token),
        web.get(f"{quotations}/inquire-price", service.guarded("FHKST01010100", service.price)),
        web.get(f"{quotations}/inquire-daily-itemchartprice", service.guarded("FHKST03010100", service.chart)),
        web.post("/uapi/domestic-stock/v1/trading/order-cash", service.guarded("TTTC0012U", service.order)),
    ]


class _Kis:
    def __init__(self, state: State) -> None:
        self._state = state
        self._orders = 0

    async def token(self, request: web.Request) -> web.Response:
        """One issue per app key and minute; another within six hours gives the same token."""
        try:
            asked = msgspec.json.decode(await request.read(), type=dict[str, str])
        except msgspec.DecodeError:
            asked = {}
        if asked.get("grant_type") != "client_credentials":
            return _answer(403, {"error_code": "EGW00115", "error_description": "grant_type이 유효하지 않습니다."})
        if not asked.get("appkey") or not asked.get("appsecret"):
            return _answer(403, {"error_code": "EGW00103", "error_description": "유효하지 않은 AppKey입니다."})
        if not self._state.tokens.knows(asked["appkey"], asked["appsecret"]):
            return _answer(403, {"error_code": "EGW00105", "error_description": "유효하지 않은 AppSecret입니다."})
        issued = self._state.tokens.issue(asked["appkey"])
        if issued is None:
            reason = "접근토큰 발급 잠시 후 다시 시도하세요(1분당 1회)"
            return _answer(403, {"error_code": "EGW00133", "error_description": reason})
        token, life_s = issued
        expires = datetime.now(UTC).astimezone(KST) + timedelta(seconds=life_s)
        body = {"access_token": token, "token_type": "Bearer", "expires_in": round(life_s)}
        return _answer(200, {**body, "access_token_token_expired": expires.strftime("%Y-%m-%d %H:%M:%S")})

    def guarded(self, tr_id: str, handler: Callable[[web.Request], web.Response]) -> Handler:
        """Quota first, as the gateway does; then the token; then the transaction id."""

        async def handle(request: web.Request) -> web.Response:
            await request.read()
            app_key = request.headers.get("appkey", "")
            if not self._state.kis.arrive(app_key, request[ARRIVED]):
                return _refusal(*_RATE)
            bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
            verdict = self._state.tokens.verdict(app_key, bearer)
            if verdict != "valid":
                return _refusal(*(_EXPIRED if verdict == "expired" else _INVALID))
            if request.headers.get("tr_id") != tr_id or not request.headers.get("appsecret"):
                self._state.violation(f"{request.path} without its tr_id or appsecret")
                return _refusal("OPSQ0002", "없는 서비스 코드 입니다.")
            return handler(request)

        return handle

    def price(self, request: web.Request) -> web.Response:
        """`inquire-price`: the stock now."""
        look = self._look(request)
        return look if isinstance(look, web.Response) else _success(output=_price_output(look))

    def chart(self, request: web.Request) -> web.Response:
        """`inquire-daily-itemchartprice`: at most a hundred days, newest first."""
        look = self._look(request)
        if isinstance(look, web.Response):
            return look
        try:
            first, last = (_day(request.query[f"FID_INPUT_DATE_{n}"]) for n in (1, 2))
        except (KeyError, ValueError):
            return _bad_parameter("FID_INPUT_DATE")
        bars = [bar for bar in self._state.market.bars[look.code] if first <= bar.day <= last]
        rows = [_chart_row(bar) for bar in reversed(bars[-_CHART_ROWS_MAX:])]
        head = {**_change(look), "hts_kor_isnm": look.name, "stck_prpr": str(look.price), "stck_shrn_iscd": look.code}
        return _success(output1=head, output2=rows)

    def order(self, request: web.Request) -> web.Response:
        """`order-cash`: every order is a new order; there is no client order id."""
        del request
        self._orders += 1
        return _success(output={"KRX_FWDG_ORD_ORGNO": "00950", "ODNO": f"{self._orders:010}", "ORD_TMD": "093000"})

    def _look(self, request: web.Request) -> Look | web.Response:
        if request.query.get("FID_COND_MRKT_DIV_CODE") not in {"J", "NX", "UN"}:
            return _bad_parameter("FID_COND_MRKT_DIV_CODE")
        return self._state.look(request.query.get("FID_INPUT_ISCD", "")) or _bad_parameter("FID_INPUT_ISCD")


def _answer(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json", charset="utf-8")


def _success(**outputs: Any) -> web.Response:
    return _answer(200, {**outputs, "rt_cd": "0", "msg_cd": "MCA00000", "msg1": "정상처리 되었습니다."})


def _refusal(code: str, message: str) -> web.Response:
    """The gateway refuses with status 500, whatever the reason."""
    return _answer(500, {"rt_cd": "1", "msg_cd": code, "msg1": message})


def _bad_parameter(name: str) -> web.Response:
    return _answer(200, {"rt_cd": "2", "msg_cd": "OPSQ2001", "msg1": f"ERROR : INPUT INVALID_CHECK_{name}"})


def _day(text: str) -> date:
    return datetime.strptime(text, "%Y%m%d").replace(tzinfo=KST).date()


def _sign(change: int) -> str:
    return "2" if change > 0 else "5" if change < 0 else "3"


def _change(look: Look) -> dict[str, str]:
    change = look.price - look.base
    percent = 100 * change / look.base if look.base else 0.0
    return {"prdy_vrss": str(change), "prdy_vrss_sign": _sign(change), "prdy_ctrt": f"{percent:.2f}"}


def _price_output(look: Look) -> dict[str, str]:
    bar = look.bar
    return {
        **_change(look),
        "rprs_mrkt_kor_name": "KOSPI",
        "stck_shrn_iscd": look.code,
        "stck_prpr": str(look.price),
        "acml_vol": str(look.volume),
        "acml_tr_pbmn": str(look.volume * look.price),
        "stck_oprc": str(bar.open),
        "stck_hgpr": str(bar.high),
        "stck_lwpr": str(bar.low),
        "stck_mxpr": str(round(look.base * (1 + _LIMIT_SHARE))),
        "stck_llam": str(round(look.base * (1 - _LIMIT_SHARE))),
        "stck_sdpr": str(look.base),
        "temp_stop_yn": "Y" if bar.halted else "N",
        "iscd_stat_cls_code": "58" if bar.halted else "55",
    }


def _chart_row(bar: Bar) -> dict[str, str]:
    return {
        "stck_bsop_date": bar.day.strftime("%Y%m%d"),
        "stck_clpr": str(bar.close),
        "stck_oprc": str(bar.open),
        "stck_hgpr": str(bar.high),
        "stck_lwpr": str(bar.low),
        "acml_vol": str(bar.volume),
        "acml_tr_pbmn": str(bar.amount),
        "flng_cls_code": "00",
        "prtt_rate": "0.00",
        "mod_yn": "N",
        "prdy_vrss_sign": "3",
        "prdy_vrss": "0",
        "revl_issu_reas": "",
    }
