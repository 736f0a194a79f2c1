"""
Secrets leave this process only on the wire: one place that masks them in everything else.

Masks by name (query keys, headers, form and JSON fields, cookies), after percent-decoding, and by value wherever a
value of a secret name was seen in the request. Rejected: silencing the libraries' loggers, which hides faults as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus, unquote_plus

import msgspec

MASK = "***"
#: Masked for every client, declared or not.
WELL_KNOWN = frozenset(
    {
        "authorization", "proxy-authorization", "cookie", "set-cookie", "appkey", "appsecret", "secretkey",
        "crtfc_key", "approval_key", "access_token", "refresh_token", "token", "api_key", "apikey", "x-api-key",
        "password", "passwd", "secret", "client_secret", "x-naver-client-secret", "cano", "personalseckey",
        "app_key", "app_secret", "secret_key", "kis_app_key", "kis_app_secret", "dart_api_key",  # as people write them
        "naver_client_secret", "redis_password", "db_password", "redis_sentinel_password", "sentinel_password",
    }
)  # fmt: skip
_REMEMBERED_MAX = 1000
_SHORTEST_VALUE = 4  # shorter values would mask ordinary text
_BODY_BYTES_MAX = 1 << 16  # of a larger body no values are collected; its fields are masked by name all the same

_PASSWORD = re.compile(r"[a-zA-Z]+://[^/?#@]*?:([^/?#]+)@")
_LOGIN = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/?#@:]*:)[^\s/?#@]+@")  #: in a text; of any scheme
_ESCAPE = re.compile(r"%[0-9A-F]{2}")
_HEADER = re.compile(
    r"""(\b(?:(?:proxy-)?authorization|(?:set-)?cookie)\\*["']?\s*[=:]\s*\\*["']?)[^\s"'\\][^\r\n"'\\]*""",
    re.IGNORECASE,
)  #: headers of several words: all of them, to the end of the line
_ENCODED_PAIR = re.compile(r"""([\w.~+-]*%[0-9A-Fa-f]{2}[\w.~+%-]*)=([^\s&"'<>]+)""")


def forms_of(value: str) -> set[str]:
    """What a value may look like in text: as it is, percent-encoded in three ways and two cases, escaped in JSON."""
    encoded = {quote(value, safe=""), quote(value), quote_plus(value)}
    lower = {_ESCAPE.sub(lambda escape: escape[0].lower(), form) for form in encoded}
    forms = {value, value.replace("/", "\\/"), msgspec.json.encode(value)[1:-1].decode(), *encoded, *lower}
    return {form for form in forms if len(form) >= _SHORTEST_VALUE}


class Redactor:
    """Masks the values of secret names, and secrets known by value. Immutable; `with_names` gives a wider one."""

    __slots__ = ("_field", "_forms", "_known", "_urls", "_values", "names")

    def __init__(self, names: Iterable[str] = (), values: Iterable[str] = ()) -> None:
        self.names = frozenset(name.lower() for name in names) | WELL_KNOWN
        self._values = frozenset(value for value in values if len(value) >= _SHORTEST_VALUE)
        self._forms = _longest_first(self._values)
        self._known = dict.fromkeys(self.names, True)  # spellings met so far, so that each is decoded once
        self._urls: dict[str, str] = {}  # the same questions are asked again and again
        any_name = "|".join(sorted((re.escape(name) for name in self.names), key=len, reverse=True))
        quoted = r"""(\\+["']).*?\2|(")(?:[^"\\]|\\.)*"|(')[^']*'"""
        self._field = re.compile(
            rf"""((?:\\*["'])?(?:\b|(?<=%[0-9a-f]{{2}}))(?:{any_name})(?:\\*["'])?\s*(?:[=:]|%3[ad])\s*)"""
            rf"""(?:{quoted}|(?:(?:bearer|basic)\s+)?[^\s&;,"'}})]+)""",
            re.IGNORECASE,
        )

    def __repr__(self) -> str:
        return f"Redactor({len(self.names)} names, {len(self._values)} values)"

    def with_names(self, names: Iterable[str], values: Iterable[str] = ()) -> Redactor:
        """A redactor that masks `names`, and `values` wherever they stand, too."""
        more, seen = frozenset(name.lower() for name in names) - self.names, frozenset(values) - self._values
        return Redactor(self.names | more, self._values | seen) if more or seen else self

    def secret(self, name: str) -> bool:
        """Whether the value of `name`, percent-encoded or not, is a secret."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= _REMEMBERED_MAX:
                self._known.clear()
            known = self._known[name] = unquote_plus(name).strip().lower() in self.names
        return known

    def url(self, url: str) -> str:
        """The URL without the values of secret keys, without user and password, without fragment."""
        masked = self._urls.get(url)
        if masked is None:
            if len(self._urls) >= _REMEMBERED_MAX:
                self._urls.clear()
            masked = self._urls[url] = self._masked_url(url)
        return masked

    def _masked_url(self, url: str) -> str:
        whole, hash_, _ = url.partition("#")
        address, question, query = whole.partition("?")
        if "@" in address:
            scheme, slashes, rest = address.partition("//")
            netloc, slash, path = rest.partition("/")
            address = f"{scheme}{slashes}{MASK}@{netloc.rpartition('@')[2]}{slash}{path}" if "@" in netloc else address
        masked = f"{address}{question}{query and self.pairs(query)}{hash_ and f'#{MASK}'}"
        return self._by_value(masked) if self._forms else masked

    def pairs(self, query: str) -> str:
        """A query string or form with the secret values masked, also those of a query inside a value."""
        masked = []
        for pair in query.split("&"):
            name, equals, value = pair.partition("=")
            if equals and self.secret(name):
                masked.append(f"{name}={MASK}")
            else:
                masked.append(self._field.sub(_keeping_quotes, pair) if "%3" in value or "=" in value else pair)
        return "&".join(masked)

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers with the secret values masked."""
        return {name: MASK if self.secret(name) else value for name, value in headers.items()}

    def text(self, text: str, values: Iterable[str] = ()) -> str:
        """Free text with `values` in every form, `name=value` of secret names, and passwords of URLs masked."""
        for form in _longest_first(values):
            text = text.replace(form, MASK)
        if "://" in text and "@" in text:
            text = _LOGIN.sub(rf"\g<1>{MASK}@", text)
        text = self._field.sub(_keeping_quotes, _HEADER.sub(rf"\g<1>{MASK}", self._by_value(text)))
        return _ENCODED_PAIR.sub(self._encoded_pair, text) if "%" in text else text

    def values(self, url: str, headers: Mapping[str, str], body: object = None) -> frozenset[str]:
        """The secret values that a request carries, so that an echo of them can be masked too."""
        found = {value for name, value in headers.items() if self.secret(name)}
        found |= {value.partition(" ")[2] for value in found if " " in value}
        password = _PASSWORD.match(url)
        found |= {password[1], unquote_plus(password[1])} if password else set()
        for pair in url.partition("#")[0].partition("?")[2].split("&"):
            name, _, value = pair.partition("=")
            if self.secret(name):
                found |= {value, unquote_plus(value)}
        if isinstance(body, bytes) and len(body) <= _BODY_BYTES_MAX:
            text = body.decode("utf-8", "ignore")
            for match in self._field.finditer(text):
                value = match[0][len(match[1]) :].strip("\\\"'")
                found |= {value, unquote_plus(value), _unescaped(value)}
            for pair in text.split("&") if "%" in text else ():
                name, _, value = pair.partition("=")
                found |= {unquote_plus(value)} if self.secret(name) else set()
        return self._values | {value for value in found if len(value) >= _SHORTEST_VALUE}

    def _by_value(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, MASK)
        return text

    def _encoded_pair(self, match: re.Match[str]) -> str:
        return f"{match[1]}={MASK}" if self.secret(match[1]) else match[0]


def _longest_first(values: Iterable[str]) -> list[str]:
    return sorted({form for value in values for form in forms_of(value)}, key=len, reverse=True)


def _keeping_quotes(match: re.Match[str]) -> str:
    quote_ = match[2] or match[3] or match[4] or ""
    return f"{match[1]}{quote_}{MASK}{quote_}"


def _unescaped(value: str) -> str:
    """A value as it stands in JSON, without the escapes."""
    try:
        return msgspec.json.decode(f'"{value}"', type=str)
    except msgspec.DecodeError:
        return value
