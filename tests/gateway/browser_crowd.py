"""A crowd of WebSocket clients in one process: `python browser_crowd.py HOST PORT CLIENTS DEAF`; JSON lines out."""

from __future__ import annotations

import asyncio
import json
import socket
import sys

HANDSHAKE = (
    "GET /quotes HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client by hand, with a small receive buffer; those that never read fill it soon."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=16 * 1024)
    writer.write(HANDSHAKE.format(host=host, port=port).encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def read(reader: asyncio.StreamReader, newest: list[int], at: int) -> None:
    """Follow the number in the messages, until the end."""
    while True:
        head = await reader.readexactly(2)
        size = head[1] & 127
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await reader.readexactly(8), "big")
        body = await reader.readexactly(size)
        if head[0] == 0x81:
            for update in json.loads(body)["updates"]:
                newest[at] = max(newest[at], update["value"][0])


async def main(host: str, port: str, clients: str, deaf: str) -> None:
    """Connect all, then say on every line from the parent how far the readers have come: the slowest of them."""
    reading, streams = int(clients) - int(deaf), []
    newest = [-1] * reading
    for _ in range(int(clients)):
        streams.append(await connect(host, int(port)))
    tasks = [asyncio.create_task(read(reader, newest, at)) for at, (reader, _) in enumerate(streams[:reading])]
    loop = asyncio.get_running_loop()
    while True:
        sys.stdout.write(json.dumps({"slowest": min(newest), "ended": sum(task.done() for task in tasks)}) + "\n")
        sys.stdout.flush()
        if not await loop.run_in_executor(None, sys.stdin.readline):
            return


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
