"""
The web application behind the live page.

States: serving (the page is there and says that it waits) -> live (a runtime is open; quotes and vitals flow) ->
serving. It listens on the loopback and answers only pages from there (see `aegis.gateway.Access`): nobody else's page
may read prices or accounts' quotas.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from importlib import resources
from pathlib import PurePath
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from aegis.config import Config
from aegis.dashboard.history import History
from aegis.dashboard.watch import Watched, limits_of, watch_limits, watch_servers
from aegis.errors import OutboxFullError, PortTakenError, UnsentTicksError
from aegis.gateway import Access, Gateway
from aegis.redis import RateLimit, Update
from aegis.runtime import Runtime
from aegis.telemetry import KEEP_S, vitals_bus

log = logging.getLogger("aegis.dashboard")

_CLOSE_TIMEOUT_S = 0.5
_TELL_TIMEOUT_S = 0.5
_KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dashboard:
    """
    `async with Dashboard(port) as page:` serves the page; `async with page.live(config):` makes it live.

    Raises:
        PortTakenError: somebody else listens there; nothing is left open.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        static = resources.files("aegis.dashboard").joinpath("static")
        self._files = {file.name: file.read_bytes() for file in static.iterdir()}
        self._access = Access()
        self._runner: web.AppRunner | None = None
        self._live: _Live | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._page)
        for name in self._files:
            app.router.add_get(f"/{name}", self._page)
        app.router.add_get("/state.json", self._state)
        app.router.add_get("/history.json", self._history)
        app.router.add_get("/live/{what:quotes|vitals}", self._stream)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_TIMEOUT_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
        except OSError as exc:
            await runner.cleanup()
            raise PortTakenError("dashboard", self._port, exc.strerror or str(exc)) from exc
        self._runner, self._port = runner, runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._port}/"

    @contextlib.asynccontextmanager
    async def live(
        self, config: Config, *, database: bool = True, limits: Iterable[tuple[RateLimit, str]] = ()
    ) -> AsyncIterator[Runtime]:
        """
        Open a runtime, with a database or without, and show what is on its servers until the block is left.

        `limits` are limits of your own, each with the `key` of its account, beside those of the configured accounts.
        """
        watched = [*limits_of(config), *(Watched(limit.name, limit, key) for limit, key in limits)]
        async with Runtime(config, database=database) as rt, _Live(rt, watched, database=database) as live:
            self._live = live
            try:
                yield rt
            finally:
                self._live = None

    async def tell(self, name: str, value: Any) -> None:
        """Show something else beside what is watched: `run`, the progress of a run. Before it is live, nothing."""
        if self._live is not None:
            await self._live.tell(name, value)

    # --- requests ---

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = self._access.refusal(request)
        if refusal is not None:
            raise refusal
        return await handler(request)

    async def _page(self, request: web.Request) -> web.Response:
        name = request.path.removeprefix("/") or "index.html"
        kind = _KINDS[PurePath(name).suffix]
        return web.Response(body=self._files[name], content_type=kind, charset="utf-8", headers=_HEADERS)

    async def _state(self, request: web.Request) -> web.Response:
        del request
        return _json(self._live.state if self._live else {})

    async def _history(self, request: web.Request) -> web.Response:
        del request
        return _json(self._live.history.as_data(time.monotonic()) if self._live else {})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self._live is None:
            raise web.HTTPServiceUnavailable(text="not live yet\n", headers={"Retry-After": "1"})
        return await self._live.gateways[request.match_info["what"]].handle(request)


class _Live:
    """What is open while the page is live: two topics, their gateways, and the tasks that watch."""

    def __init__(self, rt: Runtime, watched: list[Watched], *, database: bool) -> None:
        self._rt, self._watched, self._database = rt, watched, database
        self._vitals = vitals_bus(rt.redis, rt.config.key_prefix)
        self.gateways = {"quotes": Gateway(rt.bus), "vitals": Gateway(self._vitals)}
        self.history, self.state = History(), dict[str, Any]()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._vitals)
            for gateway in self.gateways.values():
                await stack.enter_async_context(gateway)
            rt, ready = self._rt, asyncio.Event()
            work = {
                "history": self.history.follow(rt.bus, ready),
                "state": self._follow(),
                "limits": watch_limits(rt, self._watched, self.tell),
                "servers": watch_servers(rt, self.tell, database=self._database),
            }
            tasks = [asyncio.create_task(each, name=f"aegis dashboard {name}") for name, each in work.items()]
            stack.push_async_callback(_end, tasks)
            for task in tasks:
                task.add_done_callback(_say_why)
            await ready.wait()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with contextlib.suppress(UnsentTicksError):
            await self._stack.__aexit__(kind, exc, tb)

    async def tell(self, name: str, value: Any) -> None:
        """To all pages, over the broadcast."""
        self.state[name] = value
        if name == "limits":
            self.history.note_limits(value, time.monotonic())
        with contextlib.suppress(OutboxFullError):
            await self._vitals.publish(name, value, timeout=_TELL_TIMEOUT_S)

    async def _follow(self) -> None:
        """Keep the newest of everything for `state.json`, and nothing of a process that is gone for good."""
        told_at: dict[str, float] = {}
        async with self._vitals.subscribe() as updates:
            async for event in updates:
                if not isinstance(event, Update):
                    continue
                self.state[event.key], told_at[event.key] = event.value, event.published_at
                for key in [key for key, at in told_at.items() if at < event.published_at - KEEP_S]:
                    del self.state[key], told_at[key]


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _say_why(task: asyncio.Task[None]) -> None:
    """A part of the page stands still from now on; the others go on."""
    if not task.cancelled() and task.exception() is not None:
        log.error("%s has ended: %s", task.get_name(), task.exception())


def _json(data: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(data), content_type="application/json", headers=_HEADERS)
