"""A gateway on a real aiohttp server, in front of a real Valkey."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from aiohttp import web

from aegis.gateway import Gateway
from aegis.redis import PubSub, Redis

Serve = Callable[..., AbstractAsyncContextManager[tuple[Gateway, str]]]


@pytest.fixture
async def bus(redis: Redis) -> AsyncIterator[PubSub]:
    """An open topic on an empty server."""
    async with PubSub(redis) as opened:
        yield opened


@pytest.fixture
def serve(bus: PubSub) -> Serve:
    """`async with serve(token=...) as (gateway, url)`: the gateway at the url, and at `/page` what the test wants."""

    @contextlib.asynccontextmanager
    async def serving(*routes: web.RouteDef, **options: object) -> AsyncIterator[tuple[Gateway, str]]:
        async with Gateway(bus, **options) as gateway:
            app = web.Application()
            app.add_routes([web.get("/quotes", gateway.handle), *routes])
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            try:
                yield gateway, f"http://127.0.0.1:{runner.addresses[0][1]}/quotes"
            finally:
                await runner.cleanup()

    return serving
