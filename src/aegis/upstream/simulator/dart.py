"""DART as the simulator speaks it: the disclosure list. The status stands in the body; HTTP always says 200."""

from __future__ import annotations

import hashlib
from datetime import date, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web

from aegis.upstream.simulator.kis import KST
from aegis.upstream.simulator.state import ARRIVED, State

_KEY_LENGTH = 40
_PAGE_MAX = 100
_MONTHS_MAX = timedelta(days=92)
_REPORTS = ("분기보고서 (2025.12)", "주요사항보고서(자기주식취득결정)", "임원ㆍ주요주주특정증권등소유상황보고서")


def routes(state: State) -> list[web.RouteDef]:
    """What DART answers to."""
    service = _Dart(state)
    return [web.get("/api/list.json", service.disclosures)]


class _Dart:
    def __init__(self, state: State) -> None:
        self._state = state

    async def disclosures(self, request: web.Request) -> web.Response:
        """`list.json`: disclosures of a period, newest first, in pages."""
        key, at_ns = request.query.get("crtfc_key", ""), request[ARRIVED]
        within_minute = self._state.dart.arrive(key, at_ns)
        if not within_minute or not self._state.dart_daily.arrive(key, at_ns):
            return _status("020", "사용한도를 초과하였습니다.")
        if len(key) != _KEY_LENGTH:
            return _status("010", "등록되지 않은 키입니다.")
        try:
            first, last = _day(request.query["bgn_de"]), _day(request.query["end_de"])
            page, count = int(request.query.get("page_no", "1")), int(request.query.get("page_count", "10"))
        except (KeyError, ValueError):
            return _status("100", "필드의 부적절한 값입니다.")
        if not (page > 0 and 0 < count <= _PAGE_MAX and first <= last):
            return _status("100", "필드의 부적절한 값입니다.")
        if "corp_code" not in request.query and last - first > _MONTHS_MAX:
            return _status("100", "corp_code가 없는 경우 검색기간은 3개월만 가능합니다.")
        found = self._all(first, last)
        if not found:
            return _status("013", "조회된 데이타가 없습니다.")
        pages = -(-len(found) // count)
        head = {"status": "000", "message": "정상", "page_no": page, "page_count": count}
        rows = found[(page - 1) * count : page * count]
        return _body({**head, "total_count": len(found), "total_page": pages, "list": rows})

    def _all(self, first: date, last: date) -> list[dict[str, str]]:
        """One disclosure per stock and trading week: the same ones every time they are asked for."""
        days = sorted({bar.day for bars in self._state.market.bars.values() for bar in bars}, reverse=True)
        return [
            _disclosure(code, self._state.market.names[code], day, number)
            for day in days
            if first <= day <= last
            for number, code in enumerate(self._state.market.codes)
            if (number + day.toordinal()) % 7 == 0
        ]


def _disclosure(code: str, name: str, day: date, number: int) -> dict[str, str]:
    corp = int.from_bytes(hashlib.blake2b(code.encode(), digest_size=4).digest(), "big") % 10**8
    return {
        "corp_code": f"{corp:08}",
        "corp_name": name,
        "stock_code": code,
        "corp_cls": "Y",
        "report_nm": _REPORTS[number % len(_REPORTS)],
        "rcept_no": f"{day:%Y%m%d}{number:06}",
        "flr_nm": name,
        "rcept_dt": f"{day:%Y%m%d}",
        "rm": "",
    }


def _day(text: str) -> date:
    return datetime.strptime(text, "%Y%m%d").replace(tzinfo=KST).date()


def _status(status: str, message: str) -> web.Response:
    return _body({"status": status, "message": message})


def _body(body: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json", charset="utf-8")
