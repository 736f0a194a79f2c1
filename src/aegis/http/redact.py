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
    }
)  # fmt: skip
_SPELLINGS_MAX = 1000
_SHORTEST_VALUE = 4  # shorter values would mask ordinary text

_PASSWORD = re.compile(r"[a-zA-Z]+://[^/?#@]*?:([^/?#]+)@")
_ESCAPE = re.compile(r"%[0-9A-F]{2}")


def _forms(value: str) -> set[str]:
    """What a value may look like in text: as it is, percent-encoded in three ways and two cases, escaped in JSON."""
    encoded = {quote(value, safe=""), quote(value), quote_plus(value)}
    lower = {_ESCAPE.sub(lambda escape: escape[0].lower(), form) for form in encoded}
    forms = {value, value.replace("/", "\\/"), msgspec.json.encode(value)[1:-1].decode(), *encoded, *lower}
    return {form for form in forms if len(form) >= _SHORTEST_VALUE}


class Redactor:
    """Masks the values of secret names. Immutable; `with_names` gives a wider one."""

    __slots__ = ("_field", "_known", "names")

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(name.lower() for name in names) | WELL_KNOWN
        self._known = dict.fromkeys(self.names, True)  # spellings met so far, so that each is decoded once
        names_pattern = "|".join(sorted((re.escape(name) for name in self.names), key=len, reverse=True))
        self._field = re.compile(
            rf"""(["']?\b(?:{names_pattern})["']?\s*[=:]\s*)(?:"(?:[^"\\]|\\.)*"|'[^']*'|(?:bearer\s+)?[^\s&;,"'}})]+)""",
            re.IGNORECASE,
        )

    def __repr__(self) -> str:
        return f"Redactor({len(self.names)} names)"

    def with_names(self, names: Iterable[str]) -> Redactor:
        """A redactor that masks `names` too."""
        return Redactor((*self.names, *names)) if set(names) - self.names else self

    def secret(self, name: str) -> bool:
        """Whether the value of `name`, percent-encoded or not, is a secret."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= _SPELLINGS_MAX:
                self._known.clear()
            known = self._known[name] = unquote_plus(name).strip().lower() in self.names
        return known

    def url(self, url: str) -> str:
        """The URL without the values of secret keys, without user and password, without fragment."""
        whole, hash_, _ = url.partition("#")
        address, question, query = whole.partition("?")
        if "@" in address:
            scheme, slashes, rest = address.partition("//")
            netloc, slash, path = rest.partition("/")
            address = f"{scheme}{slashes}{MASK}@{netloc.rpartition('@')[2]}{slash}{path}" if "@" in netloc else address
        return f"{address}{question}{query and self.pairs(query)}{hash_ and f'#{MASK}'}"

    def pairs(self, query: str) -> str:
        """A query string or form with the secret values masked."""
        masked = []
        for pair in query.split("&"):
            name, equals, _ = pair.partition("=")
            masked.append(f"{name}={MASK}" if equals and self.secret(name) else pair)
        return "&".join(masked)

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers with the secret values masked."""
        return {name: MASK if self.secret(name) else value for name, value in headers.items()}

    def text(self, text: str, values: Iterable[str] = ()) -> str:
        """Free text with `values`, their percent-encoded forms, and `name=value` of secret names masked."""
        for form in sorted({form for value in values for form in _forms(value)}, key=len, reverse=True):
            text = text.replace(form, MASK)
        return self._field.sub(rf"\g<1>{MASK}", text)

    def values(self, url: str, headers: Mapping[str, str], body: bytes | None = None) -> frozenset[str]:
        """The secret values that a request carries, so that an echo of them can be masked too."""
        found = {value for name, value in headers.items() if self.secret(name)}
        found |= {value.partition(" ")[2] for value in found if " " in value}
        password = _PASSWORD.match(url)
        found |= {password[1], unquote_plus(password[1])} if password else set()
        for pair in url.partition("#")[0].partition("?")[2].split("&"):
            name, _, value = pair.partition("=")
            if self.secret(name):
                found |= {value, unquote_plus(value)}
        if body and len(body) <= 65_536:
            for match in self._field.finditer(body.decode("utf-8", "ignore")):
                found.add(match[0][len(match[1]) :].strip("\"'"))
                found.add(unquote_plus(match[0][len(match[1]) :].strip("\"'")))
        return frozenset(value for value in found if len(value) >= _SHORTEST_VALUE)
