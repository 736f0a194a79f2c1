"""
KIS as the simulator speaks it: token, approval, current price, daily chart, cash order.

Shapes and refusals: public recordings and the official samples, summed up in `docs/upstreams.md`. Every value in a body
is a string, as in the original. The gateway counts first, then looks at the token, then at the transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web

from aegis.upstream._shape import KST, day
from aegis.upstream.simulator.market import Bar, Look
from aegis.upstream.simulator.state import State

_CHART_ROWS_MAX = 100
_LIMIT_SHARE = 0.3  # the daily price limit on the KRX is 30 % around the base
_QUOTATIONS = "/uapi/domestic-stock/v1/quotations"
_ORDER_FIELDS = ("CANO", "ACNT_PRDT_CD", "PDNO", "ORD_DVSN", "ORD_QTY", "ORD_UNPR")
_MESSAGES = {
    "EGW00201": "초당 거래건수를 초과하였습니다.",
    "EGW00215": "원장에서 허용 가능한 초당 거래건수를 초과하였습니다.",
    "EGW00123": "기간이 만료된 token 입니다.",
    "EGW00121": "유효하지 않은 token 입니다.",
    "EGW00301": "연결시간이 초과되었습니다. 직전 거래를 반드시 확인하세요.",
    "EGW00302": "거래시간이 초과되었습니다. 직전 거래를 반드시 확인하세요.",
    "EGW00316": "조회 처리 중 오류 발생하였습니다. 재 조회 수행 부탁드립니다.",
    "EGW02004": "실전투자 도메인은 모의투자 앱키로 호출하실 수 없습니다.",
}
_TOKEN_MESSAGES = {
    "EGW00133": "접근토큰 발급 잠시 후 다시 시도하세요(1분당 1회)",
    "EGW00115": "grant_type이 유효하지 않습니다.",
    "EGW00103": "유효하지 않은 AppKey입니다.",
    "EGW00105": "유효하지 않은 AppSecret입니다.",
}

Handler = Callable[[web.Request, bytes], web.Response]


class Kis:
    """What KIS answers to."""

    name = "kis"

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path, handler."""
        chart, order = f"{_QUOTATIONS}/inquire-daily-itemchartprice", "/uapi/domestic-stock/v1/trading/order-cash"
        orders = ("TTTC0012U", "TTTC0011U")
        return [
            ("POST", "/oauth2/tokenP", self.token),
            ("POST", "/oauth2/Approval", self.approval),
            ("GET", f"{_QUOTATIONS}/inquire-price", self._authorized(("FHKST01010100",), self.price)),
            ("GET", chart, self._authorized(("FHKST03010100",), self.chart)),
            ("POST", order, self._authorized(orders, self.order)),
        ]

    def admit(self, request: web.Request, at_ns: int) -> web.Response | None:
        """Count the arrival; a refusal when it is over the quota. Issuing tokens has a limit of its own."""
        if request.path.startswith("/oauth2/"):
            return None
        within = self._state.kis.arrive(request.headers.get("appkey", ""), at_ns)
        return None if within else self.refuse("EGW00201")

    @staticmethod
    def refuse(code: str) -> web.Response:
        """The gateway refuses with status 500, whatever the reason; some failures say nothing at all."""
        if code == "EGW00133":
            return _no_token(code)
        return _answer(500, {"rt_cd": "1", "msg_cd": code, "msg1": _MESSAGES.get(code, "")})

    def token(self, request: web.Request, body: bytes) -> web.Response:
        """One issue per app key and minute; another within six hours gives the same token."""
        del request
        asked = _fields(body)
        if asked.get("grant_type") != "client_credentials":
            return _no_token("EGW00115")
        if not asked.get("appkey"):
            return _no_token("EGW00103")
        if not asked.get("appsecret") or not self._state.tokens.knows(asked["appkey"], asked["appsecret"]):
            return _no_token("EGW00105")
        issued = self._state.tokens.issue(asked["appkey"])
        if issued is None:
            return _no_token("EGW00133")
        token, life_s = issued
        expires = datetime.now(UTC).astimezone(KST) + timedelta(seconds=life_s)
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": 86_400}  # which is known to be off
        return _answer(200, {**answer, "access_token_token_expired": expires.strftime("%Y-%m-%d %H:%M:%S")})

    def approval(self, request: web.Request, body: bytes) -> web.Response:
        """The key of the WebSocket; here the secret is called `secretkey`."""
        del request
        asked = _fields(body)
        if asked.get("grant_type") != "client_credentials":
            return _no_token("EGW00115")
        if not asked.get("appkey"):
            return _no_token("EGW00103")
        if not asked.get("secretkey") or not self._state.tokens.knows(asked["appkey"], asked["secretkey"]):
            return _no_token("EGW00105")
        return _answer(200, {"approval_key": str(uuid.uuid4())})

    def price(self, request: web.Request, body: bytes) -> web.Response:
        """`inquire-price`: the stock now."""
        del body
        look = self._look(request)
        return look if isinstance(look, web.Response) else _success(output=_price_output(look))

    def chart(self, request: web.Request, body: bytes) -> web.Response:
        """`inquire-daily-itemchartprice`: at most a hundred days, newest first."""
        del body
        look = self._look(request)
        if isinstance(look, web.Response):
            return look
        try:
            first, last = (day(request.query[f"FID_INPUT_DATE_{n}"]) for n in (1, 2))
        except (KeyError, ValueError):
            return _bad_parameter("FID_INPUT_DATE")
        for name, allowed in (("FID_PERIOD_DIV_CODE", "DWMY"), ("FID_ORG_ADJ_PRC", "01")):
            if request.query.get(name, "?") not in allowed:
                return _bad_parameter(name)
        bars = [bar for bar in self._state.market.bars[look.code] if first <= bar.day <= last]
        rows = [_chart_row(bar) for bar in reversed(bars[-_CHART_ROWS_MAX:])]
        head = {**_change(look), "hts_kor_isnm": look.name, "stck_prpr": str(look.price), "stck_shrn_iscd": look.code}
        return _success(output1=head, output2=rows)

    def order(self, request: web.Request, body: bytes) -> web.Response:
        """`order-cash`: every order is a new order; there is no client order id."""
        del request
        order = _fields(body)
        missing = [name for name in _ORDER_FIELDS if not order.get(name)]
        if missing:
            return _bad_parameter(missing[0])
        if self._state.look(order["PDNO"]) is None:
            return _answer(200, {"rt_cd": "7", "msg_cd": "APBK0400", "msg1": "주문 종목을 확인하세요."})
        self._state.orders.append(order)
        number = f"{len(self._state.orders):010}"
        return _success(output={"KRX_FWDG_ORD_ORGNO": "00950", "ODNO": number, "ORD_TMD": "093000"})

    def _authorized(self, tr_ids: tuple[str, ...], handler: Handler) -> Handler:
        """The token, then the transaction."""

        def handle(request: web.Request, body: bytes) -> web.Response:
            app_key, headers = request.headers.get("appkey", ""), request.headers
            bearer = headers.get("authorization", "").removeprefix("Bearer ")
            verdict = self._state.tokens.verdict(app_key, bearer)
            if verdict != "valid":
                return self.refuse("EGW00123" if verdict == "expired" else "EGW00121")
            if not headers.get("appsecret") or not self._state.tokens.knows(app_key, headers["appsecret"]):
                self._state.violation(f"{request.path} without the app secret")
                return self.refuse("EGW00105")
            if headers.get("tr_id") not in self._on_this_account(tr_ids):
                self._state.violation(f"{request.path} with tr_id {headers.get('tr_id')!r}")
                return self.refuse("OPSQ0002")
            return handler(request, body)

        return handle

    def _on_this_account(self, tr_ids: tuple[str, ...]) -> tuple[str, ...]:
        if not self._state.rules.kis_paper:
            return tr_ids
        return tuple(f"V{tr_id[1:]}" if tr_id[0] in "TJC" else tr_id for tr_id in tr_ids)

    def _look(self, request: web.Request) -> Look | web.Response:
        if request.query.get("FID_COND_MRKT_DIV_CODE") not in {"J", "NX", "UN"}:
            return _bad_parameter("FID_COND_MRKT_DIV_CODE")
        return self._state.look(request.query.get("FID_INPUT_ISCD", "")) or _bad_parameter("FID_INPUT_ISCD")


def _fields(body: bytes) -> dict[str, str]:
    try:
        return msgspec.json.decode(body, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _answer(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json", charset="utf-8")


def _no_token(code: str) -> web.Response:
    """Other field names than everywhere else, and status 403."""
    return _answer(403, {"error_code": code, "error_description": _TOKEN_MESSAGES[code]})


def _success(**outputs: Any) -> web.Response:
    # The trailing blanks of the message are KIS's.
    return _answer(200, {**outputs, "rt_cd": "0", "msg_cd": "MCA00000", "msg1": "정상처리 되었습니다.  "})


def _bad_parameter(name: str) -> web.Response:
    return _answer(200, {"rt_cd": "2", "msg_cd": "OPSQ2001", "msg1": f"ERROR : INPUT INVALID_CHECK_{name}"})


def _change(look: Look) -> dict[str, str]:
    change = look.price - look.base
    sign = "2" if change > 0 else "5" if change < 0 else "3"
    percent = 100 * change / look.base if look.base else 0.0
    return {"prdy_vrss": str(change), "prdy_vrss_sign": sign, "prdy_ctrt": f"{percent:.2f}"}


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
        "per": "11.42",
        "pbr": "1.32",
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
