"""TLS: servers that know only RSA key exchange, and verification that stays on."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme
from scripted_server import serving

from aegis.errors import HttpConnectionError
from aegis.http import HttpClient, Ok, Profile
from aegis.http._wire import legacy_rsa_context

RSA_ONLY = "AES256-GCM-SHA384"


async def test_a_profile_chooses_the_tls_of_its_upstream(tmp_path, monkeypatch):
    """`tls="legacy_rsa"` reaches the server that the default list cannot, and its certificate is still verified."""
    authority, server_tls = trustme.CA(key_type=trustme.KeyType.RSA), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA).configure_cert(server_tls)
    server_tls.maximum_version = ssl.TLSVersion.TLSv1_2
    server_tls.set_ciphers(RSA_ONLY)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    legacy = Profile("old", lambda _request, _response: Ok(), tls="legacy_rsa")
    async with serving(ssl=server_tls) as server:
        async with HttpClient() as http:
            with pytest.raises(HttpConnectionError):
                await http.without_retry().with_profile(legacy).get(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with HttpClient() as http:
            with pytest.raises(HttpConnectionError):
                await http.without_retry().get(server.url)
            assert (await http.with_profile(legacy).get(server.url)).status == 200


async def test_a_server_with_rsa_key_exchange_only_is_reached_and_still_verified(tmp_path):
    """Python's default list is refused, ours is accepted, and an unknown authority is refused by both."""
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", key_type=trustme.KeyType.RSA).configure_cert(server_tls)
    server_tls.maximum_version = ssl.TLSVersion.TLSv1_2
    server_tls.set_ciphers(RSA_ONLY)
    cafile = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(cafile)

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()
        await writer.wait_closed()

    listener = await asyncio.start_server(serve, "localhost", 0, ssl=server_tls)
    url = f"https://localhost:{listener.sockets[0].getsockname()[1]}/"
    async with HttpClient() as http:
        once = http.without_retry()
        response = await once.with_tls(legacy_rsa_context(str(cafile))).get(url)
        assert response.content == b"ok"
        for context in (ssl.create_default_context(cafile=str(cafile)), legacy_rsa_context()):
            with pytest.raises(HttpConnectionError):
                await once.with_tls(context).get(url)
    listener.close()
    await listener.wait_closed()
