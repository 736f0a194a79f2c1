"""A real server on a real socket that does what the test tells it to, request by request; and a limiter that counts."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from aegis.backoff import Backoff
from aegis.errors import RateLimitTimeoutError
from aegis.http import RetryPolicy
from aegis.testing import until

FAST = RetryPolicy(backoff=Backoff(0.001, 0.002), throttle_backoff=Backoff(0.001, 0.002))


def answer(status: int = 200, body: bytes = b"{}", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def hang(first: bytes = b"", gate: asyncio.Event | None = None, then: bytes = b""):
    """A step that writes `first`, waits for the gate (for ever without one), then writes the rest."""

    async def step(writer):
        writer.write(first)
        await (gate or asyncio.Event()).wait()
        writer.write(then)

    return step


@dataclass
class Server:
    """Answers each request with the next step: bytes, None to drop the connection, or a coroutine of the writer."""

    steps: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    delay_s: float = 0.0
    connections: int = 0
    tasks: set = field(default_factory=set)
    url: str = ""
    chunked: bool = False  #: bodies come in chunks; they are kept as they are on the wire
    routes: dict = field(default_factory=dict)  #: steps that belong to a path, and are not used up

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        self.connections += 1
        try:
            await self.answer_all(reader, writer)
        except asyncio.CancelledError:
            pass  # the fixture ends us; 3.11's streams report a cancelled handler as an error
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def answer_all(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(sizes[0].split(b":")[1])) if sizes else b""
                if self.chunked:
                    body = await reader.readuntil(b"\r\n0\r\n\r\n")
                self.requests.append(head + body)
                await asyncio.sleep(self.delay_s)
                path = head.split(b" ", 2)[1].decode()
                step = self.routes[path] if path in self.routes else self.steps.pop(0) if self.steps else answer()
                if step is None:
                    break
                if callable(step):
                    await step(writer)
                else:
                    writer.write(step)

    async def received(self, count):
        """Return when that many requests have come."""
        await until(lambda: len(self.requests) >= count)


@contextlib.asynccontextmanager
async def serving(**options):
    """A `Server`, listening on the loopback."""
    made = Server()
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0, **options)
    scheme = "https" if options.get("ssl") else "http"
    made.url = f"{scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        listener.close()
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)


@dataclass
class CountingLimiter:
    permits: int = 0
    held: list = field(default_factory=list)
    refuse: bool = False
    gate: asyncio.Event | None = None
    waiting: int = 0

    async def wait(self, limit, key="", cost=1, timeout=None):
        if self.refuse:
            raise RateLimitTimeoutError(limit.name, timeout, 9.0)
        if self.gate is not None:
            self.waiting += 1
            try:
                await self.gate.wait()
            finally:
                self.waiting -= 1
        self.permits += 1
        return 0.0

    async def hold(self, limit, seconds, key=""):
        self.held.append(seconds)


class Limit:
    name, hold_max = "test", 60.0
