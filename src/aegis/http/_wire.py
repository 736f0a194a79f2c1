"""
One request on the wire, and its answer or its failure as a record; nothing is raised but cancellation.

aiohttp silently re-sends an idempotent request whose kept-alive connection was dropped. A client middleware (`Wire`)
stands inside that loop and turns the two errors it reacts to into one that it does not know, so a call of `send` is at
most one request. The same object learns whether the request began to leave, from a request class that notes it; tracing
hooks say it too, at a tenth of the whole call's cost. Failures come back as records, not exceptions: a driver's
exception text can hold the whole URL, and an exception raised while handling it would carry it along as its context.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import ClientRequest, ClientResponse
from aiohttp.connector import Connection
from multidict import CIMultiDict
from yarl import URL

from aegis.http.profile import Request

#: AEAD suites, RSA key exchange included, for servers without forward secrecy. Verification stays on.
LEGACY_RSA_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:AES256-GCM-SHA384:AES128-GCM-SHA256"

_LARGE_BODY_BYTES = 1 << 20


class _LostError(Exception):
    """The connection broke; named so that aiohttp does not send the request again."""


class _NotedRequest(ClientRequest):
    """A request that notes the moment before its first byte is written."""

    left = False

    async def send(self, conn: Connection) -> ClientResponse:
        self.left = True
        return await super().send(conn)


class Wire:
    """The middleware of one request: it is sent at most once, and `sent` says whether it began to leave."""

    __slots__ = ("_request",)

    def __init__(self) -> None:
        self._request: ClientRequest | None = None

    @property
    def sent(self) -> bool:
        """Whether a byte may have left."""
        return getattr(self._request, "left", False)

    async def __call__(self, request: ClientRequest, handler: aiohttp.ClientHandlerType) -> ClientResponse:
        """Send, and rename the errors that aiohttp would answer with a second request."""
        self._request = request
        try:
            return await handler(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
            raise _LostError(type(exc).__name__) from None


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    status: int
    headers: CIMultiDict[str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """No complete answer. `kind` is connect, lost, timeout, too_large, broken or invalid."""

    kind: str
    reason: str
    status: int | None = None
    reset: bool = False  #: the other side broke the connection before it answered


def open_session(*, connections_max: int, per_host_max: int, connect_timeout_s: float) -> Any:
    """A session that does what it is told and nothing else: no cookies, no redirects, no hidden re-send."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections_max, limit_per_host=per_host_max),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        request_class=_NotedRequest,
    )


def legacy_rsa_context(cafile: str | None = None) -> ssl.SSLContext:
    """A verifying context that also offers RSA key exchange, for the hosts that know nothing newer."""
    context = ssl.create_default_context(cafile=cafile)
    context.set_ciphers(LEGACY_RSA_CIPHERS)
    return context


async def send(
    session: aiohttp.ClientSession,
    request: Request,
    wire: Wire,
    *,
    timeout_s: float,
    body_bytes_max: int,
    tls: ssl.SSLContext | bool,
    proxy: str | None = None,
) -> Answer | Failure:
    """Send once, read the body within its cap, and say what came of it."""
    status: int | None = None
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.request(
                request.method,
                URL(request.url, encoded=True),
                data=_payload(request.content),
                headers=request.headers,
                allow_redirects=False,
                ssl=tls,
                middlewares=(wire,),
                proxy=proxy,
            ) as response,
        ):
            status = response.status
            content = b"" if request.method == "HEAD" else await _read(response, body_bytes_max)
            if content is None:
                response.close()
                return Failure("too_large", f"the body is larger than {body_bytes_max} bytes", status)
            return Answer(status, CIMultiDict(response.headers), content)
    except aiohttp.ConnectionTimeoutError:
        return Failure("connect", "no connection within HTTP_CONNECT_TIMEOUT")
    except TimeoutError:
        return Failure("timeout", f"no complete answer within {timeout_s:.3f} s", status)
    except aiohttp.ClientConnectorError as exc:
        reset = isinstance(exc.os_error, ConnectionResetError)
        return Failure("connect", f"cannot connect to {exc.host}:{exc.port}: {_cause(exc)}", reset=reset)
    except _LostError as exc:
        return Failure("lost", f"the connection was lost: {exc}", status, reset=True)
    except aiohttp.ClientPayloadError:
        return Failure("lost" if status is None else "broken", "the body broke off or cannot be decompressed", status)
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError, TypeError) as exc:
        invalid = not wire.sent or _unsendable(request)
        return Failure("invalid" if invalid else "broken", f"not a request that can be sent: {type(exc).__name__}")
    except (aiohttp.ClientError, OSError) as exc:
        return Failure("lost", f"{type(exc).__name__}", status)


def _payload(content: bytes | None) -> bytes | io.BytesIO | None:
    """The body as aiohttp likes it: it warns of large bytes, and takes a file of them in pieces."""
    return io.BytesIO(content) if content is not None and len(content) > _LARGE_BODY_BYTES else content


def _unsendable(request: Request) -> bool:
    """Whether aiohttp refuses the head when it is about to write it: a line break in a method or header."""
    parts = [request.method, *request.headers, *request.headers.values()]
    return any(char in part for part in parts for char in "\r\n\0")


def _cause(exc: aiohttp.ClientConnectorError) -> str:
    return exc.os_error.strerror or type(exc.os_error).__name__


async def _read(response: ClientResponse, body_bytes_max: int) -> bytes | None:
    """The body, or None as soon as it is known to be above the cap, on the wire or decoded."""
    length = response.content_length
    if length is not None and length > body_bytes_max:
        return None
    if length is not None and "Content-Encoding" not in response.headers:
        return await response.read()
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > body_bytes_max:
            return None
        chunks.append(chunk)
    return b"".join(chunks)
