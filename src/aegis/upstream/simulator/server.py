"""
The three services on one port, and the report of what they saw.

A request's arrival is the moment at which the kernel received it (`arrival.py`): a busy simulator answers late, but
does not judge late. Quotas are counted before anything else happens to a request, so a fault does not hide one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import msgspec
from aiohttp import web

from aegis.errors import PortTakenError
from aegis.upstream.simulator.arrival import StampedSocket, StampingHandler, arrival_ns
from aegis.upstream.simulator.dart import Dart
from aegis.upstream.simulator.faults import Fault, happen
from aegis.upstream.simulator.kis import Kis
from aegis.upstream.simulator.market import Market
from aegis.upstream.simulator.naver import Naver
from aegis.upstream.simulator.state import Rules, State

_CLOSE_TIMEOUT_S = 0.5
T = TypeVar("T")
_Handler = Callable[[web.Request, bytes], web.Response]


class Service(Protocol):
    """One upstream: what it answers to, whom it admits, how it refuses."""

    name: str

    def routes(self) -> list[tuple[str, str, _Handler]]:
        """Method, path, handler."""
        ...

    def admit(self, request: web.Request, at_ns: int) -> web.Response | None:
        """Count the arrival; a refusal when it is too much."""
        ...

    def refuse(self, code: str) -> web.Response:
        """The service's own refusal for a code."""
        ...


class Simulator:
    """
    `async with Simulator() as simulator:` serves on `simulator.url` until the block is left.

    Everything is on one base URL; paths do not collide. `report()` is what was seen, `fail()` switches a fault on, and
    `change()` the rules. The same is reached over HTTP: GET `/_sim/report`, POST `/_sim/reset`, POST and DELETE
    `/_sim/faults`, POST `/_sim/rules`, POST `/_sim/void-tokens`.
    """

    def __init__(self, market: Market | None = None, rules: Rules | None = None, *, port: int = 0) -> None:
        self.market = market or Market.generated()
        self.state = State(self.market, rules or Rules())
        self._port = port
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        try:
            listener = StampedSocket.listening(self._port)
        except OSError as exc:
            raise PortTakenError("simulator", self._port, str(exc.strerror or exc)) from exc
        self._runner = web.AppRunner(self._app(), shutdown_timeout=_CLOSE_TIMEOUT_S)
        await self._runner.setup()
        handlers, loop = self._runner.server, asyncio.get_running_loop()
        assert handlers is not None
        self._port = listener.port
        last_read = listener.last_read
        self._server = await loop.create_server(lambda: StampingHandler(handlers, last_read, loop=loop), sock=listener)
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

    @property
    def rules(self) -> Rules:
        """Those in force."""
        return self.state.rules

    def describe(self) -> dict[str, Any]:
        """What a client needs to know: base URLs, codes, the newest day."""
        urls = dict.fromkeys(("kis", "dart", "naver"), self.url)
        return {"kind": "ready", **urls, "codes": self.market.codes, "day": self.market.last_day}

    def report(self, since_s: float | None = None) -> dict[str, Any]:
        """What was seen so far; `quota_used` since `since_s`, on the clock that a report gives as `at`."""
        return self.state.report(since_s)

    def change(self, **rules: Any) -> None:
        """Other rules from now on: `change(kis_per_second=1, kis_paper=True)`."""
        self.state.change(self.rules.changed(rules))

    def fail(self, kind: str, **options: Any) -> None:
        """Switch a fault on: `fail("reset", service="kis", path="order-cash", executed=True, times=1)`."""
        self.state.faults.add(msgspec.convert({"kind": kind, **options}, Fault))

    def heal(self) -> None:
        """Switch every fault off."""
        self.state.faults.clear()

    # --- over HTTP ---

    def _app(self) -> web.Application:
        app = web.Application()
        services: tuple[Service, ...] = (Kis(self.state), Dart(self.state), Naver(self.state))
        for service in services:
            for method, path, handler in service.routes():
                app.router.add_route(method, path, self._guarded(service, handler))
        app.router.add_get("/_sim/report", _control(self._report))
        app.router.add_post("/_sim/reset", _control(lambda _: self.state.forget()))
        app.router.add_post("/_sim/faults", _control(self._switch_on))
        app.router.add_delete("/_sim/faults", _control(lambda _: self.heal()))
        app.router.add_post("/_sim/rules", _control(self._change))
        app.router.add_post("/_sim/void-tokens", _control(lambda _: self.state.tokens.void()))
        app.router.add_route("*", "/{path:.*}", _control(self._unknown))
        return app

    def _guarded(self, service: Service, handler: _Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            refusal = service.admit(request, arrival_ns(request))
            body = await request.read() if request.can_read_body else b""
            if refusal is not None:
                return refusal
            fault = self.state.faults.take(service.name, request.path)
            if fault is not None and fault.kind == "maintenance" and service.name == "kis":
                self.state.tokens.void()  # which is what users see of it
                fault = None
            if fault is None:
                return handler(request, body)
            return await happen(fault, request, lambda: handler(request, body), service.refuse)

        return handle

    def _report(self, request: web.Request) -> dict[str, Any]:
        since = request.query.get("since")
        return self.report(None if since is None else float(since))

    async def _switch_on(self, request: web.Request) -> None:
        for fault in _decoded(await request.read(), list[Fault]):
            self.state.faults.add(fault)

    async def _change(self, request: web.Request) -> None:
        self.state.change(self.rules.changed(_decoded(await request.read(), dict[str, Any])))

    def _unknown(self, request: web.Request) -> None:
        self.state.violation(f"{request.method} {request.path} is nothing that the three answer to")
        raise web.HTTPNotFound


def _control(action: Callable[[web.Request], Any]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A function of the simulator over HTTP: what it returns is JSON; what it cannot read is a 400 that says so."""

    async def handle(request: web.Request) -> web.StreamResponse:
        arrival_ns(request)
        try:
            answer = action(request)
            if asyncio.iscoroutine(answer):
                answer = await answer
        except (ValueError, TypeError) as exc:
            return web.Response(status=400, text=f"{exc}\n")
        if answer is None:
            return web.Response(status=204)
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    return handle


def _decoded(body: bytes, shape: type[T]) -> T:
    return msgspec.json.decode(body, type=shape)
