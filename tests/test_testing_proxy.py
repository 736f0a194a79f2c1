"""FaultProxy does to a connection exactly what it was told, between a plain client and a real echo server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aegis.errors import ClosedError
from aegis.testing import Direction, FaultProxy, until


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[str]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture
async def proxy(echo: str) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(echo) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    if proxy.path:
        reader, writer = await asyncio.open_unix_connection(proxy.path)
    else:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float = 5.0) -> bool:
    writer.write(b"hello")
    try:
        async with asyncio.timeout(timeout):
            return await reader.readexactly(5) == b"hello"
    except TimeoutError:
        return False


async def test_a_healthy_proxy_forwards_every_byte_both_ways(proxy: FaultProxy) -> None:
    """A megabyte goes and comes back unchanged, and is counted."""
    async with connected(proxy) as (reader, writer):
        data = bytes(range(256)) * 4096
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        assert proxy.forwarded == {Direction.TO_SERVER: len(data), Direction.TO_CLIENT: len(data)}
        assert (proxy.accepted, proxy.connections) == (1, 1)
    await until(lambda: proxy.connections == 0)


async def test_a_unix_socket_can_be_listened_on(echo: str, tmp_path: Path) -> None:
    """With `listen` the proxy is a unix socket, gone after close."""
    path = tmp_path / "proxy.sock"
    async with FaultProxy(echo, listen=str(path)) as proxy, connected(proxy) as (reader, writer):
        assert proxy.address == str(path)
        assert await answers(reader, writer)
        proxy.reset()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert not path.exists()


async def test_refuse_refuses_new_connections_and_spares_open_ones(proxy: FaultProxy) -> None:
    """After accept() the same port serves again."""
    async with connected(proxy) as (reader, writer):
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, proxy.port)
        assert await answers(reader, writer)
        proxy.heal()
        async with connected(proxy) as (again_reader, again_writer):
            assert await answers(again_reader, again_writer)


async def test_reset_is_a_reset_and_disconnect_is_an_orderly_end(proxy: FaultProxy) -> None:
    """The client sees ECONNRESET after reset() and end of file after disconnect()."""
    async with connected(proxy) as (reader, writer):
        assert await answers(reader, writer)
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            await reader.read()
    async with connected(proxy) as (reader, writer):
        assert await answers(reader, writer)
        assert proxy.disconnect() == 1
        assert await reader.read() == b""


async def test_reset_after_cuts_in_the_middle_of_an_answer(proxy: FaultProxy) -> None:
    """Exactly the bytes asked for arrive, then the connection is reset; the next connection is whole."""
    proxy.reset_after(3)
    async with connected(proxy) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(3) == b"hel"
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    async with connected(proxy) as (reader, writer):
        assert await answers(reader, writer)
    assert proxy.forwarded[Direction.TO_CLIENT] == 8


async def test_frozen_connections_are_open_but_silent_until_healed(proxy: FaultProxy) -> None:
    """Nothing arrives and nothing ends; new connections are accepted and silent; after heal() all of it arrives."""
    async with connected(proxy) as (reader, writer):
        assert await answers(reader, writer)
        proxy.freeze()
        assert not await answers(reader, writer, timeout=0.1)
        async with connected(proxy) as (deaf_reader, deaf_writer):
            assert not await answers(deaf_reader, deaf_writer, timeout=0.1)
            proxy.heal()
            assert await deaf_reader.readexactly(5) == b"hello"
        assert await reader.readexactly(5) == b"hello"


async def test_a_partition_silences_those_of_one_address_only(proxy: FaultProxy) -> None:
    """Old connections and new ones from there; everybody else goes on; after heal() what was held arrives."""
    there = await asyncio.open_connection(proxy.host, proxy.port, local_addr=("127.0.0.2", 0))
    assert await answers(*there)
    async with connected(proxy) as here:
        proxy.freeze("127.0.0.2")
        new = await asyncio.open_connection(proxy.host, proxy.port, local_addr=("127.0.0.2", 0))
        assert not await answers(*there, timeout=0.1)
        assert not await answers(*new, timeout=0.1)
        assert await answers(*here)
        proxy.heal()
        assert await there[0].readexactly(5) == await new[0].readexactly(5) == b"hello"
    there[1].close()
    new[1].close()


async def test_one_direction_can_be_lost(proxy: FaultProxy) -> None:
    """Requests still arrive at the server, answers vanish."""
    async with connected(proxy) as (reader, writer):
        proxy.drop(Direction.TO_CLIENT)
        assert not await answers(reader, writer, timeout=0.1)
        assert proxy.forwarded == {Direction.TO_SERVER: 5, Direction.TO_CLIENT: 0}


async def test_slow_delays_each_chunk(proxy: FaultProxy) -> None:
    """A round trip takes at least the delay in each direction."""
    async with connected(proxy) as (reader, writer):
        assert await answers(reader, writer)
        proxy.slow(0.05)
        started = asyncio.get_running_loop().time()
        assert await answers(reader, writer)
        assert asyncio.get_running_loop().time() - started >= 0.1
        proxy.slow(0.01, chunk_bytes=1000)
        started = asyncio.get_running_loop().time()
        writer.write(bytes(20_000))
        await reader.readexactly(20_000)
        assert asyncio.get_running_loop().time() - started >= 0.2


async def test_a_dead_target_ends_the_connection() -> None:
    """When the server cannot be reached the client's connection is closed, as behind a load balancer."""
    async with FaultProxy("127.0.0.1:1") as proxy, connected(proxy) as (reader, _):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_close_ends_everything_and_a_closed_proxy_does_not_listen(echo: str) -> None:
    """close() leaves no connection, can be called twice, and accept() after it is an error."""
    proxy = FaultProxy(echo)
    async with proxy, connected(proxy) as (reader, writer):
        assert await answers(reader, writer)
        proxy.freeze()
        await proxy.close()
        assert proxy.connections == 0
        await proxy.close()
    with pytest.raises(ClosedError):
        proxy.accept()
    assert "closed" in repr(proxy)
