"""
The gateway: one subscription to the topic, one board, one writer per client.

States: closed -> open -> closed. Owners: the pump task reads the subscription and writes the board; the ticker says
every few milliseconds that something is new; each request's task owns its client. Leaving ends the clients with 1012,
"service restart", which browsers' code may take as: connect again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import msgspec
from aiohttp import WSCloseCode, web
from pydantic import SecretStr

from aegis.errors import ClosedError
from aegis.gateway.access import SUBPROTOCOL, Access
from aegis.gateway.board import Board
from aegis.gateway.stream import SseStream, Stream, WebSocketStream, Writer, bound_send_buffer, new_websocket
from aegis.redis import Gap, PubSub, Subscription

#: How often clients get what is new: a person sees no difference, and a thousand clients cost half as much as at 25 ms.
FLUSH_S = 0.05
_LOOK_EVERY_S = 1.0
_SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


@dataclass(frozen=True, slots=True)
class GatewayStats:
    """Totals of one gateway, and how many clients there are now."""

    clients: int
    keys: int
    events: int  #: written
    bytes: int
    evicted: int  #: closed because they were too slow
    refused: int  #: requests that access or the bound of clients turned away


class Gateway:
    """
    `app.router.add_get("/quotes", gateway.handle)` serves a topic: WebSocket where asked for, else Server-Sent Events.

    Events are JSON: `{"id", "live", "snapshot", "updates": [{"key", "value", "version", "published_at", ...}],
    "gaps": [...]}`. The first one holds the last values of all keys, or after `Last-Event-ID` (WebSockets:
    `?last_event_id=`) those that have changed since. `?key=A&key=B` narrows it to some keys. `live` is false while the
    values may be stale.

    A client that takes nothing for `stalled_max_s`, or has not caught up within `behind_max_s`, is closed (1013). At
    most `clients_max` are served; more get 503 with `Retry-After`. Who may read: see `Access`.
    """

    def __init__(
        self,
        bus: PubSub,
        *,
        token: SecretStr | str | None = None,
        origins: Iterable[str] = (),
        clients_max: int = 2000,
        flush_s: float = FLUSH_S,
        stalled_max_s: float = 10.0,
        behind_max_s: float = 60.0,
        keep_alive_s: float = 15.0,
    ) -> None:
        self._bus, self._access = bus, Access(token, origins)
        self._clients_max, self._flush_s = clients_max, flush_s
        self._stalled_max_s, self._behind_max_s, self._keep_alive_s = stalled_max_s, behind_max_s, keep_alive_s
        self._board = Board()
        self._clients: dict[Writer, Stream] = {}
        self._turn = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()
        self._events = self._bytes = self._evicted = self._refused = 0

    def __repr__(self) -> str:
        state = "open" if self._tasks else "closed"
        return f"<Gateway {state} clients={len(self._clients)} keys={len(self._board)} {self._access}>"

    async def __aenter__(self) -> Self:
        policy: Literal["merge", "latest"] = "merge" if self._bus.partial else "latest"
        updates = await self._stack.enter_async_context(self._bus.subscribe(type=msgspec.Raw, policy=policy))
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._pump(updates), name="aegis gateway pump"),
            loop.create_task(self._tick(updates), name="aegis gateway ticker"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        streams = list(self._clients.values())
        await asyncio.gather(
            *(stream.close(WSCloseCode.SERVICE_RESTART, "closing; connect again") for stream in streams)
        )
        await self._stack.aclose()

    def stats(self) -> GatewayStats:
        """Totals, and where it stands."""
        return GatewayStats(
            clients=len(self._clients),
            keys=len(self._board),
            events=self._events + sum(writer.events for writer in self._clients),
            bytes=self._bytes + sum(writer.bytes for writer in self._clients),
            evicted=self._evicted,
            refused=self._refused,
        )

    # --- one request ---

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one client until it goes, is too slow, or the gateway closes."""
        refusal = self._access.refusal(request) or self._full()
        if refusal is not None:
            self._refused += 1
            raise refusal
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        bound_send_buffer(transport)
        event_id = request.headers.get("Last-Event-ID") or request.query.get("last_event_id")
        keys = frozenset(request.query.getall("key", ())) or None
        place = self._board.place_of(event_id)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._serve_websocket(request, transport, place, keys)
        response = web.StreamResponse(headers=_SSE_HEADERS)
        origin = request.headers.get("Origin", "").lower()
        if origin in self._access.origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Credentials"] = "true"
        await response.prepare(request)
        stream = SseStream(response, transport)
        with contextlib.suppress(ConnectionError):
            await self._serve(self._writer(stream, place, keys), stream)
        return response

    async def _serve_websocket(
        self, request: web.Request, transport: asyncio.Transport, place: int, keys: frozenset[str] | None
    ) -> web.StreamResponse:
        offered = request.headers.get("Sec-WebSocket-Protocol")
        if offered is not None and SUBPROTOCOL not in offered.replace(" ", "").split(","):
            raise web.HTTPBadRequest(text=f"the subprotocol is {SUBPROTOCOL!r}\n")  # aiohttp would log what was offered
        response = new_websocket(SUBPROTOCOL)
        await response.prepare(request)
        stream = WebSocketStream(response, transport)
        writer = self._writer(stream, place, keys)
        writing = asyncio.get_running_loop().create_task(self._serve(writer, stream))
        try:
            await stream.until_gone()
            if writer.evicted:  # it is the writer who closes: let it finish
                await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        return response

    def _writer(self, stream: Stream, place: int, keys: frozenset[str] | None) -> Writer:
        return Writer(
            stream,
            self._board,
            place,
            keys,
            stalled_max_s=self._stalled_max_s,
            behind_max_s=self._behind_max_s,
            keep_alive_s=self._keep_alive_s,
        )

    async def _serve(self, writer: Writer, stream: Stream) -> None:
        self._clients[writer] = stream
        try:
            await writer.run(self._next_turn)
        finally:
            del self._clients[writer]
            self._events += writer.events
            self._bytes += writer.bytes
            self._evicted += writer.evicted

    def _full(self) -> web.HTTPException | None:
        if not self._tasks:
            return web.HTTPServiceUnavailable(text=f"{ClosedError('Gateway')}\n", headers={"Retry-After": "1"})
        if len(self._clients) >= self._clients_max:
            text = f"{self._clients_max} clients are connected, which is the bound\n"
            return web.HTTPServiceUnavailable(text=text, headers={"Retry-After": "5"})
        return None

    # --- the tasks ---

    async def _next_turn(self) -> None:
        await self._turn.wait()

    async def _pump(self, updates: Subscription) -> None:
        """From the subscription to the board: each value is encoded here, once."""
        encode, board = msgspec.json.Encoder().encode, self._board
        async for event in updates:
            if isinstance(event, Gap):
                board.put_gap(encode(event))
            else:
                board.put(event.key, encode(event))
            self._changed.set()

    async def _tick(self, updates: Subscription) -> None:
        """Wake the writers: soon after something changed, and now and then to look after those that are slow."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._changed.wait()
            await asyncio.sleep(self._flush_s)
            self._changed.clear()
            self._board.set_live(updates.live)
            turn, self._turn = self._turn, asyncio.Event()
            turn.set()
