"""
The three services on one port, and the report of what they saw.

A request's arrival is stamped when its first bytes are read from the socket, before it is parsed or queued for its
handler: a busy simulator answers late, but does not judge late.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from aegis.errors import PortTakenError
from aegis.upstream.simulator import dart, kis, naver
from aegis.upstream.simulator.market import Market
from aegis.upstream.simulator.state import ARRIVED, Rules, State

_CLOSE_TIMEOUT_S = 0.5


class _StampingHandler(RequestHandler):
    """One connection; remembers when the bytes of the request in hand began to arrive."""

    arrived_ns = 0

    def data_received(self, data: bytes) -> None:
        if not self.arrived_ns:
            self.arrived_ns = time.monotonic_ns()
        super().data_received(data)


class Simulator:
    """
    `async with Simulator() as simulator:` serves on `simulator.url` until the block is left.

    Everything is on one base URL; paths do not collide. `report()` is what was seen.
    """

    def __init__(self, market: Market | None = None, rules: Rules | None = None, *, port: int = 0) -> None:
        self.market = market or Market.generated()
        self.rules = rules or Rules()
        self.state = State(self.market, self.rules)
        self._port = port
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[_stamp])
        app.add_routes([*kis.routes(self.state), *dart.routes(self.state), *naver.routes(self.state)])
        app.add_routes([web.get("/_sim/report", self._report), web.post("/_sim/void-tokens", self._void_tokens)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_TIMEOUT_S)
        await self._runner.setup()
        handlers = self._runner.server
        assert handlers is not None
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: _StampingHandler(handlers, loop=loop), "127.0.0.1", self._port
            )
        except OSError as exc:
            await self._runner.cleanup()
            raise PortTakenError("simulator", self._port, str(exc.strerror or exc)) from exc
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._runner is not None
        assert self._server is not None
        self._server.close()
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def describe(self) -> dict[str, Any]:
        """What a client needs to know: base URLs, codes, the newest day."""
        urls = dict.fromkeys(("kis", "dart", "naver"), self.url)
        return {"kind": "ready", **urls, "codes": self.market.codes, "day": self.market.last_day}

    def report(self, since_s: float | None = None) -> dict[str, Any]:
        """What was seen so far; `quota_used` since `since_s`, on the clock that a report gives as `at`."""
        return self.state.report(since_s)

    async def _report(self, request: web.Request) -> web.Response:
        since = request.query.get("since")
        report = self.report(None if since is None else float(since))
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")

    async def _void_tokens(self, request: web.Request) -> web.Response:
        del request
        self.state.tokens.void()
        return web.Response(status=204)


@web.middleware
async def _stamp(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    connection = request.protocol
    assert isinstance(connection, _StampingHandler)
    request[ARRIVED], connection.arrived_ns = connection.arrived_ns, 0
    return await handler(request)
