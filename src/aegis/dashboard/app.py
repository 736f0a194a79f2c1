"""
The page on PORT: what the run looks like now, without a build step, a foreign script or a network.

`state()` gives plain data; the page asks for it once a second. It listens on the loopback only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from aegis.errors import PortTakenError

_CLOSE_TIMEOUT_S = 0.5
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'",
    "Cache-Control": "no-store",
}


class Dashboard:
    """
    `async with Dashboard(state, port):` serves until the block is left.

    Raises:
        PortTakenError: somebody else listens there; nothing is left open.
    """

    def __init__(self, state: Callable[[], Mapping[str, Any]], port: int) -> None:
        self._state, self._port = state, port
        self._page = resources.files("aegis.dashboard").joinpath("static", "index.html").read_text(encoding="utf-8")
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes([web.get("/", self._index), web.get("/state.json", self._now)])
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

    async def _index(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text=self._page, content_type="text/html", headers=_HEADERS)

    async def _now(self, request: web.Request) -> web.Response:
        del request
        return web.Response(body=msgspec.json.encode(self._state()), content_type="application/json", headers=_HEADERS)
