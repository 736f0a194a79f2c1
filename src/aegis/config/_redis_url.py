"""
A Redis URL, read strictly: scheme, user, password, host, port, database. Pure: no I/O, no environment.

Forms: `redis://user:password@host:port/db`, `rediss://` for TLS, `unix:///path?db=n`. Errors never repeat the URL: it
may hold a password.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

_SCHEMES = ("redis", "rediss", "unix")


def redis_parts(url: str) -> dict[str, Any]:
    """
    The fields of `RedisConfig` that `url` spells out.

    Raises:
        ValueError: says what is wrong, without repeating the URL.
    """
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        raise ValueError("not a URL that can be read; expected redis://host:port/db") from None
    if split.scheme not in _SCHEMES or "://" not in url:
        raise ValueError(
            f"expected a URL that begins with {', '.join(f'{scheme}://' for scheme in _SCHEMES)}, or embedded:"
        )
    parts: dict[str, Any] = {}
    if split.username:
        parts["username"] = unquote(split.username)
    if split.password:
        parts["password"] = unquote(split.password)
    query = dict(pair.partition("=")[::2] for pair in split.query.split("&") if pair)
    database = query.pop("db", None)
    if query:
        raise ValueError("unknown option after the ?; only db= is known; write a ? in the password as %3F")
    if split.scheme == "unix":
        parts["socket"] = unquote(split.path)
    else:
        parts["tls"] = split.scheme == "rediss"
        parts["host"] = split.hostname or "localhost"
        parts["port"] = port or 6379
        database = database or split.path.strip("/") or None
    if database is not None:
        if not (database.isascii() and database.isdigit()):
            raise ValueError("the database after the slash is not a number; write a slash in the password as %2F")
        parts["db"] = int(database)
    return parts
