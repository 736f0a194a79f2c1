"""
A Redis URL, read strictly: scheme, user, password, places, database. Pure: no I/O, no environment.

Forms: `redis://user:password@host:port/db`, `rediss://` for TLS, `unix:///path?db=n`,
`redis+sentinel://user:password@host:port,host:port/name?db=n`, `redis+cluster://user:password@host:port,host:port`, the
last two also as `rediss+…`. Errors never repeat the URL: it may hold a password.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

_SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
#: Where a server listens when its port is not told: Sentinels, and everything else.
DEFAULT_PORTS = {"sentinel": 26379}
DEFAULT_PORT = 6379


def redis_parts(url: str) -> dict[str, Any]:
    """
    The fields of `RedisConfig` that `url` spells out.

    Raises:
        ValueError: says what is wrong, without repeating the URL.
    """
    try:
        split = urlsplit(url)
    except ValueError:
        raise ValueError("not a URL that can be read; expected redis://host:port/db") from None
    if split.scheme not in _SCHEMES or "://" not in url:
        raise ValueError(
            f"expected a URL that begins with {', '.join(f'{scheme}://' for scheme in _SCHEMES)}, or embedded:"
        )
    kind, _, mode = split.scheme.partition("+")
    parts: dict[str, Any] = {}
    if split.username:
        parts["username"] = unquote(split.username)
    if split.password:
        parts["password"] = unquote(split.password)
    options = dict(pair.partition("=")[::2] for pair in split.query.split("&") if pair)
    database = options.pop("db", None)
    if mode == "sentinel":
        parts |= {name: unquote(value) for name in _SENTINEL_OPTIONS if (value := options.pop(name, ""))}
    if options:
        raise ValueError("unknown option after the ?; only db= is known; write a ? in the password as %3F")
    if kind == "unix":
        parts["socket"] = unquote(split.path)
    else:
        parts["tls"] = kind == "rediss"
        after_the_slash = split.path.strip("/")
        if mode:
            parts |= {"mode": mode, "nodes": _nodes(split, mode)}
        else:
            parts |= _place(split)
        if mode == "sentinel":
            parts["sentinel_name"] = unquote(after_the_slash) or None
        else:
            database = database or after_the_slash or None
    if database is not None:
        if not (database.isascii() and database.isdigit()):
            raise ValueError("the database after the slash is not a number; write a slash in the password as %2F")
        parts["db"] = int(database)
    return {field: value for field, value in parts.items() if value is not None}


def _place(split: SplitResult) -> dict[str, Any]:
    try:
        port = split.port
    except ValueError:
        raise ValueError("not a URL that can be read; expected redis://host:port/db") from None
    return {"host": split.hostname or "localhost", "port": port or DEFAULT_PORT}


def _nodes(split: SplitResult, mode: str) -> tuple[str, ...]:
    places = split.netloc.rpartition("@")[2].split(",")
    try:
        return tuple(write_node(*parse_node(place, mode)) for place in places)
    except ValueError:  # not its own words: what looks like a place may be a password with a slash in it
        raise ValueError(f"expected places after the //, such as {split.scheme}://host1:7000,host2:7001") from None


def parse_node(place: str, mode: str) -> tuple[str, int]:
    """
    Host and port of `host:port`, `host` or `[ipv6]:port`.

    Raises:
        ValueError: it is none of these; repeats it.
    """
    try:
        split = urlsplit(f"//{place}")
        host, port = split.hostname, split.port
    except ValueError:
        host, port = None, None
    if not host or "@" in place or "/" in place:
        raise ValueError(f"{place!r} is no place of a server; expected host:port")
    return host, port or DEFAULT_PORTS.get(mode, DEFAULT_PORT)


def write_node(host: str, port: int) -> str:
    """The inverse of `parse_node`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
