"""
Korea Investment & Securities (한국투자증권): what its answers mean, one token for all processes, prices.

KIS says "too fast" with status 500 and a code in the body, so the body decides, and the status only where the body is
not KIS's. The token is issued once for the whole fleet (one a minute is allowed), lives in the shared cache until
shortly before its expiry in Korean time, and is dropped only by comparison: whoever sees it refused removes that token,
never the one a sibling has just obtained.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import msgspec

from aegis.config import KisConfig
from aegis.errors import MissingSettingError, RejectedError
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
from aegis.upstream.presets import KIS_PAPER_RATE_LIMIT, KIS_RATE_LIMIT, KIS_TOKEN_RATE_LIMIT

KST = timezone(timedelta(hours=9), "KST")

_THROTTLED = frozenset({"EGW00201", "EGW00215"})
_STALE_TOKEN = frozenset({"EGW00121", "EGW00123"})
_UNKNOWN_OUTCOME = frozenset({"EGW00301", "EGW00302"})
_PASSING = frozenset({"EGW00202", "EGW00203", "EGW00300", "EGW00316", "OPSQ0003", "OPSQ1002", ""})
_TOKEN_TOO_SOON = "EGW00133"  # noqa: S105 - a code, not a secret
#: After a refusal, users of one key pause about this long; the quota's window is a second.
_THROTTLE_PAUSE_S = 1.0
#: A token is renewed this long before its end, so that none dies between our check and the server's.
_TOKEN_MARGIN_S = 60.0
_TOKEN_WAIT_S = 65.0
_TOKEN_WATCH_EVERY_S = 0.5
_CHART_ROWS_MAX = 100


class _Envelope(msgspec.Struct):
    """The part of every answer that says what it means; the token's endpoint uses other names."""

    rt_cd: str | None = None
    msg_cd: str = ""
    msg1: str = ""
    access_token: str | None = None
    error_code: str | None = None
    error_description: str = ""


def classify(request: Request, response: Response) -> Verdict:
    """What an answer of KIS means. The body decides; the status only where the body is not KIS's."""
    del request
    try:
        body = msgspec.json.decode(response.content, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _by_status(response)
    if body.error_code is not None:
        return Rejected(body.error_code, body.error_description)
    if body.access_token is not None or body.rt_cd == "0":
        return Ok()
    if body.rt_cd is None:
        return _by_status(response)
    code, message = body.msg_cd.strip(), body.msg1.strip()
    if code in _THROTTLED:
        return Throttled(_THROTTLE_PAUSE_S, code=code, message=message)
    if code in _STALE_TOKEN:
        return Reauth(code, message)
    if code in _UNKNOWN_OUTCOME:
        return Ambiguous(code, message)
    if code in _PASSING:
        return Transient(code, message)
    return Rejected(code, message)


def _by_status(response: Response) -> Verdict:
    if response.status == 429:
        return Throttled(_THROTTLE_PAUSE_S)
    if response.status >= 500 or response.ok:
        return Transient("", "not an answer of KIS")
    return Rejected(str(response.status), "not an answer of KIS")


KIS_PROFILE = Profile(
    name="kis",
    classify=classify,
    secret_names=frozenset(
        {"authorization", "appkey", "appsecret", "secretkey", "access_token", "approval_key", "CANO"}
    ),
    default_headers={"custtype": "P", "Content-Type": "application/json; charset=utf-8"},
)


class Token(msgspec.Struct, frozen=True):
    """An access token and its end. Its `repr` does not show it."""

    value: str
    expires_at: datetime

    def __repr__(self) -> str:
        return f"Token(expires_at={self.expires_at.isoformat()})"


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


class DailyBar(msgspec.Struct, frozen=True):
    """One day of one stock, in won and shares."""

    date: date
    open: int
    high: int
    low: int
    close: int
    volume: int
    amount: int


class _Issued(msgspec.Struct):
    access_token: str
    access_token_token_expired: str


class _PriceOutput(msgspec.Struct):
    stck_prpr: int
    prdy_vrss: int
    stck_oprc: int
    stck_hgpr: int
    stck_lwpr: int
    acml_vol: int
    acml_tr_pbmn: int
    temp_stop_yn: str = "N"


class _PriceAnswer(msgspec.Struct):
    output: dict[str, str]


class _ChartAnswer(msgspec.Struct):
    output2: list[dict[str, str]]


class _ChartRow(msgspec.Struct):
    stck_bsop_date: str
    stck_oprc: int
    stck_hgpr: int
    stck_lwpr: int
    stck_clpr: int
    acml_vol: int
    acml_tr_pbmn: int


class KisClient:
    """
    The few calls that collectors need, each one paid for at the shared limit of the app key.

    Real and paper trading differ in host, limit and token. Errors are those of `aegis.http`.
    """

    def __init__(
        self, http: HttpClient, limiter: RateLimiter, cache: Cache, config: KisConfig, limit: RateLimit | None = None
    ) -> None:
        if config.app_key is None or config.app_secret is None:
            missing = "KIS_APP_KEY" if config.app_key is None else "KIS_APP_SECRET"
            raise MissingSettingError("KisClient", missing)
        self._key, self._secret = config.app_key.get_secret_value(), config.app_secret.get_secret_value()
        self._url, self._cache = config.base_url, cache
        self.limit = limit or (KIS_PAPER_RATE_LIMIT if config.is_virtual else KIS_RATE_LIMIT)
        profiled = http.with_profile(KIS_PROFILE)
        self._http = profiled.with_rate_limiter(limiter, self.limit, key=self._key).with_reauth(self._renew)
        self._issuer = profiled.with_rate_limiter(limiter, KIS_TOKEN_RATE_LIMIT, key=self._key).without_retry()
        hashed = hashlib.blake2b(self._key.encode(), digest_size=12).hexdigest()
        self._token_key = f"kis-token:{'paper' if config.is_virtual else 'real'}:{hashed}"
        self._token: Token | None = None

    async def price(self, code: str) -> StockPrice:
        """The stock now (주식현재가 시세)."""
        answer = await self._get("inquire-price", "FHKST01010100", {"FID_INPUT_ISCD": code})
        out = msgspec.convert(answer.json(_PriceAnswer).output, _PriceOutput, strict=False)
        return StockPrice(
            code,
            out.stck_prpr,
            out.prdy_vrss,
            out.stck_oprc,
            out.stck_hgpr,
            out.stck_lwpr,
            out.acml_vol,
            out.acml_tr_pbmn,
            halted=out.temp_stop_yn == "Y",
        )

    async def daily_chart(self, code: str, first: date, last: date, *, adjusted: bool = True) -> list[DailyBar]:
        """Daily bars from `first` to `last`, both included, oldest first, in as many pages of 100 as it takes."""
        bars: dict[date, DailyBar] = {}
        while first <= last:
            page = await self._chart_page(code, first, last, adjusted=adjusted)
            bars |= {bar.date: bar for bar in page}
            if len(page) < _CHART_ROWS_MAX:
                break
            last = min(bar.date for bar in page) - timedelta(days=1)
        return [bars[day] for day in sorted(bars)]

    async def _chart_page(self, code: str, first: date, last: date, *, adjusted: bool) -> list[DailyBar]:
        period = {"FID_INPUT_DATE_1": f"{first:%Y%m%d}", "FID_INPUT_DATE_2": f"{last:%Y%m%d}"}
        shape = {"FID_PERIOD_DIV_CODE": "D", "FID_ORG_ADJ_PRC": "0" if adjusted else "1"}
        params = {"FID_INPUT_ISCD": code, **period, **shape}
        answer = await self._get("inquire-daily-itemchartprice", "FHKST03010100", params)
        rows = [row for row in answer.json(_ChartAnswer).output2 if row]  # a page may end in empty rows
        return [_bar(msgspec.convert(row, _ChartRow, strict=False)) for row in rows]

    async def token(self) -> str:
        """
        The access token that all processes share; issued if there is none.

        Raises:
            RejectedError: KIS refused to issue one; after EGW00133 only when a minute of waiting brought none either.
        """
        if self._token is None or self._token.expires_at <= datetime.now(UTC):
            self._token = await self._shared_token()
        return self._token.value

    async def _shared_token(self) -> Token:
        deadline = time.monotonic() + _TOKEN_WAIT_S
        while True:
            try:
                return await self._cache.get_or_set(
                    self._token_key, self._issue, Token, ttl=_token_ttl_s, error_ttl_s=_TOKEN_WATCH_EVERY_S
                )
            except RejectedError as exc:
                if exc.code != _TOKEN_TOO_SOON or time.monotonic() > deadline:
                    raise
            # Somebody outside of our cache was issued one less than a minute ago: watch the store, then try again.
            await asyncio.sleep(_TOKEN_WATCH_EVERY_S * 2)

    async def _issue(self) -> Token:
        body = {"grant_type": "client_credentials", "appkey": self._key, "appsecret": self._secret}
        answer = await self._issuer.post_json(f"{self._url}/oauth2/tokenP", body, timeout=_TOKEN_WAIT_S)
        issued = answer.json(_Issued)
        expires_at = datetime.strptime(issued.access_token_token_expired, "%Y-%m-%d %H:%M:%S").replace(tzinfo=KST)
        return Token(issued.access_token, expires_at.astimezone(UTC) - timedelta(seconds=_TOKEN_MARGIN_S))

    async def _renew(self, request: Request, response: Response) -> Mapping[str, str]:
        """The token of `request` was refused: drop it, if it is still the one we know, and get the next."""
        del response
        known = self._token
        if known is not None and request.headers.get("authorization") == f"Bearer {known.value}":
            self._token = None
            await self._cache.delete_if(self._token_key, known, Token)
        return {"authorization": f"Bearer {await self.token()}"}

    async def _get(self, name: str, tr_id: str, params: Mapping[str, Any]) -> Response:
        headers = {
            "authorization": f"Bearer {await self.token()}",
            "appkey": self._key,
            "appsecret": self._secret,
            "tr_id": tr_id,
        }
        url = f"{self._url}/uapi/domestic-stock/v1/quotations/{name}"
        return await self._http.get(url, params={"FID_COND_MRKT_DIV_CODE": "J", **params}, headers=headers)


def _token_ttl_s(token: Token) -> float:
    return max(1.0, (token.expires_at - datetime.now(UTC)).total_seconds())


def _bar(row: _ChartRow) -> DailyBar:
    day = datetime.strptime(row.stck_bsop_date, "%Y%m%d").replace(tzinfo=KST).date()
    return DailyBar(day, row.stck_oprc, row.stck_hgpr, row.stck_lwpr, row.stck_clpr, row.acml_vol, row.acml_tr_pbmn)
