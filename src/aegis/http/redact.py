"""
Secrets leave this process only on the wire: one place that masks them in everything else.

Masks by name (query keys, headers, form and JSON fields with all that is in them, XML elements, cookies), after
percent-decoding, and by value wherever a value of a secret name was seen in the request. Rejected: silencing the
libraries' loggers, which hides faults as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
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

_USERINFO = re.compile(r"[a-zA-Z]+://([^/?#]+)@")
#: A login whose host was forgotten stands where a port should be.
NO_PORT = re.compile(r"^([a-zA-Z]+://[^/?#@\[\]]*:)(?!\d*(?:[/?#]|$))[^/?#@]+(?=[/?#]|$)")
_SEPARATOR = re.compile("[&;]")
_QUOTED = r"""(\\+["']).*?\{}|(")(?:[^"\\]|\\.)*"|(')[^']*'"""
_BRACKET = re.compile(rf"{_QUOTED.format(1)}|[\[\]{{}}]")  #: and strings, so that those in them are skipped
_DEPTHS = {"[": 1, "{": 1, "]": -1, "}": -1}
_WORD = re.compile(r"""[^\s"'\\\[\]{},:]+""")
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
    escaped = {value.replace("/", "\\/"), msgspec.json.encode(value)[1:-1].decode(), json.dumps(value)[1:-1]}
    forms = {value, *escaped, *encoded, *lower}
    return {form for form in forms if len(form) >= _SHORTEST_VALUE}


class Redactor:
    """Masks the values of secret names, and secrets known by value. Immutable; `with_names` gives a wider one."""

    __slots__ = ("_element", "_field", "_forms", "_known", "_urls", "_values", "names")

    def __init__(self, names: Iterable[str] = (), values: Iterable[str] = ()) -> None:
        self.names = frozenset(name.lower() for name in names) | WELL_KNOWN
        self._values = frozenset(value for value in values if len(value) >= _SHORTEST_VALUE)
        self._forms = _longest_first(self._values)
        self._known = dict.fromkeys(self.names, True)  # spellings met so far, so that each is decoded once
        self._urls: dict[str, str] = {}  # the same questions are asked again and again
        any_name = "|".join(sorted((re.escape(name) for name in self.names), key=len, reverse=True))
        self._field = re.compile(
            rf"""((?:\\*["'])?(?:\b|(?<=%[0-9a-f]{{2}}))(?:{any_name})(?:\[\w*\])*(?:\\*["']|%2[27])?"""
            rf"""\s*(?:[=:]|%3[ad])\s*)(?:{_QUOTED.format(2)}|(?:(?:bearer|basic)\s+)?[^\s&;,"'}})]+)""",
            re.IGNORECASE,
        )
        self._element = re.compile(
            rf"(<(?:[\w-]+:)?(?:{any_name})(?:\s[^<>]*)?>)(?:<!\[CDATA\[(.*?)\]\]>|([^<]+))", re.IGNORECASE | re.DOTALL
        )

    def __repr__(self) -> str:
        return f"Redactor({len(self.names)} names, {len(self._values)} values)"

    def with_names(self, names: Iterable[str], values: Iterable[str] = ()) -> Redactor:
        """A redactor that masks `names`, and `values` wherever they stand, too."""
        more, seen = frozenset(name.lower() for name in names) - self.names, frozenset(values) - self._values
        return Redactor(self.names | more, self._values | seen) if more or seen else self

    def secret(self, name: str) -> bool:
        """Whether the value of `name`, percent-encoded or not, `[]` at its end or not, is a secret."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= _REMEMBERED_MAX:
                self._known.clear()
            parts = unquote_plus(name).strip().lower().split("[")
            known = self._known[name] = any(part.rstrip("]") in self.names for part in parts)
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
        address = NO_PORT.sub(rf"\g<1>{MASK}", address, 1)
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
                masked.append(self._by_name(pair) if "%3" in value or "=" in value else pair)
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
        text = self._by_name(_HEADER.sub(rf"\g<1>{MASK}", self._by_value(text)))
        text = self._element.sub(rf"\g<1>{MASK}", text) if "</" in text or "<\\/" in text else text
        return _ENCODED_PAIR.sub(self._encoded_pair, text) if "%" in text else text

    def values(self, url: str, headers: Mapping[str, str], body: object = None) -> frozenset[str]:
        """The secret values that a request carries, so that an echo of them can be masked too."""
        found = {value for name, value in headers.items() if self.secret(name)}
        found |= {value.partition(" ")[2] for value in found if " " in value}
        userinfo = _USERINFO.match(url)
        if userinfo is not None:
            user, _, password = userinfo[1].partition(":")
            found |= {password or user, unquote_plus(password or user)}
        found.update(self._in_pairs(url.partition("#")[0].partition("?")[2]))
        if isinstance(body, bytes) and len(body) <= _BODY_BYTES_MAX:
            text = body.decode("utf-8", "ignore")
            found.update(self._in_text(text))
            found.update(self._in_pairs(text) if "%" in text else ())
        return self._values | {value for value in found if len(value) >= _SHORTEST_VALUE}

    def _in_pairs(self, query: str) -> Iterator[str]:
        """The secret values of a query or form, and of what stands encoded in it."""
        for pair in _SEPARATOR.split(query):
            name, _, value = pair.partition("=")
            if self.secret(name):
                yield from (value, unquote_plus(value))
            elif "%" in value or "=" in value:
                yield from self._in_text(unquote_plus(value))

    def _in_text(self, text: str) -> Iterator[str]:
        """The secret values of JSON, XML, or a form."""
        for match, end in self._fields(text):
            value = text[match.end(1) : end]
            if value[0] in "[{":
                yield from _leaves_of(value)
            else:
                value = value.strip("\\\"'")
                yield from (value, unquote_plus(value), _unescaped(value))
        for element in self._element.finditer(text):
            yield element[2] or element[3]

    def _fields(self, text: str) -> Iterator[tuple[re.Match[str], int]]:
        """Every field of a secret name, and where its value ends: of a list or an object, all of it."""
        end = 0
        for match in self._field.finditer(text):
            if match.start() >= end:
                start = match.end(1)
                end = _end_of_structure(text, start) if text[start] in "[{" else match.end()
                yield match, end

    def _by_name(self, text: str) -> str:
        parts, at = [], 0
        for match, end in self._fields(text):
            quote_ = match[2] or match[3] or match[4] or ""
            parts += [text[at : match.start()], match[1], quote_, MASK, quote_]
            at = end
        return "".join([*parts, text[at:]])

    def _by_value(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, MASK)
        return text

    def _encoded_pair(self, match: re.Match[str]) -> str:
        return f"{match[1]}={MASK}" if self.secret(match[1]) else match[0]


def _longest_first(values: Iterable[str]) -> list[str]:
    return sorted({form for value in values for form in forms_of(value)}, key=len, reverse=True)


def _end_of_structure(text: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`; the end of a text that is cut off before it."""
    depth = 0
    for token in _BRACKET.finditer(text, start):
        depth += _DEPTHS.get(token[0], 0)
        if depth == 0:
            return token.end()
    return len(text)


def _leaves_of(structure: str) -> Iterator[str]:
    """The texts and numbers of a JSON list or object; every word of something that only looks like one."""
    try:
        yield from _leaves(msgspec.json.decode(structure))
    except msgspec.DecodeError:
        yield from _WORD.findall(structure)


def _leaves(node: Any) -> Iterator[str]:
    if isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _leaves(inner)
    elif isinstance(node, str | int | float) and not isinstance(node, bool):
        yield str(node)


def _unescaped(value: str) -> str:
    """A value as it stands in JSON, without the escapes."""
    try:
        return msgspec.json.decode(f'"{value}"', type=str)
    except msgspec.DecodeError:
        return value
