"""Proxies from the environment: a real one on a real socket, for http and, through CONNECT, for https."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest
import trustme
from scripted_server import serving

from aegis.config import HttpConfig
from aegis.errors import ConfigError, HttpConnectionError
from aegis.http import HttpClient


class Proxy:
    """Forwards absolute requests and tunnels; `seen` holds the heads."""

    def __init__(self):
        self.seen, self.tasks, self.refuse = [], set(), False

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.seen.append(head)
            method, target, _ = head.split(b" ", 2)
            if self.refuse:
                writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            else:
                place = target if method == b"CONNECT" else target.split(b"/")[2]
                host, _, port = place.decode().partition(":")
                inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
                if method == b"CONNECT":
                    writer.write(b"HTTP/1.1 200 Established\r\n\r\n")
                else:
                    inner_writer.write(head)
                await asyncio.gather(self.pump(reader, inner_writer), self.pump(inner_reader, writer))
        writer.close()

    async def pump(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()


@pytest.fixture
async def proxy(monkeypatch):
    made = Proxy()
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "no_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://me:s3cret@{address}")
    monkeypatch.setenv("HTTPS_PROXY", address)
    yield made
    listener.close()
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


def client(**options):
    return HttpClient(HttpConfig(**options))


async def test_requests_go_through_the_proxy_of_the_environment(server, proxy):
    """With its login, and without ours in any message."""
    async with client(proxy_from_env=True) as http:
        assert (await http.get(f"{server.url}/x")).status == 200
        assert proxy.seen[0].startswith(f"GET {server.url}/x HTTP/1.1".encode())
        assert b"Proxy-Authorization: Basic bWU6czNjcmV0" in proxy.seen[0]
        assert "s3cret" not in repr(http._shared.upstreams)


async def test_https_goes_through_a_tunnel(proxy):
    """CONNECT, then TLS with the upstream itself, verified."""
    authority, server_tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with serving(ssl=server_tls) as server, client(proxy_from_env=True) as http:
        assert (await http.with_tls(trusting).get(server.url)).status == 200
        assert proxy.seen[0].startswith(b"CONNECT 127.0.0.1:")
        with pytest.raises(HttpConnectionError):
            await http.without_retry().get(server.url)


async def test_a_proxy_that_refuses_is_a_connection_error_and_an_order_has_not_left(proxy):
    """407 on CONNECT: nothing reached the upstream, so nothing is ambiguous; the login is in no message."""
    proxy.refuse = True
    async with client(proxy_from_env=True) as http:
        with pytest.raises(HttpConnectionError) as caught:
            await http.without_retry().post("https://127.0.0.1:9/order", b"buy")
        assert "s3cret" not in str(caught.value)


async def test_no_proxy_and_the_switch_are_honoured(server, proxy, monkeypatch):
    """Off by default; on, NO_PROXY names the exceptions."""
    async with client() as http:
        await http.get(server.url)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    async with client(proxy_from_env=True) as http:
        await http.get(server.url)
    assert (proxy.seen, len(server.requests)) == ([], 2)


async def test_a_proxy_that_is_down_is_a_connection_error(server, monkeypatch, proxy):
    """Its address may be shown, its login never."""
    monkeypatch.setenv("HTTP_PROXY", "http://me:s3cret@127.0.0.1:1")
    async with client(proxy_from_env=True) as http:
        with pytest.raises(HttpConnectionError) as caught:
            await http.without_retry().get(server.url)
    assert "127.0.0.1:1" in str(caught.value)
    assert "s3cret" not in str(caught.value)


async def test_a_kind_of_proxy_that_is_not_spoken_is_said_at_once(monkeypatch, proxy):
    """Not a direct connection behind the operator's back."""
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(ConfigError, match="HTTPS_PROXY: a proxy of kind 'socks5'"):
        async with client(proxy_from_env=True):
            pass
