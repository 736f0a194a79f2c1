"""Proxies from the environment: a real one on a real socket, for http and, through CONNECT, for https."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl

import pytest
import trustme
from scripted_server import serving

from aegis.config import HttpConfig
from aegis.errors import ConfigError, HttpConnectionError
from aegis.http import HttpClient
from aegis.http._proxy import proxy_for


class Proxy:
    """Forwards absolute requests and tunnels to `target`, whatever their host; `seen` holds the heads."""

    def __init__(self):
        self.seen, self.tasks, self.refuse, self.target = [], set(), False, ""

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.seen.append(head)
            method = head.split(b" ", 1)[0]
            if self.refuse:
                writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            else:
                host, _, port = self.target.rpartition("/")[2].partition(":")
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
    """By default, as Go, curl and httpx do it; with its login, and without it in any message. Not to this host."""
    proxy.target = server.url
    async with client() as http:
        assert (await http.get("http://upstream.test/x")).status == 200
        assert proxy.seen[0].startswith(b"GET http://upstream.test/x HTTP/1.1")
        assert b"Proxy-Authorization: Basic bWU6czNjcmV0" in proxy.seen[0]
        assert "s3cret" not in repr(http._settings.upstreams) + repr(http.stats())
        await http.get(server.url)
        await http.get(server.url.replace("127.0.0.1", "localhost"))
        assert (len(proxy.seen), len(server.requests)) == (1, 3)


async def test_https_goes_through_a_tunnel(proxy):
    """CONNECT, then TLS with the upstream itself, verified."""
    authority, server_tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("upstream.test").configure_cert(server_tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with serving(ssl=server_tls) as server, client() as http:
        proxy.target = server.url
        assert (await http.with_tls(trusting).get("https://upstream.test/")).status == 200
        assert proxy.seen[0].startswith(b"CONNECT upstream.test:443")
        with pytest.raises(HttpConnectionError):
            await http.without_retry().get("https://upstream.test/")
        assert len(server.requests) == 1


async def test_a_proxy_that_refuses_is_a_connection_error_and_an_order_has_not_left(proxy):
    """407 on CONNECT: nothing reached the upstream, so nothing is ambiguous; the login is in no message."""
    proxy.refuse = True
    async with client() as http:
        with pytest.raises(HttpConnectionError) as caught:
            await http.without_retry().post("https://upstream.test/order", b"buy")
        assert "s3cret" not in str(caught.value)


async def test_no_proxy_and_the_switch_are_honoured(server, proxy, monkeypatch):
    """Nobody but the proxy knows this name, so a call that does not go there fails."""
    proxy.target = server.url
    async with client(proxy_from_env=False) as http:
        with pytest.raises(HttpConnectionError):
            await http.without_retry().get("http://upstream.test/")
    monkeypatch.setenv("NO_PROXY", "example.org,.test")
    async with client() as http:
        with pytest.raises(HttpConnectionError):
            await http.without_retry().get("http://upstream.test/")
    assert proxy.seen == []


async def test_a_proxy_for_everything_is_used_where_no_other_is_named(server, proxy, monkeypatch):
    """ALL_PROXY stands behind the two of the schemes."""
    proxy.target = server.url
    monkeypatch.setenv("ALL_PROXY", f"http://{os.environ['HTTPS_PROXY']}")
    monkeypatch.delenv("HTTP_PROXY")
    async with client() as http:
        assert (await http.get("http://upstream.test/x")).status == 200
    assert len(proxy.seen) == 1


async def test_a_proxy_that_is_down_is_a_connection_error(monkeypatch, proxy):
    """Its address may be shown, its login never."""
    monkeypatch.setenv("HTTP_PROXY", "http://me:s3cret@127.0.0.1:1")
    async with client() as http:
        with pytest.raises(HttpConnectionError) as caught:
            await http.without_retry().get("http://upstream.test/")
    assert "127.0.0.1:1" in str(caught.value)
    assert "s3cret" not in str(caught.value)


async def test_a_kind_of_proxy_that_is_not_spoken_is_said_at_once(monkeypatch, proxy):
    """Not a direct connection behind the operator's back."""
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(ConfigError, match=r"HTTPS_PROXY: a proxy of kind 'socks5'.*HTTP_PROXY_FROM_ENV=false"):
        async with client():
            pass


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost:80", True),
        ("127.3.2.1:8080", True),
        ("[::1]:443", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("[bad", False),
        ("", False),
    ],
)
def test_this_host_is_known_by_name_and_address(host, here):
    """Whatever the port."""
    assert (proxy_for("http://x/", host, {"http": "http://p:1"}) is None) == here
