"""How a client logs in: passwords, ACL users, databases, names, TLS in both directions, and redis-py with the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tls_front import Tls, tls_front

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.errors import RedisUnavailableError
from aegis.redis import Redis


@pytest.fixture(scope="module")
def guarded_server() -> Iterator[EmbeddedValkey]:
    """A server with a password for everybody and a user of its own for the collector."""
    options = {"requirepass": "s3cret", "user": "collector on >c0llect ~quote:* +@all -flushall", "databases": "4"}
    with EmbeddedValkey(port=0, options=options) as server:
        yield server


async def refused(config: RedisConfig, *causes: str) -> None:
    """Opening fails at once, names address and cause, never the password, and leaves nothing open."""
    redis = Redis(config)
    async with asyncio.timeout(5):
        with pytest.raises(RedisUnavailableError) as caught:
            await redis.__aenter__()
    message = str(caught.value)
    assert config.address in message
    for cause in causes:
        assert cause in message
    for secret in ("s3cret", "wr0ng", "c0llect"):
        assert secret not in message
    assert redis.stats().state == "closed"


async def test_password_user_database_and_name_are_used(guarded_server: EmbeddedValkey) -> None:
    """The server sees the user, the database and the name; also through redis.raw, and through the unix socket."""
    port, settings = guarded_server.port, {"username": "collector", "password": "c0llect", "db": 2}
    for config in (
        RedisConfig(host="127.0.0.1", port=port, client_name="prices", **settings),
        RedisConfig(url=f"redis://collector:c0llect@127.0.0.1:{port}/2", client_name="prices"),
        RedisConfig(url=f"unix://collector:c0llect@{guarded_server.socket}?db=2", client_name="prices"),
    ):
        async with Redis(config) as redis:
            seen = (await redis.execute("CLIENT", "INFO")).decode()
            raw_seen = await redis.raw.client_info()
        for part in ("user=collector", "db=2", "name=prices"):
            assert part in seen.split()
        assert (raw_seen["user"], raw_seen["db"], raw_seen["name"]) == ("collector", 2, "prices")


async def test_a_refused_login_names_its_cause(guarded_server: EmbeddedValkey) -> None:
    """Wrong password, no password, unknown user, database that does not exist."""
    here = {"host": "127.0.0.1", "port": guarded_server.port}
    await refused(RedisConfig(password="wr0ng", **here), "AUTH refused: WRONGPASS")
    await refused(RedisConfig(**here), "NOAUTH")
    await refused(RedisConfig(username="nobody", password="s3cret", **here), "AUTH refused: WRONGPASS")
    await refused(RedisConfig(password="s3cret", db=9, **here), "SELECT refused: ERR DB index is out of range")


async def test_a_place_where_no_server_is_names_its_cause(tmp_path: Path) -> None:
    """No such name, no such socket, nothing listening, and something that is no Redis."""
    await refused(RedisConfig(host="no-such-host.invalid"), "host name cannot be resolved")
    await refused(RedisConfig(socket=str(tmp_path / "absent.sock")), "no such file or directory")
    await refused(RedisConfig(host="127.0.0.1", port=1), "connection refused")
    await refused(RedisConfig(host="x" * 70 + ".example"), "")

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await refused(RedisConfig(host="127.0.0.1", port=port), "malformed reply")


# --- TLS ---


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


async def test_tls_is_spoken_with_the_configured_authority(valkey_server: EmbeddedValkey, tls: Tls) -> None:
    """rediss:// with our CA: commands, a reply larger than a TLS record, and redis.raw work."""
    async with tls_front(valkey_server, tls.server_context("localhost")) as port:
        config = RedisConfig(url=f"rediss://localhost:{port}", tls_ca_file=tls.ca_file)
        async with Redis(config) as redis:
            big = bytes(range(256)) * 1000
            assert await redis.execute("SET", "k", big) == b"OK"
            assert await redis.execute("GET", "k") == big
            assert await redis.raw.get("k") == big


async def test_a_certificate_for_another_host_is_refused(valkey_server: EmbeddedValkey, tls: Tls) -> None:
    """Right authority, wrong name: the error says so."""
    async with tls_front(valkey_server, tls.server_context("redis.example")) as port:
        await refused(RedisConfig(url=f"rediss://localhost:{port}", tls_ca_file=tls.ca_file), "TLS", "ostname mismatch")


async def test_an_unknown_authority_is_refused(valkey_server: EmbeddedValkey, tls: Tls, tmp_path: Path) -> None:
    """Without our CA the certificate is not accepted, and plain text to a TLS port fails, too."""
    async with tls_front(valkey_server, tls.server_context("localhost")) as port:
        await refused(RedisConfig(url=f"rediss://localhost:{port}"), "TLS certificate not accepted")
        await refused(RedisConfig(host="127.0.0.1", port=port, connect_timeout=1.0), "")
    await refused(RedisConfig(url="rediss://localhost:1", tls_ca_file=tmp_path / "absent.pem"), "absent.pem")


async def test_a_client_certificate_is_shown_when_asked_for(valkey_server: EmbeddedValkey, tls: Tls) -> None:
    """With it the login works, also for redis.raw; without it the connection is unavailable."""
    async with tls_front(valkey_server, tls.server_context("localhost", ask=True)) as port:
        url = f"rediss://localhost:{port}"
        config = RedisConfig(url=url, tls_ca_file=tls.ca_file, tls_cert_file=tls.cert_file, tls_key_file=tls.key_file)
        async with Redis(config) as redis:
            assert await redis.execute("PING") == b"PONG"
            assert await redis.raw.ping()
        await refused(RedisConfig(url=url, tls_ca_file=tls.ca_file), "")
