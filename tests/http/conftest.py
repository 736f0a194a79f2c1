"""A scripted server and a client with fast retries, for every test of this room."""

from __future__ import annotations

import pytest
from scripted_server import FAST, serving

from aegis.config import HttpConfig
from aegis.http import HttpClient


@pytest.fixture
async def server():
    async with serving() as made:
        yield made


@pytest.fixture
async def http():
    config = HttpConfig(max_body=100_000, timeout=5.0, attempt_timeout=2.0, connect_timeout=1.0)
    async with HttpClient(config) as client:
        yield client.with_retry(FAST)
