"""
One multiplexed connection: commands of all tasks leave in one write per loop turn, replies resolve futures in order.

States: new -> open -> closed; a link is never reopened, its owner makes another. The protocol object owns the socket
and the queue of futures; only `data_received` and `connection_lost` resolve them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from aegis.config import RedisConfig
from aegis.errors import RedisUnavailableError

#: hiredis types its argument as a tuple of one element; it takes any length.
pack: Callable[[tuple[Any, ...]], bytes] = cast("Any", hiredis.pack_command)
Reply = Any  #: bytes, int, list, None, or hiredis.ReplyError inside a list


class Link(asyncio.Protocol):
    """One open connection. `send` never blocks; futures get the raw reply, a `hiredis.ReplyError` included."""

    def __init__(self, on_lost: Callable[[str], None], on_push: Callable[[list[Any]], None] | None = None) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._on_lost, self._on_push = on_lost, on_push
        self._transport: asyncio.Transport | None = None
        self._scheduled = False
        self.closed_because = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # asyncio hands a Transport to a stream protocol

    def send(self, packed: bytes) -> asyncio.Future[Reply]:
        """Queue one packed command; the future gets its reply, or ConnectionResetError when the link dies first."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting.append(future)
        self.write(packed)
        return future

    def write(self, packed: bytes) -> None:
        """Queue bytes that have no reply of their own (SUBSCRIBE in push mode)."""
        self._out.append(packed)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if self._on_push is not None and type(reply) is list and reply and reply[0] in _PUSHES:
                    self._on_push(reply)
                    continue
                future = waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as exc:
            self.abort(f"malformed reply: {exc}")

    def abort(self, reason: str) -> None:
        """Drop the connection now; everything in flight fails with `reason`."""
        self.closed_because = self.closed_because or reason
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_because = self.closed_because or (str(exc) if exc else "closed by the server")
        self._transport = None
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(ConnectionResetError(self.closed_because))
        self._on_lost(self.closed_because)


#: First words of what arrives unasked on a RESP2 connection that subscribes.
_PUSHES = frozenset(
    {b"message", b"pmessage", b"smessage", b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe",
     b"ssubscribe", b"sunsubscribe"}
)  # fmt: skip


async def open_link(
    config: RedisConfig, on_lost: Callable[[str], None], on_push: Callable[[list[Any]], None] | None = None
) -> Link:
    """
    Connect, log in, select the database and name the connection, all within `config.connect_timeout`.

    Raises:
        RedisUnavailableError: refused, not found, too slow, or the server refused the login.
    """
    loop = asyncio.get_running_loop()
    link = Link(on_lost, on_push)
    try:
        async with asyncio.timeout(config.connect_timeout):
            if config.socket:
                await loop.create_unix_connection(lambda: link, config.socket)
            else:
                context = _tls_context(config) if config.tls else None
                await loop.create_connection(lambda: link, config.host, config.port, ssl=context)
            await _log_in(link, config)
    except TimeoutError as exc:
        link.abort("connect timeout")
        raise RedisUnavailableError(config.address, f"no answer within {config.connect_timeout:g} s") from exc
    except (OSError, ssl.SSLError) as exc:
        link.abort("connect failed")
        raise RedisUnavailableError(config.address, str(exc)) from exc
    except BaseException:
        link.abort("connect abandoned")
        raise
    return link


async def _log_in(link: Link, config: RedisConfig) -> None:
    commands: list[tuple[str | int, ...]] = []
    if config.password is not None:
        user = (config.username,) if config.username else ()
        commands.append(("AUTH", *user, config.password.get_secret_value()))
    if config.db:
        commands.append(("SELECT", config.db))
    commands.append(("CLIENT", "SETNAME", config.client_name))
    commands.append(("PING",))
    replies = await asyncio.gather(*(link.send(pack(command)) for command in commands))
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, hiredis.ReplyError) and command[0] != "CLIENT":
            with contextlib.suppress(Exception):
                link.abort("login refused")
            raise RedisUnavailableError(config.address, f"{command[0]} refused: {reply}")


def _tls_context(config: RedisConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.tls_ca_file)
    if config.tls_cert_file and config.tls_key_file:
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file)
    return context
