"""
DART (전자공시): what its answers mean, and the list of disclosures.

The status stands in the body, HTTP says 200: 013 is an empty result and no error, 020 is the quota. The key travels in
the query string, so it is declared as a secret and masked everywhere.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import msgspec

from aegis.config import DartConfig
from aegis.errors import MissingSettingError
from aegis.http import Empty, HttpClient, Ok, Profile, Rejected, Request, Response, Throttled, Transient, Verdict
from aegis.redis import Cache, RateLimit, RateLimiter
from aegis.upstream._shape import KST
from aegis.upstream.presets import DART_RATE_LIMIT

_ZIP = b"PK\x03\x04"
#: How long everybody pauses after status 020; the per-minute quota is the one that a pause can cure.
_HOLD_S = 60.0
_PASSING = frozenset({"800", "900"})  # maintenance, undefined error
_PAGE_ROWS = 100


class _Envelope(msgspec.Struct):
    status: str
    message: str = ""


def classify(request: Request, response: Response) -> Verdict:
    """What an answer of DART means: a ZIP is a result, everything else says so in its body."""
    del request
    if response.content.startswith(_ZIP):
        return Ok()
    try:
        body = msgspec.json.decode(response.content, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Transient(str(response.status), "not an answer of DART")
    if body.status == "000":
        return Ok()
    if body.status == "013":
        return Empty()
    if body.status == "020":
        return Throttled(_HOLD_S, code=body.status, message=body.message)
    if body.status in _PASSING:
        return Transient(body.status, body.message)
    return Rejected(body.status, body.message)


DART_PROFILE = Profile(name="dart", classify=classify, secret_names=frozenset({"crtfc_key"}))


class Disclosure(msgspec.Struct, frozen=True):
    """One disclosure, as listed. `stock_code` is None for companies that are not listed."""

    rcept_no: str
    corp_code: str
    corp_name: str
    stock_code: str | None
    report_nm: str
    flr_nm: str
    rcept_dt: date
    rm: str


class _List(msgspec.Struct):
    total_page: int = 0
    rows: list[dict[str, Any]] = msgspec.field(name="list", default_factory=list)


class DartClient:
    """The disclosure list, paid for at the shared limit of the key."""

    def __init__(
        self,
        http: HttpClient,
        limiter: RateLimiter,
        cache: Cache,
        config: DartConfig,
        limit: RateLimit = DART_RATE_LIMIT,
    ) -> None:
        del cache
        if config.api_key is None:
            raise MissingSettingError("DartClient", "DART_API_KEY")
        self._key, self._url = config.api_key.get_secret_value(), config.base_url
        self._http = http.with_profile(DART_PROFILE).with_rate_limiter(limiter, limit, key=self._key)

    async def disclosures(self, first: date, last: date, *, page: int = 1) -> list[Disclosure]:
        """One page of up to 100 disclosures received from `first` to `last`; empty where there are none."""
        period = {"bgn_de": f"{first:%Y%m%d}", "end_de": f"{last:%Y%m%d}"}
        params = {"crtfc_key": self._key, **period, "page_no": page, "page_count": _PAGE_ROWS}
        answer = await self._http.get(f"{self._url}/api/list.json", params=params)
        return [_disclosure(row) for row in answer.json(_List).rows]


def _disclosure(row: dict[str, Any]) -> Disclosure:
    day = datetime.strptime(row["rcept_dt"], "%Y%m%d").replace(tzinfo=KST).date()
    fields = {**row, "rcept_dt": day, "stock_code": (row.get("stock_code") or "").strip() or None}
    return msgspec.convert(fields, Disclosure)
