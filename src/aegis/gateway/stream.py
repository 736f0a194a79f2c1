"""
One client: its way to be written to, and the loop that does so.

The loop writes only when the client has taken everything before; until then it waits, and what it will send is always
the newest. So a slow client is conflated, holds one event and a small socket buffer, and delays nobody. One that takes
nothing for a while, or never catches up, is closed with a code that says: try again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from aegis.gateway.board import Board

#: What the kernel may hold for one client, bytes; by itself it would take megabytes for one that does not read.
SEND_BUFFER_BYTES = 128 * 1024
_CLIENT_MESSAGE_MAX = 1024
_SAY_GOODBYE_S = 5.0


class Stream(Protocol):
    """How one kind of client is written to."""

    @property
    def buffered(self) -> int:
        """Bytes that the client's kernel has not taken."""

    async def send(self, event: bytes, event_id: str) -> None:
        """Write an event."""

    async def keep_alive(self) -> None:
        """Write something without a meaning."""

    async def close(self, code: int, reason: str) -> None:
        """Say why and end the connection, in bounded time."""


class WebSocketStream:
    """An event is a text message. Pings keep it alive; what the client sends is not looked at."""

    def __init__(self, response: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self._response, self._transport = response, transport

    @property
    def buffered(self) -> int:
        """See `Stream`."""
        return self._transport.get_write_buffer_size()

    async def send(self, event: bytes, event_id: str) -> None:
        """See `Stream`."""
        del event_id  # it is in the event
        await self._response.send_frame(event, WSMsgType.TEXT)

    async def keep_alive(self) -> None:
        """See `Stream`."""
        await self._response.ping()

    async def close(self, code: int, reason: str) -> None:
        """See `Stream`."""
        asyncio.get_running_loop().call_later(_SAY_GOODBYE_S, self._transport.abort)  # the time it has to read the code
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(_SAY_GOODBYE_S):
                await self._response.close(code=code, message=reason.encode(), drain=False)

    async def until_gone(self) -> None:
        """Return when the client has closed; answers its pings meanwhile."""
        async for _ in self._response:
            pass


class SseStream:
    """An event is a `data:` line with its `id:`, which the browser shows again as `Last-Event-ID`."""

    def __init__(self, response: web.StreamResponse, transport: asyncio.Transport) -> None:
        self._response, self._transport = response, transport

    @property
    def buffered(self) -> int:
        """See `Stream`."""
        return self._transport.get_write_buffer_size()

    async def send(self, event: bytes, event_id: str) -> None:
        """See `Stream`."""
        await self._response.write(b"id: %s\ndata: %s\n\n" % (event_id.encode(), event))

    async def keep_alive(self) -> None:
        """See `Stream`."""
        await self._response.write(b":\n\n")

    async def close(self, code: int, reason: str) -> None:
        """See `Stream`. There are no codes here: a browser reconnects by itself, with the last id that it got."""
        del code, reason
        self._transport.abort()


class Writer:
    """The loop of one client. `place` is how far it has come on the board."""

    def __init__(
        self,
        stream: Stream,
        board: Board,
        place: int,
        keys: frozenset[str] | None,
        *,
        stalled_max_s: float,
        behind_max_s: float,
        keep_alive_s: float,
    ) -> None:
        self._stream, self._board, self.place, self._keys = stream, board, place, keys
        self._stalled_max_s, self._behind_max_s, self._keep_alive_s = stalled_max_s, behind_max_s, keep_alive_s
        self.events = self.bytes = 0
        self.evicted = False

    async def run(self, turn: Callable[[], Awaitable[None]]) -> None:
        """Write until the client is gone, or too slow: then it is closed. `turn` returns when it is time to look."""
        caught_up_at = moved_at = wrote_at = time.monotonic()
        buffered = 0
        while True:
            now, before, buffered = time.monotonic(), buffered, self._stream.buffered
            if buffered < before:
                moved_at = now
            if not buffered:
                caught_up_at = moved_at = now
                if await self._write_next():
                    wrote_at = now
                elif now - wrote_at >= self._keep_alive_s:
                    wrote_at = now
                    await self._stream.keep_alive()
            elif now - moved_at > self._stalled_max_s or now - caught_up_at > self._behind_max_s:
                self.evicted = True
                await self._stream.close(WSCloseCode.TRY_AGAIN_LATER, "too slow; connect again")
                return
            await turn()

    async def _write_next(self) -> bool:
        event = self._board.event_after(self.place, self._keys)
        if event is None:
            self.place = self._board.seq
            return False
        self.place, event_id = self._board.seq, self._board.id
        try:
            async with asyncio.timeout(self._stalled_max_s):
                await self._stream.send(event, event_id)
        except TimeoutError:
            return True  # it waits for the client to take it; `run` will see that nothing moves
        self.events += 1
        self.bytes += len(event)
        return True


def bound_send_buffer(transport: asyncio.Transport) -> None:
    """Keep the kernel from holding megabytes for a client that does not read."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


def new_websocket(protocol: str) -> web.WebSocketResponse:
    """Without compression (it would be paid per client) and with a small bound for what clients say."""
    return web.WebSocketResponse(
        timeout=_SAY_GOODBYE_S, max_msg_size=_CLIENT_MESSAGE_MAX, compress=False, protocols=(protocol,)
    )
