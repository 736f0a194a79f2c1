"""
DART (전자공시): what its answers mean, disclosures, companies, company codes.

The status stands in the body, HTTP says 200: 013 is an empty result and no error, 020 is the quota. The key travels in
the query string, so it is declared as a secret and masked everywhere. An address that asks too often is cut off for a
day and sees its connections reset, so three resets in a row open the breaker for long: knocking on prolongs the block.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import zipfile
from collections.abc import AsyncIterator, Mapping
from datetime import date, timedelta
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from aegis.config import DartConfig
from aegis.errors import BodyDecodeError, MissingSettingError
from aegis.http import (
    BreakerPolicy,
    Empty,
    HttpClient,
    Ok,
    Profile,
    Rejected,
    Request,
    Response,
    Throttled,
    Transient,
    Verdict,
)
from aegis.redis import TTL, Cache, RateLimit, RateLimiter
from aegis.upstream._shape import by_status, day, expected_shape
from aegis.upstream.presets import DART_RATE_LIMIT

_ZIP = b"PK\x03\x04"
_STATUS_IN_XML = re.compile(r"<status>\s*(\d{3})\s*</status>(?:\s*<message>([^<]*)</message>)?")
_XML_HEAD_BYTES = 2000
#: How long everybody pauses after status 020; the per-minute quota is the one that a pause can cure.
_HOLD_S = 60.0
_PASSING = frozenset({"800", "900"})  # maintenance, undefined error
_PAGE_ROWS = 100
#: The longest period that one question without a company may span: three months, and February has 28 days.
_PERIOD_MAX = timedelta(days=89)
#: The list of company codes had 96,000 rows in 2022, some 25 MB; ten times that is no list of companies.
_XML_BYTES_MAX = 256 * 1024 * 1024


class _Envelope(msgspec.Struct):
    status: str
    message: str = ""


def classify(request: Request, response: Response) -> Verdict:
    """What an answer of DART means: a ZIP is a result, everything else says so in its body."""
    del request
    if response.content.startswith(_ZIP):
        return Ok()
    body = _envelope(response)
    if body is None:
        return by_status(response, "DART")
    if body.status == "000":
        return Ok()
    if body.status == "013":
        return Empty()
    if body.status == "020":
        return Throttled(_HOLD_S, code=body.status, message=body.message)
    if body.status in _PASSING:
        return Transient(body.status, body.message)
    return Rejected(body.status, body.message)


def _envelope(response: Response) -> _Envelope | None:
    """The status, as JSON or, where a ZIP was asked for, as XML."""
    try:
        return response.json(_Envelope)
    except BodyDecodeError:
        head = response.content[:_XML_HEAD_BYTES].decode("utf-8", "backslashreplace")
    found = _STATUS_IN_XML.search(head)
    return _Envelope(found[1], found[2] or "") if found else None


DART_PROFILE = Profile(
    name="dart",
    classify=classify,
    secret_names=frozenset({"crtfc_key"}),
    #: The reference and users of 2020 met a server without forward secrecy; these suites reach both kinds.
    tls="legacy_rsa",
    breaker=BreakerPolicy(resets_max=3, reset_open_s=600.0),
)


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


class Company(msgspec.Struct, frozen=True):
    """One company (기업개황). Fields that DART leaves blank are ""."""

    corp_code: str
    corp_name: str
    corp_name_eng: str = ""
    stock_name: str = ""
    stock_code: str = ""
    ceo_nm: str = ""
    corp_cls: str = ""  #: Y KOSPI, K KOSDAQ, N KONEX, E others
    jurir_no: str = ""
    bizr_no: str = ""
    adres: str = ""
    hm_url: str = ""
    ir_url: str = ""
    phn_no: str = ""
    fax_no: str = ""
    induty_code: str = ""
    est_dt: str = ""
    acc_mt: str = ""


class CorpCode(msgspec.Struct, frozen=True):
    """DART's number of a company. `stock_code` is None for companies that are not listed."""

    corp_code: str
    corp_name: str
    stock_code: str | None
    modified: date


class _List(msgspec.Struct):
    total_page: int = 0
    rows: list[dict[str, Any]] = msgspec.field(name="list", default_factory=list)


class DartClient:
    """DART, each request paid for at the shared limit of the key. Errors are those of `aegis.http`."""

    def __init__(
        self,
        http: HttpClient,
        limiter: RateLimiter,
        cache: Cache,
        config: DartConfig,
        limit: RateLimit = DART_RATE_LIMIT,
    ) -> None:
        if config.api_key is None:
            raise MissingSettingError("DartClient", "DART_API_KEY")
        self._key, self._url, self._cache = config.api_key.get_secret_value(), config.base_url, cache
        self._http = http.with_profile(DART_PROFILE).with_rate_limiter(limiter, limit, key=self._key)
        hashed = hashlib.blake2b(self._key.encode(), digest_size=12).hexdigest()
        self._corp_codes_name = f"dart-corp-codes:{hashed}"  # per key: a wrong one shall not fail for a right one
        self._parsed: tuple[bytes, list[CorpCode]] | None = None

    async def disclosures(
        self, first: date, last: date, *, corp_code: str | None = None, page: int | None = None
    ) -> list[Disclosure]:
        """
        The disclosures received from `first` to `last`, both included, newest first; empty where there are none.

        All of them, in as many requests of 100 as it takes; with `page`, that page only. Without a company, DART
        allows three months at once: a longer period is asked for in parts, unless a page is named.
        """
        if page is not None:
            return (await self._page(first, last, corp_code, page))[0]
        return [item async for item in self._all(first, last, corp_code)]

    async def company(self, corp_code: str) -> Company | None:
        """One company; None where DART knows nobody by that number."""
        answer = await self._get("company.json", corp_code=corp_code)
        with expected_shape(answer):
            return None if answer.json(_Envelope).status == "013" else answer.json(Company)

    async def corp_codes(self) -> list[CorpCode]:
        """
        Every company's number. The ZIP (some megabytes) is loaded once a day for all processes and kept in the cache.

        Raises:
            BodyDecodeError: what came is no such ZIP.
        """
        packed = await self._cache.get_or_set(self._corp_codes_name, self._load_corp_codes, bytes, ttl=TTL.DAILY)
        digest = hashlib.blake2b(packed, digest_size=16).digest()
        if self._parsed is None or self._parsed[0] != digest:
            self._parsed = (digest, await asyncio.to_thread(_parse_corp_codes, packed))
        return list(self._parsed[1])

    async def _all(self, first: date, last: date, corp_code: str | None) -> AsyncIterator[Disclosure]:
        """
        Page by page, period by period.

        What is disclosed meanwhile shifts the pages by a row, so that a row may come twice: each is given once.
        """
        seen: set[str] = set()
        while first <= last:
            start = first if corp_code else max(first, last - _PERIOD_MAX)
            page = pages = 1
            while page <= pages:
                found, pages = await self._page(start, last, corp_code, page)
                for item in found:
                    if item.rcept_no not in seen:
                        seen.add(item.rcept_no)
                        yield item
                page += 1
            last = start - timedelta(days=1)

    async def _page(self, first: date, last: date, corp_code: str | None, page: int) -> tuple[list[Disclosure], int]:
        corp = {"corp_code": corp_code} if corp_code else {}
        period = {"bgn_de": f"{first:%Y%m%d}", "end_de": f"{last:%Y%m%d}"}
        answer = await self._get("list.json", **corp, **period, page_no=page, page_count=_PAGE_ROWS)
        with expected_shape(answer):
            listed = answer.json(_List)
            return [_disclosure(row) for row in listed.rows], listed.total_page

    async def _load_corp_codes(self) -> bytes:
        answer = await self._get("corpCode.xml")
        with expected_shape(answer):
            await asyncio.to_thread(_parse_corp_codes, answer.content)  # what cannot be read is not cached for a day
        return answer.content

    async def _get(self, name: str, **params: str | int) -> Response:
        return await self._http.get(f"{self._url}/api/{name}", params={"crtfc_key": self._key, **params})


def _disclosure(row: Mapping[str, Any]) -> Disclosure:
    stock_code = (row.get("stock_code") or "").strip() or None
    return msgspec.convert({**row, "rcept_dt": day(row["rcept_dt"]), "stock_code": stock_code}, Disclosure)


def _parse_corp_codes(packed: bytes) -> list[CorpCode]:
    """The one XML file of the ZIP. Raises ValueError where it is something else, or far larger than it should be."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            member = archive.infolist()[0]
            if member.file_size > _XML_BYTES_MAX:
                raise ValueError(f"{member.filename} would be {member.file_size} bytes")
            root = ET.fromstring(archive.read(member))  # noqa: S314 - bounded above; expat has no network entities
    except Exception as exc:  # noqa: BLE001 - beside its own error zipfile raises whatever zlib, lzma, bz2 and struct do
        raise ValueError(f"no ZIP of an XML: {exc}") from None
    return [_corp_code({field.tag: (field.text or "").strip() for field in row}) for row in root.iter("list")]


def _corp_code(row: Mapping[str, str]) -> CorpCode:
    return CorpCode(row["corp_code"], row["corp_name"], row["stock_code"] or None, day(row["modify_date"]))
