"""
A PostgreSQL URL, read as libpq reads it (postgresql.org/docs/18/libpq-connect.html, 32.1.1.2; read 2026-11-24).

Pure: no I/O, no environment. Differences to web URLs that matter: `+` is a literal plus, a bad percent-escape is an
error, several hosts stand side by side with ports of their own, a host that begins with a slash is the directory of a
unix socket, and of duplicate parameters the last wins. Errors never repeat the URL: it may hold a password.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

DEFAULT_PORT = 5432
_TYPO_CUTOFF = 0.8  #: how close a name must be to a known one for a suggestion; it is not repeated itself
_SCHEMES = ("postgresql://", "postgres://")
_TLS = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword", "sslnegotiation"})
#: libpq's, without an effect here: the driver speaks UTF-8, keeps TCP alive by itself, and has no GSS encryption.
_IGNORED = frozenset({
    "client_encoding", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout",
    "gssencmode", "channel_binding", "fallback_application_name",
})  # fmt: skip
_KNOWN = frozenset({
    "host", "port", "dbname", "user", "password", "passfile", "options", "application_name", "connect_timeout",
    "target_session_attrs", "load_balance_hosts", "pgbouncer",
})  # fmt: skip
SESSION_ATTRS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """What a URL says; what it does not say is None or empty."""

    hosts: tuple[tuple[str, int], ...] = ()  #: in the order to try; a host may be the directory of a unix socket
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    tls: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: Mapping[str, str] = field(default_factory=dict)  #: every other parameter, as text

    @property
    def address(self) -> str:
        """Hosts and database, for messages: holds no secret."""
        names = ",".join(host if host.startswith("/") else f"{host}:{port}" for host, port in self.hosts)
        return f"{names or 'localhost'}/{self.database or self.user or ''}"


def parse_postgres_url(url: str) -> PostgresUrl:
    """
    The parts of `url`.

    Raises:
        ValueError: says what is wrong, without repeating the URL.
    """
    scheme = next((known for known in _SCHEMES if url.startswith(known)), None)
    if scheme is None:
        raise ValueError("expected a URL such as postgresql://user:password@host:5432/database")
    rest, _, query = url[len(scheme) :].partition("?")
    user = password = None
    # As libpq: credentials end at the first @, unless a slash comes before it.
    head = re.match(r"([^@/]*)@", rest)
    if head is not None:
        rest = rest[head.end() :]
        user, colon, word = head[1].partition(":")
        user, password = _decoded(user) or None, _decoded(word) if colon else None
    places, _, database = rest.partition("/")
    if "@" in database:  # libpq takes it for a part of the database's name; it never is
        raise ValueError("an @ stands after a slash; write a slash or an @ in the password as %2F or %40")
    names, ports = _places(places)
    given = _parameters(query)
    if "host" in given:
        names, ports = given.pop("host").split(","), ports if not any(names) else []
    if "port" in given:
        ports = given.pop("port").split(",")
    return PostgresUrl(
        hosts=_hosts(names, ports),
        user=given.pop("user", user),
        password=given.pop("password", password),
        database=given.pop("dbname", _decoded(database) or None),
        tls={name: given.pop(name) for name in sorted(_TLS & given.keys())},
        options=given,
    )


def _places(text: str) -> tuple[list[str], list[str]]:
    names, ports = [], []
    for place in text.split(","):
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]*))(?::(.*))?", place)
        if match is None:
            raise ValueError("a host cannot be read; an IPv6 address stands in brackets")
        names.append(_decoded(match[1] or match[2]))
        ports.append(_decoded(match[3] or ""))
    return names, ports


def _hosts(names: list[str], ports: list[str]) -> tuple[tuple[str, int], ...]:
    if len(ports) == 1:
        ports *= len(names)  # one port serves all hosts
    ports = ports or [""] * len(names)
    if len(ports) != len(names):
        raise ValueError(f"{len(ports)} ports for {len(names)} hosts; give one port, or one for each")
    numbers = []
    for port in ports:
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
            raise ValueError("a port is not a number between 1 and 65535; an IPv6 address stands in brackets")
        numbers.append(int(port or DEFAULT_PORT))
    if not any(names):
        return () if set(numbers) == {DEFAULT_PORT} else (("localhost", numbers[0]),)
    return tuple((name or "localhost", number) for name, number in zip(names, numbers, strict=True))


def _parameters(query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        name = _decoded(name)
        if not equals or "=" in value:
            raise ValueError("a parameter needs exactly one =")
        if name == "ssl" and value == "true":  # the JDBC way, which libpq accepts
            name, value = "sslmode", "require"
        if name not in _KNOWN | _TLS | _IGNORED:
            nearest = difflib.get_close_matches(name, _KNOWN | _TLS, n=1, cutoff=_TYPO_CUTOFF)
            if nearest:
                raise ValueError(f"unknown parameter; did you mean {nearest[0]}?")
            raise ValueError("unknown parameter (not shown: it may be part of a password; write a ? in one as %3F)")
        if name not in _IGNORED:
            given[name] = _decoded(value)
    attrs = given.get("target_session_attrs", "any")
    if attrs not in SESSION_ATTRS:
        raise ValueError(f"target_session_attrs={attrs!r} is none of {', '.join(SESSION_ATTRS)}")
    return given


def _decoded(text: str) -> str:
    """Percent-decoded, strictly."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("a % is not followed by two hexadecimal digits; write a literal one as %25")
    if "%00" in text:
        raise ValueError("%00 is not allowed")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("a percent-escape is not UTF-8") from None
