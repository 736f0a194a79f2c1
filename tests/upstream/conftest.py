"""The world of this room's tests: see `upstream_world.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from upstream_world import FAST, World

from aegis.config import HttpConfig
from aegis.http import HttpClient
from aegis.redis import Cache, RateLimiter
from aegis.upstream.simulator import Rules, Simulator


@pytest.fixture
def rules() -> Rules:
    """Override it with `@pytest.mark.parametrize("rules", [...])`."""
    return Rules(kis_per_second=1000, token_interval_s=0.5)


@pytest.fixture
async def world(redis, valkey_server, rules) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(Simulator(rules=rules))
        http = await stack.enter_async_context(HttpClient(HttpConfig()))
        yield World(simulator, http.with_retry(FAST), redis, RateLimiter(redis), Cache(redis), stack, valkey_server.url)
