"""
What you need to test a service that lives on sockets: a proxy that misbehaves on command.

`FaultProxy` stands between a client and a real server (Redis, PostgreSQL, HTTP: it forwards bytes and understands
none) and does what networks do: refuse, reset in the middle of a reply, go deaf without a word (half-open), slow down,
lose one direction. It runs in your event loop, on asyncio's own loop as on uvloop. No room of aegis imports it.

Rejected: patching the client (tests the patch), toxiproxy (a server to install), iptables (needs root).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from aegis.errors import ClosedError

_READ_BYTES = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close() sends RST instead of FIN


class Direction(enum.Enum):
    """Which way bytes flow through the proxy."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"


class FaultProxy:
    """
    A TCP or unix proxy in front of `target` ("host:port" or the path of a unix socket).

    It listens on a free port of the loopback, or on the unix socket `listen` where given. Faults hold for the
    connections that are open and for those to come, until `heal()`. Close the proxy, not its connections.

        async with FaultProxy("127.0.0.1:6379") as proxy:
            ...  # connect to proxy.host, proxy.port
            proxy.freeze()  # from now on: open, but deaf and mute
            proxy.heal()
    """

    def __init__(self, target: str, *, listen: str | None = None) -> None:
        self.target, self.path = target, listen
        self.host, self.port = "127.0.0.1", 0
        self.accepted = 0  #: connections accepted since the start
        self.forwarded = dict.fromkeys(Direction, 0)  #: bytes forwarded since the start
        self._listener: socket.socket | None = None
        self._pairs: set[_Pair] = set()
        self._open = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._frozen: frozenset[str] = frozenset()  # while it does not flow: whose connections; empty: all
        self._delay_s, self._chunk_bytes = 0.0, _READ_BYTES
        self._dropped: frozenset[Direction] = frozenset()
        self._reset_after: dict[Direction, int] = {}

    async def __aenter__(self) -> Self:
        self._open = True
        self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "closed" if not self._open else "refusing" if self._listener is None else "listening"
        return f"<FaultProxy {self.address} -> {self.target} {state} connections={len(self._pairs)}>"

    @property
    def address(self) -> str:
        """Where clients connect: "host:port", or the path of the unix socket."""
        return self.path or f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The address as a REDIS_URL."""
        return f"unix://{self.path}" if self.path else f"redis://{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._pairs)

    # --- the faults ---

    def refuse(self) -> None:
        """Stop listening: new connections are refused. Open ones live on (end them with `reset` or `disconnect`)."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
            if self.path is not None:
                _unlink(self.path)

    def accept(self) -> None:
        """Listen (again), at the same address."""
        if not self._open:
            raise ClosedError("FaultProxy")
        if self._listener is None:
            self._listener = self._listen()
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def reset(self) -> int:
        """Cut every open connection at once, with a TCP reset on the client's side. Returns how many."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.cut(reset=True)
        return len(pairs)

    def disconnect(self) -> int:
        """End every open connection in order (FIN), as a server does that shuts down. Returns how many."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.cut(reset=False)
        return len(pairs)

    def reset_after(self, count_bytes: int, direction: Direction = Direction.TO_CLIENT) -> None:
        """Forward that many more bytes, then reset the connection: the way to be cut in the middle of a reply."""
        self._reset_after[direction] = count_bytes

    def freeze(self, *hosts: str) -> None:
        """
        Half-open: nothing flows either way, nobody is told, and new connections get no answer.

        With `hosts` only for clients at these addresses; on the loopback a client can be told to come from 127.0.0.2.
        """
        self._frozen = frozenset(hosts)
        self._flowing.clear()

    def slow(self, delay_s: float, *, chunk_bytes: int = _READ_BYTES) -> None:
        """Hold every chunk back for `delay_s`: a delay for what is small, `chunk_bytes / delay_s` for what is large."""
        self._delay_s, self._chunk_bytes = delay_s, chunk_bytes

    def drop(self, *directions: Direction) -> None:
        """Lose everything that flows in these directions. What is lost stays lost: reset before you go on."""
        self._dropped = frozenset(directions)

    def heal(self) -> None:
        """End all faults. What was frozen flows on; what was cut or dropped stays so."""
        self._delay_s, self._chunk_bytes, self._dropped = 0.0, _READ_BYTES, frozenset()
        self._reset_after.clear()
        self._flowing.set()
        self.accept()

    async def close(self) -> None:
        """Stop listening and cut every connection. Idempotent."""
        self._open = False
        self.refuse()
        self.reset()
        while self._pairs:
            await asyncio.gather(*(pair.task for pair in self._pairs if pair.task), return_exceptions=True)

    # --- the work ---

    def _listen(self) -> socket.socket:
        if self.path is not None:
            _unlink(self.path)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(self.path)
        else:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            self.port = listener.getsockname()[1]
        listener.listen(128)
        listener.setblocking(False)
        return listener

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, name = listener.accept()
        except OSError:
            return  # it left before we came
        self.accepted += 1
        pair = _Pair(client, name[0] if self.path is None else "")
        self._pairs.add(pair)
        pair.task = asyncio.create_task(self._serve(pair), name="fault proxy connection")

    async def _serve(self, pair: _Pair) -> None:
        try:
            await self._may_flow(pair)
            await pair.connect(self.target)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(pair, pair.client, pair.server, Direction.TO_SERVER))
                pumps.create_task(self._pump(pair, pair.server, pair.client, Direction.TO_CLIENT))
        except* (OSError, asyncio.CancelledError):
            pass  # one side is gone, or we were told to cut
        finally:
            self._pairs.discard(pair)
            pair.close()

    async def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._may_flow(pair)
            data = await loop.sock_recv(source, _READ_BYTES)
            await self._delay(pair)
            if not data:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return None
            while data:
                chunk, data = data[: self._chunk_bytes], data[self._chunk_bytes :]
                if not await self._forward(chunk, sink, direction):
                    return pair.cut(reset=True)
                if data:
                    await self._delay(pair)

    async def _may_flow(self, pair: _Pair) -> None:
        while not self._flowing.is_set() and (not self._frozen or pair.host in self._frozen):
            await self._flowing.wait()

    async def _delay(self, pair: _Pair) -> None:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        await self._may_flow(pair)

    async def _forward(self, chunk: bytes, sink: socket.socket, direction: Direction) -> bool:
        """Send the chunk on, or lose it; False when the connection shall be reset after it."""
        if direction in self._dropped:
            return True
        left = self._reset_after.get(direction)
        cut = left is not None and len(chunk) >= left
        if cut:
            del self._reset_after[direction]
            chunk = chunk[:left]
        elif left is not None:
            self._reset_after[direction] = left - len(chunk)
        await asyncio.get_running_loop().sock_sendall(sink, chunk)
        self.forwarded[direction] += len(chunk)
        return not cut


class _Pair:
    """The two sockets of one connection, and the task that owns and closes them."""

    def __init__(self, client: socket.socket, host: str) -> None:
        self.client, self.host = client, host
        self.server: socket.socket = socket.socket()  # replaced by connect()
        self.task: asyncio.Task[None] | None = None
        client.setblocking(False)
        _no_delay(client)

    async def connect(self, target: str) -> None:
        """Open the server's side."""
        loop = asyncio.get_running_loop()
        self.server.close()
        if "/" in target:
            self.server = socket.socket(socket.AF_UNIX)
            self.server.setblocking(False)
            await loop.sock_connect(self.server, target)
        else:
            host, _, port = target.rpartition(":")
            self.server = socket.socket()
            self.server.setblocking(False)
            await loop.sock_connect(self.server, (host, int(port)))
            _no_delay(self.server)

    def cut(self, *, reset: bool) -> None:
        """Ask the owner to close both sockets, the client's with a reset where asked."""
        if reset and self.client.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        """Close both sockets."""
        self.client.close()
        self.server.close()


def _no_delay(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)


__all__ = ["Direction", "FaultProxy"]
