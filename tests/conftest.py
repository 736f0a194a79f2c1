"""Real servers for every test: one Valkey and one PostgreSQL per test process, emptied between tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aegis.embedded import EmbeddedPostgres, EmbeddedValkey


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[EmbeddedValkey]:
    """A Valkey shared by this test process, on a unix socket and on the loopback."""
    with EmbeddedValkey(port=0) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL shared by this test process. Tests create tables of their own names or in their own schema."""
    with EmbeddedPostgres() as server:
        yield server
