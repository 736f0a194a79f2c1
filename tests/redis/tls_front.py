"""TLS in front of a real server: the wheel's Valkey is built without it, so a proxy speaks it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import trustme

from aegis.embedded import EmbeddedValkey


class Tls:
    """A certificate authority, a client certificate, and files of both."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file, self.cert_file, self.key_file = (directory / name for name in ("ca.pem", "cert.pem", "key.pem"))
        self.ca.cert_pem.write_to_path(self.ca_file)
        own = self.ca.issue_cert("client.example")
        own.cert_chain_pems[0].write_to_path(self.cert_file)
        own.private_key_pem.write_to_path(self.key_file)

    def server_context(self, *names: str, ask: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(*names).configure_cert(context)
        if ask:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_TLS_HANDSHAKE = b"\x16"  #: first byte of a client that speaks TLS (RFC 8446, 5.1)


@contextlib.asynccontextmanager
async def tls_front(server: EmbeddedValkey, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Terminate TLS in front of `server`; gives the port."""

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        if not isinstance(context.get("exception"), OSError):  # a handshake that the client ended is no error here
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(report)
    front = await asyncio.start_server(_forward_to(server), "127.0.0.1", 0, ssl=context)
    async with front:
        yield front.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def mixed_front(server: EmbeddedValkey, context: ssl.SSLContext) -> AsyncIterator[int]:
    """As `tls_front`, but who does not speak TLS (replicas, Sentinels) is let through as well."""
    loop, tasks, serve = asyncio.get_running_loop(), set[asyncio.Task[None]](), _forward_to(server)

    async def welcome(client: socket.socket) -> None:
        while True:
            try:
                first = client.recv(1, socket.MSG_PEEK)
                break
            except BlockingIOError:
                await asyncio.sleep(0.005)
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve)
        spoken = context if first == _TLS_HANDSHAKE else None
        with contextlib.suppress(OSError):  # as above
            await loop.connect_accepted_socket(lambda: protocol, client, ssl=spoken)

    async def accept(listener: socket.socket) -> None:
        while True:
            client, _ = await loop.sock_accept(listener)
            client.setblocking(False)
            tasks.add(task := asyncio.create_task(welcome(client)))
            task.add_done_callback(tasks.discard)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        tasks.add(asyncio.create_task(accept(listener)))
        try:
            yield listener.getsockname()[1]
        finally:
            ending = [task for task in tasks if task.cancel()]
            await asyncio.gather(*ending, return_exceptions=True)


def _forward_to(server: EmbeddedValkey) -> Serve:
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(server.socket)
        await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))

    return serve
