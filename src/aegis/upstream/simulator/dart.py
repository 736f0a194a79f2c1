"""
DART as the simulator speaks it: disclosures, companies, the list of company codes.

The status stands in the body; HTTP always says 200. An address that asks far too often is not refused but cut off, for
long.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from functools import cached_property
from typing import Any
from xml.sax.saxutils import escape

import msgspec
from aiohttp import web

from aegis.upstream._shape import day
from aegis.upstream.simulator.faults import reset
from aegis.upstream.simulator.state import State

_KEY_LENGTH = 40
_PAGE_MAX = 100
_MONTHS_MAX = timedelta(days=92)
_UNLISTED = 50
_TRADING_DAYS_A_WEEK = 5
_REPORTS = ("분기보고서 (2025.12)", "주요사항보고서(자기주식취득결정)", "임원ㆍ주요주주특정증권등소유상황보고서")
_MESSAGES = {
    "000": "정상",
    "010": "등록되지 않은 키입니다.",
    "013": "조회된 데이타가 없습니다.",
    "020": "사용한도를 초과하였습니다.",
    "100": "필드의 부적절한 값입니다.",
    "800": "시스템 점검으로 인한 서비스가 중지 중입니다.",
    "900": "정의되지 않은 오류가 발생하였습니다.",
}
_TOO_LONG = "corp_code가 없는 경우 검색기간은 3개월만 가능합니다."

Handler = Callable[[web.Request, bytes], web.Response]


class Dart:
    """What DART answers to."""

    name = "dart"

    def __init__(self, state: State) -> None:
        self._state = state
        self._blocked_until_ns: dict[str, int] = {}

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path, handler."""
        return [
            ("GET", "/api/list.json", self._registered(self.disclosures)),
            ("GET", "/api/company.json", self._registered(self.company)),
            ("GET", "/api/corpCode.xml", self._registered(self.corp_codes)),
        ]

    def admit(self, request: web.Request, at_ns: int) -> web.Response | None:
        """Count the arrival for address and key; cut off or refuse what is too much."""
        address, key = request.remote or "", request.query.get("crtfc_key", "")
        within_block = self._state.dart_address.arrive(address, at_ns)
        within_minute, within_day = self._state.dart.arrive(key, at_ns), self._state.dart_daily.arrive(key, at_ns)
        if not within_block:
            self._blocked_until_ns[address] = at_ns + round(self._state.rules.dart_block_s * 1e9)
        if at_ns < self._blocked_until_ns.get(address, 0):
            return reset(request)
        return None if within_minute and within_day else _refusal(request, "020")

    @staticmethod
    def refuse(code: str) -> web.Response:
        """The status in the body, HTTP 200; a blank failure is a status 500 without a body."""
        if not code:
            return web.Response(status=500)
        return _status("800" if code == "maintenance" else code)

    def disclosures(self, request: web.Request, body: bytes) -> web.Response:
        """`list.json`: disclosures of a period, newest first, in pages."""
        del body
        asked = request.query
        try:
            first, last = day(asked["bgn_de"]), day(asked["end_de"])
            page, count = int(asked.get("page_no", "1")), int(asked.get("page_count", "10"))
        except (KeyError, ValueError):
            return _status("100")
        if not (page > 0 and 0 < count <= _PAGE_MAX and first <= last):
            return _status("100")
        if "corp_code" not in asked and last - first > _MONTHS_MAX:
            return _status("100", _TOO_LONG)
        corp = asked.get("corp_code")
        found = [
            row
            for listed, rows in self._listed.items()
            if first <= listed <= last
            for row in rows
            if corp in {None, row["corp_code"]}
        ]
        if not found:
            return _status("013")
        pages = -(-len(found) // count)
        head = {"status": "000", "message": _MESSAGES["000"], "page_no": page, "page_count": count}
        rows = found[(page - 1) * count : page * count]
        return _body({**head, "total_count": len(found), "total_page": pages, "list": rows})

    def company(self, request: web.Request, body: bytes) -> web.Response:
        """`company.json`: one company."""
        del body
        code = self._codes.get(request.query.get("corp_code", ""))
        if code is None:
            return _status("013")
        name = self._state.market.names[code]
        texts = {
            "corp_name": name,
            "stock_name": name,
            "ceo_nm": "홍길동",
            "adres": "서울특별시 중구",
            "est_dt": "19690113",
        }
        blanks = dict.fromkeys(("hm_url", "ir_url", "phn_no", "fax_no", "jurir_no", "bizr_no"), "")
        ids = {"corp_code": corp_code(code), "stock_code": code, "corp_cls": "Y", "induty_code": "264", "acc_mt": "12"}
        return _body({"status": "000", "message": _MESSAGES["000"], "corp_name_eng": "", **texts, **blanks, **ids})

    def corp_codes(self, request: web.Request, body: bytes) -> web.Response:
        """`corpCode.xml`: a ZIP with one XML in it, listed companies and others."""
        del request, body
        return web.Response(body=self._zip, content_type="application/x-msdownload")

    def _registered(self, handler: Handler) -> Handler:
        def handle(request: web.Request, body: bytes) -> web.Response:
            if len(request.query.get("crtfc_key", "")) != _KEY_LENGTH:
                self._state.violation(f"{request.path} without a key of {_KEY_LENGTH} characters")
                return _refusal(request, "010")
            return handler(request, body)

        return handle

    @cached_property
    def _codes(self) -> dict[str, str]:
        return {corp_code(code): code for code in self._state.market.codes}

    @cached_property
    def _listed(self) -> dict[date, list[dict[str, str]]]:
        """One disclosure per stock and trading week, newest first: the same ones every time they are asked for."""
        days = sorted({bar.day for bars in self._state.market.bars.values() for bar in bars}, reverse=True)
        codes, names = self._state.market.codes, self._state.market.names
        return {
            each: [
                _disclosure(code, names[code], each, number)
                for number, code in enumerate(codes)
                if number % _TRADING_DAYS_A_WEEK == back % _TRADING_DAYS_A_WEEK
            ]
            for back, each in enumerate(days)
        }

    @cached_property
    def _zip(self) -> bytes:
        names = self._state.market.names
        listed = [(corp_code(code), names[code], code) for code in self._state.market.codes]
        others = [(f"{number:08}", f"비상장{number}", " ") for number in range(1, _UNLISTED + 1)]
        rows = "".join(
            f"<list><corp_code>{corp}</corp_code><corp_name>{escape(name)}</corp_name><corp_eng_name></corp_eng_name>"
            f"<stock_code>{code}</stock_code><modify_date>20260102</modify_date></list>\n"
            for corp, name, code in listed + others
        )
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("CORPCODE.xml", f'<?xml version="1.0" encoding="UTF-8"?>\n<result>\n{rows}</result>')
        return archive.getvalue()


def corp_code(code: str) -> str:
    """The simulator's company code of a stock code."""
    return f"{10**7 + int.from_bytes(hashlib.blake2b(code.encode(), digest_size=4).digest(), 'big') % 10**7:08}"


def _disclosure(code: str, name: str, listed: date, number: int) -> dict[str, str]:
    return {
        "corp_code": corp_code(code),
        "corp_name": name,
        "stock_code": code,
        "corp_cls": "Y",
        "report_nm": _REPORTS[number % len(_REPORTS)],
        "rcept_no": f"{listed:%Y%m%d}{number:06}",
        "flr_nm": name,
        "rcept_dt": f"{listed:%Y%m%d}",
        "rm": "",
    }


def _refusal(request: web.Request, status: str) -> web.Response:
    """As XML where XML (or a ZIP of it) was asked for."""
    if not request.path.endswith(".xml"):
        return _status(status)
    result = f"<result><status>{status}</status><message>{_MESSAGES[status]}</message></result>"
    text = f'<?xml version="1.0" encoding="UTF-8"?>{result}'
    return web.Response(text=text, content_type="application/xml", charset="utf-8")


def _status(status: str, message: str = "") -> web.Response:
    return _body({"status": status, "message": message or _MESSAGES.get(status, "")})


def _body(body: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json", charset="utf-8")
