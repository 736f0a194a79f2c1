"""
URLs as they go out: in ASCII, with parameters, and to where a redirect may send them.

A redirect to another origin takes no secret along: neither headers nor query keys of secret names, nor user and
password, nor a body. Rejected: what seven clients do, which is to drop `Authorization` and to forward `appkey`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode, urljoin

from multidict import CIMultiDict
from yarl import URL

from aegis.http.profile import Request
from aegis.http.redact import NO_PORT, Redactor

REDIRECTS = frozenset({301, 302, 303, 307, 308})

_HTTP = re.compile(r"https?://[!-~]+", re.IGNORECASE).fullmatch
_CONTROL = re.compile(r"[\0-\x1f\x7f]")
_PLAIN = re.compile(r"[A-Za-z0-9_.~=&-]*").fullmatch  # means itself in a query


@lru_cache(maxsize=1024)
def ascii_url(url: str) -> str | None:
    """The URL in ASCII, other text percent-encoded; None if it is not of http, or its port no number."""
    if NO_PORT.match(url) is not None:
        return None
    if _HTTP(url) is not None:
        return url
    plain = ""
    if _CONTROL.search(url) is None:
        with contextlib.suppress(ValueError):
            plain = str(URL(url))
    return plain if _HTTP(plain) is not None else None


def without_controls(text: str) -> str:
    """Text that cannot break a log line."""
    return _CONTROL.sub("?", text)


def query_of(params: Mapping[str, Any]) -> str:
    """The parameters as a form is encoded."""
    plain = "&".join([f"{name}={value}" for name, value in params.items() if type(value) is str])
    count = len(params)
    if _PLAIN(plain) and plain.count("=") == count and plain.count("&") == count - 1:
        return plain
    return urlencode(params, doseq=True)


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs are of one scheme, host and port."""
    return URL(one, encoded=True).origin() == URL(other, encoded=True).origin()


def redirected(request: Request, status: int, location: str, redactor: Redactor) -> Request | str:
    """The request that a redirect asks for, or why it is not made."""
    try:
        target = URL(ascii_url(urljoin(request.url, location)) or "", encoded=True).with_fragment(None)
        here, there = URL(request.url, encoded=True).origin(), target.origin()
    except ValueError:
        return "a redirect to something that is no URL"
    if here.scheme == "https" and there.scheme != "https":
        return "a redirect from https to http"
    headers, method, content = CIMultiDict(request.headers), request.method, request.content
    if (status == 303 and method not in {"GET", "HEAD"}) or (status in {301, 302} and method == "POST"):
        method, content = "GET", None
        for name in ("Content-Type", "Content-Encoding", "Content-Language", "Content-Length"):
            headers.popall(name, None)
    if here != there:
        if content:
            return f"a redirect of a {method} with its body to another origin"
        for name in {name for name in headers if redactor.secret(name) or name.lower() == "host"}:
            headers.popall(name, None)
        pairs = re.split("[&;]", target.raw_query_string)
        pairs = [pair for pair in pairs if not redactor.secret(pair.partition("=")[0])]
        target = URL(f"{there}{target.raw_path}{'?' * bool(pairs)}{'&'.join(pairs)}", encoded=True)
    return Request(method, str(target), headers, content, request.idempotent)
