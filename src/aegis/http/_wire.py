"""
One request on the wire, and its answer or its failure as a record; nothing is raised but what the caller did.

That is: he cancelled it, closed the client, or gave a body that raised.

aiohttp silently re-sends an idempotent request whose kept-alive connection was dropped. A client middleware (`_Wire`)
stands inside that loop and turns the two errors it reacts to into one that it does not know, so a call of `send` is at
most one request. The same object learns whether the request began to leave, from a request class that notes it; tracing
hooks say it too, at a tenth of the whole call's cost. Failures come back as records, not exceptions: a driver's
exception text can hold the whole URL, and an exception raised while handling it would carry it along as its context.
"""

from __future__ import annotations

import io
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from aiohttp import ClientRequest, ClientResponse
from aiohttp.connector import Connection
from multidict import CIMultiDict
from yarl import URL

from aegis.errors import ClosedError
from aegis.http._watch import Watch
from aegis.http.profile import Content, Request

#: AEAD suites, RSA key exchange included, for servers without forward secrecy. Verification stays on.
LEGACY_RSA_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:AES256-GCM-SHA384:AES128-GCM-SHA256"
#: An answer of a stream that is no longer than this is read and classified like any other: errors are short.
STREAM_HEAD_BYTES = 1 << 16

_LARGE_BODY_BYTES = 1 << 20


class _LostError(Exception):
    """The connection broke; named so that aiohttp does not send the request again."""


#: What aiohttp raises, and what it lets through of the sockets and of requests that cannot be written.
_DRIVER_ERRORS = (_LostError, ClosedError, aiohttp.ClientError, OSError, ValueError, TypeError)


class _NotedRequest(ClientRequest):
    """A request that notes the moment before its first byte is written."""

    left = False

    async def send(self, conn: Connection) -> ClientResponse:
        self.left = True
        return await super().send(conn)


class _Wire:
    """The middleware of one request: it is sent at most once, and `left` says whether it began to leave."""

    __slots__ = ("_request", "source_error")

    def __init__(self) -> None:
        self._request: ClientRequest | None = None
        self.source_error: Exception | None = None  #: what the caller's own body raised; no fault of the upstream

    @property
    def left(self) -> bool:
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

    def payload(self, content: Content | None) -> Any:
        """The body as aiohttp likes it: it warns of large bytes, and takes what a function gives in pieces."""
        if content is None:
            return None
        if isinstance(content, bytes):
            return io.BytesIO(content) if len(content) > _LARGE_BODY_BYTES else content
        return self._pieces(content)

    async def _pieces(self, content: Callable[[], Iterable[bytes] | AsyncIterable[bytes]]) -> AsyncIterator[bytes]:
        try:
            source = content()
            if isinstance(source, AsyncIterable):
                async for piece in source:
                    yield _checked(piece)
            else:
                for piece in source:
                    yield _checked(piece)
        except Exception as exc:
            self.source_error = exc
            raise


class Answer(msgspec.Struct, frozen=True):
    """An answer: complete, or with `rest` still on the wire, which whoever holds it must close."""

    status: int
    headers: CIMultiDict[str]
    content: bytes
    rest: ClientResponse | None = None


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """No complete answer. `kind` is connect, lost, timeout, closed, too_large, broken or invalid."""

    kind: str
    reason: str
    status: int | None = None
    reset: bool = False  #: the other side broke the connection before it answered
    left: bool = True  #: a byte of the request may have left


@dataclass(frozen=True, slots=True)
class Route:
    """How requests of one kind travel."""

    session: aiohttp.ClientSession
    watch: Watch
    tls: ssl.SSLContext | bool
    proxy: str | None = field(repr=False)
    body_bytes_max: int


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


async def send(request: Request, route: Route, timeout_s: float) -> Answer | Failure:
    """Send once, read the body within its cap, and say what came of it."""
    wire, status = _Wire(), None
    try:
        with route.watch.within(timeout_s):
            async with _asked(request, route, wire) as response:
                status = response.status
                content = b"" if request.method == "HEAD" else await _read(response, route.body_bytes_max)
                if content is None:
                    response.close()
                    return _too_large(route.body_bytes_max, status)
                return Answer(status, CIMultiDict(response.headers), content)
    except _DRIVER_ERRORS as exc:
        failure = _failure(exc, request, status, left=wire.left, timeout_s=timeout_s)
    return _blamed(failure, wire, request)


async def begin(request: Request, route: Route, timeout_s: float) -> Answer | Failure:
    """Send once; a short answer or one that is an error is read whole, of another the rest stays on the wire."""
    wire, status, response = _Wire(), None, None
    kept = False
    try:
        with route.watch.within(timeout_s):
            response = await _asked(request, route, wire)
            status, headers = response.status, CIMultiDict(response.headers)
            head = b"" if request.method == "HEAD" else await _head(response)
            if response.content.at_eof() or request.method == "HEAD":
                return Answer(status, headers, head)
            if status < 400:
                kept = True
                return Answer(status, headers, head, response)
            content = await _read(response, route.body_bytes_max, head)
            return _too_large(route.body_bytes_max, status) if content is None else Answer(status, headers, content)
    except _DRIVER_ERRORS as exc:
        failure = _failure(exc, request, status, left=wire.left, timeout_s=timeout_s)
    finally:
        if response is not None and not kept:
            response.release()
    return _blamed(failure, wire, request)


async def next_chunk(rest: ClientResponse, route: Route, timeout_s: float) -> bytes | Failure:
    """What came next of a body; empty at its end."""
    try:
        with route.watch.within(timeout_s):
            return await rest.content.readany()
    except TimeoutError:
        return Failure("timeout", f"the body stalled or did not end within {timeout_s:.3f} s", rest.status)
    except (aiohttp.ClientError, OSError):
        return Failure("broken", "the body broke off or cannot be decompressed", rest.status)


def _asked(request: Request, route: Route, wire: _Wire) -> Any:
    return route.session.request(
        request.method,
        URL(request.url, encoded=True),
        data=wire.payload(request.content),
        headers=request.headers,
        allow_redirects=False,
        ssl=route.tls,
        middlewares=(wire,),
        proxy=route.proxy,
    )


def _too_large(body_bytes_max: int, status: int) -> Failure:
    return Failure("too_large", f"the body is larger than {body_bytes_max} bytes", status)


def _failure(exc: Exception, request: Request, status: int | None, *, left: bool, timeout_s: float) -> Failure:
    """What an exception of the driver means, or the end of the client."""
    if isinstance(exc, ClosedError):
        return Failure("closed", "the client was closed", status, left=left)
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return Failure("connect", "no connection within HTTP_CONNECT_TIMEOUT", left=left)
    if isinstance(exc, TimeoutError):
        return Failure("timeout", f"no complete answer within {timeout_s:.3f} s", status, left=left)
    if isinstance(exc, aiohttp.ClientConnectorError):
        reset = isinstance(exc.os_error, ConnectionResetError)
        return Failure("connect", f"cannot connect to {exc.host}:{exc.port}: {_cause(exc)}", reset=reset, left=left)
    if isinstance(exc, _LostError):
        return Failure("lost", f"the connection was lost: {exc}", status, reset=True, left=left)
    if isinstance(exc, aiohttp.ClientPayloadError):
        kind = "lost" if status is None else "broken"
        return Failure(kind, "the body broke off or cannot be decompressed", status, left=left)
    if isinstance(exc, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError, TypeError)):
        kind = "invalid" if not left or _unsendable(request) else "broken"
        return Failure(kind, f"not a request that can be sent: {type(exc).__name__}", left=left)
    return Failure("lost", type(exc).__name__, status, left=left)


def _blamed(failure: Failure, wire: _Wire, request: Request) -> Failure:
    """The failure, unless it is the caller's own doing: then that is raised, without the driver's words about it."""
    if wire.source_error is not None:
        raise wire.source_error
    if failure.kind == "closed" and (request.idempotent or not failure.left):
        raise ClosedError("HttpClient")
    return failure


def _checked(piece: object) -> bytes:
    if isinstance(piece, bytes | bytearray | memoryview):
        return bytes(piece)
    raise TypeError(f"a body is made of bytes, not of {type(piece).__name__}")


def _unsendable(request: Request) -> bool:
    """Whether aiohttp refuses the head when it is about to write it: a line break in a method or header."""
    parts = [request.method, *request.headers, *request.headers.values()]
    return any(char in part for part in parts for char in "\r\n\0")


def _cause(exc: aiohttp.ClientConnectorError) -> str:
    return exc.os_error.strerror or type(exc.os_error).__name__


async def _read(response: ClientResponse, body_bytes_max: int, head: bytes = b"") -> bytes | None:
    """The body, or None as soon as it is known to be above the cap, on the wire or decoded."""
    length = response.content_length
    if length is not None and length > body_bytes_max:
        return None
    if length is not None and not head and "Content-Encoding" not in response.headers:
        return await response.read()
    chunks, size, content = [head], len(head), response.content
    async for chunk in content.iter_any():
        size += len(chunk)
        if max(size, content.total_raw_bytes) > body_bytes_max:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


async def _head(response: ClientResponse) -> bytes:
    """The first bytes of a body, up to `STREAM_HEAD_BYTES` and a chunk more."""
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size >= STREAM_HEAD_BYTES:
            break
    return b"".join(chunks)
