"""
Who may read a topic from a browser.

Browsers attach no permission to a WebSocket by themselves: any page may open one to any address that its reader can
reach, this machine included. So by default only pages from this machine are served, to this machine. Whoever wants
more names the origins, and a token.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web
from pydantic import SecretStr

#: Where a token may stand, besides `Authorization: Bearer`: browsers can set no header here. Never in the URL, because
#: URLs land in logs.
COOKIE = "aegis_token"
SUBPROTOCOL = "aegis"
_TOKEN_PROTOCOL = "bearer."  # noqa: S105 - a prefix, not a token


class Access:
    """
    The rules of one gateway.

    `origins` are pages that may read, such as `https://desk.example.com`; pages on the loopback may, when they and the
    request name the same host. Without a `token` only clients on the loopback are served, and none behind a proxy. With
    one, every client must show it: in `Authorization: Bearer`, in the cookie `aegis_token`, or, for WebSockets, as the
    subprotocol `bearer.TOKEN` beside `aegis`.
    """

    def __init__(self, token: SecretStr | str | None = None, origins: Iterable[str] = ()) -> None:
        self._token = token.get_secret_value() if isinstance(token, SecretStr) else token
        if self._token is not None and len(self._token) < 16:
            raise ValueError("the gateway's token must have at least 16 characters")
        self.origins = frozenset(_checked(origin) for origin in origins)
        self._hosts = frozenset(urlsplit(origin).netloc for origin in self.origins)

    def __repr__(self) -> str:
        return f"<Access token={'yes' if self._token else 'no'} origins={sorted(self.origins)}>"

    def refusal(self, request: web.Request) -> web.HTTPException | None:
        """Why a request is not served, or None."""
        host, origin = request.headers.get("Host", "").lower(), request.headers.get("Origin")
        if not (_is_loopback(host) or host in self._hosts):  # a name that leads here though nobody named it: rebinding
            return web.HTTPForbidden(text="this host name is not served; name it among the gateway's origins\n")
        if origin is not None and origin.lower() not in self.origins and not _same_loopback(origin, host):
            return web.HTTPForbidden(text="this origin may not read; name it among the gateway's origins\n")
        if self._token is None:
            forwarded = request.headers.keys() & {"Forwarded", "X-Forwarded-For", "X-Real-IP"}
            if forwarded or not _is_loopback(_bracketed(request.remote or "")):
                return web.HTTPForbidden(text="without a token, only clients on this machine are served\n")
            return None
        shown = self._shown(request)
        if shown is None or not hmac.compare_digest(shown.encode(), self._token.encode()):
            return web.HTTPUnauthorized(text="the token is missing or wrong\n", headers={"WWW-Authenticate": "Bearer"})
        return None

    @staticmethod
    def _shown(request: web.Request) -> str | None:
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and value:
            return value.strip()
        for protocol in request.headers.get("Sec-WebSocket-Protocol", "").split(","):
            if protocol.strip().startswith(_TOKEN_PROTOCOL):
                return protocol.strip()[len(_TOKEN_PROTOCOL) :]
        return request.cookies.get(COOKIE)


def _checked(origin: str) -> str:
    parts = urlsplit(origin.lower())
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path or parts.query or "*" in origin:
        raise ValueError(f"origin {origin!r} is not of the form https://host or https://host:port")
    return f"{parts.scheme}://{parts.netloc}"


def _same_loopback(origin: str, host: str) -> bool:
    return urlsplit(origin.lower()).netloc == host and _is_loopback(host)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
