"""
Korea Investment & Securities (한국투자증권): what its answers mean, one token for all processes, prices.

KIS says "too fast" with status 500 and a code in the body, so the body decides, and the status only where the body is
not KIS's. The token is issued once for the whole fleet (one a minute is allowed), lives in the shared cache until
shortly before its expiry in Korean time, and is dropped only by comparison: whoever sees it refused removes that token,
never the one a sibling has just obtained.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from aegis.config import KisConfig
from aegis.errors import BodyDecodeError
from aegis.http import (
    Ambiguous,
    HttpClient,
    Ok,
    Profile,
    Reauth,
    Rejected,
    Request,
    Response,
    Throttled,
    Transient,
    Verdict,
)
from aegis.redis import Cache, RateLimit, RateLimiter
from aegis.upstream._shape import PAUSE_S, DailyBar, by_status, day, exact, expected_shape, whole
from aegis.upstream._token import SharedToken, credentials
from aegis.upstream.presets import KIS_PAPER_RATE_LIMIT, KIS_RATE_LIMIT, KIS_TOKEN_RATE_LIMIT

_THROTTLED = frozenset({"EGW00201", "EGW00215"})
_STALE_TOKEN = frozenset({"EGW00121", "EGW00123"})
_UNKNOWN_OUTCOME = frozenset({"EGW00301", "EGW00302"})
_PASSING = frozenset({"EGW00202", "EGW00203", "EGW00300", "EGW00316", "OPSQ0003", "OPSQ1002", ""})
_CHART_ROWS_MAX = 100
_QUOTATIONS = "/uapi/domestic-stock/v1/quotations"


class _Envelope(msgspec.Struct):
    """The part of every answer that says what it means; the token's endpoint uses other names."""

    rt_cd: str | None = None
    msg_cd: str = ""
    msg1: str = ""
    access_token: str | None = None
    approval_key: str | None = None
    error_code: str | None = None
    error_description: str = ""


def classify(request: Request, response: Response) -> Verdict:
    """What an answer of KIS means. The body decides; the status only where the body is not KIS's."""
    del request
    body = _envelope(response)
    if body is None:
        return by_status(response, "KIS")
    if body.error_code is not None:
        return Rejected(body.error_code, body.error_description)
    if body.access_token is not None or body.approval_key is not None or body.rt_cd == "0":
        return Ok()
    if body.rt_cd is None:
        return by_status(response, "KIS")
    code, message = body.msg_cd.strip(), body.msg1.strip()
    if code in _THROTTLED:
        return Throttled(PAUSE_S, code=code, message=message)
    if code in _STALE_TOKEN:
        return Reauth(code, message)
    if code in _UNKNOWN_OUTCOME:
        return Ambiguous(code, message)
    if code in _PASSING:
        return Transient(code, message or "a refusal without a word")
    return Rejected(code, message)


def _envelope(response: Response) -> _Envelope | None:
    """The codes are ASCII, so they are read even where the words are in another charset than the header says."""
    try:
        return response.json(_Envelope)
    except BodyDecodeError:
        pass
    try:
        return msgspec.json.decode(response.content.decode("cp949"), type=_Envelope)
    except (UnicodeDecodeError, msgspec.DecodeError):
        return None


KIS_PROFILE = Profile(
    name="kis",
    classify=classify,
    secret_names=frozenset(
        {"authorization", "appkey", "appsecret", "secretkey", "access_token", "approval_key", "CANO"}
    ),
    default_headers={"custtype": "P", "Content-Type": "application/json; charset=utf-8"},
)


class StockPrice(msgspec.Struct, frozen=True):
    """One stock now, in won and shares. `change` is signed, against the close of the day before."""

    code: str
    price: int
    change: int
    open: int
    high: int
    low: int
    volume: int
    amount: int
    halted: bool
    base: int | None = None  #: what `change` counts from
    upper_limit: int | None = None
    lower_limit: int | None = None
    change_percent: Decimal | None = None
    per: Decimal | None = None
    pbr: Decimal | None = None


class _PriceAnswer(msgspec.Struct):
    output: dict[str, str]


class _ChartAnswer(msgspec.Struct):
    output2: list[dict[str, str]]


class KisClient:
    """
    KIS, each request paid for at the shared limit of the app key, with the token that all processes share.

    Real and paper trading differ in host, limit and token. Errors are those of `aegis.http`, and `TokenRefusedError`.
    A call may wait up to a minute for a token, beside its `HTTP_TIMEOUT`; bound it with `asyncio.timeout`.
    """

    def __init__(
        self,
        http: HttpClient,
        limiter: RateLimiter,
        cache: Cache,
        config: KisConfig,
        limit: RateLimit | None = None,
        *,
        token_limit: RateLimit = KIS_TOKEN_RATE_LIMIT,
    ) -> None:
        app_key, _ = credentials(config)
        self.limit = limit or (KIS_PAPER_RATE_LIMIT if config.is_virtual else KIS_RATE_LIMIT)
        self._url, self._paper = config.base_url, config.is_virtual
        profiled = http.with_profile(KIS_PROFILE)
        self._token = SharedToken(profiled, limiter, cache, config, token_limit)
        paid = profiled.with_rate_limiter(limiter, self.limit, key=app_key)
        self._http = paid.with_reauth(self._token.renew)

    async def token(self) -> str:
        """
        The access token that all processes share; issued if there is none.

        Raises:
            TokenRefusedError: KIS issued none; after EGW00133 only when a minute of waiting brought none either.
        """
        return await self._token.current()

    async def request(
        self,
        method: str,
        path: str,
        tr_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        tr_cont: str = "",
        timeout: float | None = None,
    ) -> Response:
        """
        Any of KIS's transactions: `await kis.request("POST", ".../order-cash", "TTTC0012U", body={...})`.

        A POST is sent once; again only if KIS refused it unexecuted (too fast, or a stale token). On paper the first
        letter of a trading transaction becomes V by itself. The next page is `tr_cont="N"`, if the answer's header
        `tr_cont` was M or F.

        Raises:
            AmbiguousOutcomeError: a POST left and its outcome is unknown; look at the fills before you repeat it.
        """
        headers = {
            "authorization": f"Bearer {await self._token.current()}",
            "appkey": self._token.app_key,
            "appsecret": self._token.app_secret,
            "tr_id": f"V{tr_id[1:]}" if self._paper and tr_id[:1] in {"T", "J", "C"} else tr_id,
            "tr_cont": tr_cont,
        }
        content = None if body is None else msgspec.json.encode(body)
        url = f"{self._url}{path}"
        return await self._http.request(method, url, params=params, headers=headers, content=content, timeout=timeout)

    async def price(self, code: str) -> StockPrice:
        """The stock now (주식현재가 시세)."""
        answer = await self._quotation("inquire-price", "FHKST01010100", {"FID_INPUT_ISCD": code})
        with expected_shape(answer):
            return _price(code, answer.json(_PriceAnswer).output)

    async def daily_chart(self, code: str, first: date, last: date, *, adjusted: bool = True) -> list[DailyBar]:
        """Daily bars from `first` to `last`, both included, oldest first, in as many pages of 100 as it takes."""
        bars: dict[date, DailyBar] = {}
        until = last
        while first <= until:
            page = await self._chart_page(code, first, until, adjusted=adjusted)
            bars |= {bar.date: bar for bar in page if first <= bar.date <= last}
            oldest = min((bar.date for bar in page), default=first)
            if len(page) < _CHART_ROWS_MAX or oldest > until:  # complete, or not the page that was asked for
                break
            until = oldest - timedelta(days=1)
        return [bars[each] for each in sorted(bars)]

    async def _chart_page(self, code: str, first: date, last: date, *, adjusted: bool) -> list[DailyBar]:
        period = {"FID_INPUT_DATE_1": f"{first:%Y%m%d}", "FID_INPUT_DATE_2": f"{last:%Y%m%d}"}
        shape = {"FID_PERIOD_DIV_CODE": "D", "FID_ORG_ADJ_PRC": "0" if adjusted else "1"}
        params = {"FID_INPUT_ISCD": code, **period, **shape}
        answer = await self._quotation("inquire-daily-itemchartprice", "FHKST03010100", params)
        with expected_shape(answer):
            return [_bar(row) for row in answer.json(_ChartAnswer).output2 if row]  # a page may end in empty rows

    async def _quotation(self, name: str, tr_id: str, params: Mapping[str, str]) -> Response:
        asked = {"FID_COND_MRKT_DIV_CODE": "J", **params}
        return await self.request("GET", f"{_QUOTATIONS}/{name}", tr_id, params=asked)


def _price(code: str, out: Mapping[str, str]) -> StockPrice:
    return StockPrice(
        code,
        price=whole(out["stck_prpr"]),
        change=whole(out["prdy_vrss"]),
        open=whole(out["stck_oprc"]),
        high=whole(out["stck_hgpr"]),
        low=whole(out["stck_lwpr"]),
        volume=whole(out["acml_vol"]),
        amount=whole(out["acml_tr_pbmn"]),
        halted=out.get("temp_stop_yn") == "Y",
        base=_whole_or_none(out.get("stck_sdpr")),
        upper_limit=_whole_or_none(out.get("stck_mxpr")),
        lower_limit=_whole_or_none(out.get("stck_llam")),
        change_percent=exact(out.get("prdy_ctrt")),
        per=exact(out.get("per")),
        pbr=exact(out.get("pbr")),
    )


def _whole_or_none(text: str | None) -> int | None:
    return None if exact(text) is None else whole(text or "")


def _bar(row: Mapping[str, str]) -> DailyBar:
    return DailyBar(
        day(row["stck_bsop_date"]),
        open=whole(row["stck_oprc"]),
        high=whole(row["stck_hgpr"]),
        low=whole(row["stck_lwpr"]),
        close=whole(row["stck_clpr"]),
        volume=whole(row["acml_vol"]),
        amount=whole(row["acml_tr_pbmn"]),
    )
