"""A dashboard that is live on real servers: see `dashboard_scene.py`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from dashboard_scene import API_KEY, APP_KEY, OWN, Scene

from aegis.config import Config
from aegis.dashboard import Dashboard
from aegis.runtime import Runtime


@pytest.fixture
def variables(valkey_server, postgres_server) -> dict[str, str]:
    return {
        "REDIS_URL": valkey_server.url, "DATABASE_URL": postgres_server.url, "DB_MIN_CONNS": "1", "DB_MAX_CONNS": "3",
        "AEGIS_PREFIX": f"dash-{uuid.uuid4().hex[:6]}", "KIS_APP_KEY": APP_KEY, "DART_API_KEY": API_KEY,
    }  # fmt: skip


@pytest.fixture
def config(variables) -> Config:
    return Config.load(variables, env_file=None)


@pytest.fixture
async def scene(config) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        page = await stack.enter_async_context(Dashboard(0))
        await stack.enter_async_context(page.live(config, limits=[(OWN, APP_KEY)]))
        rt = await stack.enter_async_context(Runtime(config, vitals="collector 7"))
        yield Scene(page, rt)
