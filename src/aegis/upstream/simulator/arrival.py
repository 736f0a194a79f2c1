"""
When a request arrived: by the kernel's clock, not by the moment at which a busy process comes to read it.

On Linux the socket says for every read when the last of its bytes came in (SO_TIMESTAMPNS, socket(7)); a simulator
that is kept from running answers late, but does not judge late. Elsewhere, and on other event loops than asyncio's own,
it is the moment of the read. Rejected: the start of the handler, which at 2,000 requests/s is milliseconds late.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections import deque
from typing import Any, Self

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

#: asm-generic/socket.h; Python has no name for it.
_SO_TIMESTAMPNS = 35
_STAMP = struct.Struct("@ll")  # seconds and nanoseconds, on the clock of the day
_ANCILLARY_BYTES = socket.CMSG_SPACE(_STAMP.size)
_BACKLOG = 1024
_NS = 1_000_000_000


class LastRead:
    """When the bytes came in that were read last, on any connection of one listener."""

    __slots__ = ("at_ns",)

    def __init__(self) -> None:
        self.at_ns = 0

    def take(self) -> int:
        """The moment; to be asked for right after the read, as the transport does."""
        at_ns, self.at_ns = self.at_ns, 0
        return at_ns or time.monotonic_ns()


class StampedSocket(socket.socket):
    """A listening socket whose connections note in `last_read` when the bytes that they read came in."""

    last_read: LastRead

    @classmethod
    def listening(cls, port: int) -> Self:
        """
        Listen on the loopback; 0 is a free port.

        Raises:
            OSError: the port cannot be had.
        """
        listener = cls(socket.AF_INET, socket.SOCK_STREAM)
        listener.last_read = LastRead()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform == "linux":  # its connections inherit it; from now on, so also for what is not accepted yet
                listener.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self.getsockname()[1]
        return port

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection, as one that notes too."""
        address: Any
        plain, address = super().accept()
        accepted = type(self)(plain.family, plain.type, plain.proto, plain.detach())
        accepted.last_read = self.last_read
        return accepted, address

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """What was received; `last_read` then knows when its last byte came in."""
        data: bytes
        data, ancillary, _, _ = self.recvmsg(bufsize, _ANCILLARY_BYTES, flags)
        self.last_read.at_ns = next((_monotonic_ns(stamp) for *_, stamp in ancillary), 0)
        return data


def _monotonic_ns(stamp: bytes) -> int:
    seconds: int
    nanoseconds: int
    seconds, nanoseconds = _STAMP.unpack(stamp)
    age_ns = time.time_ns() - (seconds * _NS + nanoseconds)
    return time.monotonic_ns() - max(0, age_ns)  # the clock of the day may have been set back


class StampingHandler(RequestHandler):
    """One connection; knows when each of its requests arrived."""

    def __init__(self, server: web.Server, last_read: LastRead, **options: Any) -> None:
        super().__init__(server, access_log=None, **options)  # type: ignore[arg-type]  # a log would show keys
        self._last_read = last_read
        self._arrivals: deque[int] = deque()

    def data_received(self, data: bytes) -> None:
        """Bytes were read; the requests that they complete arrived when the last of them did."""
        at_ns = self._last_read.take()
        before = len(self._messages)
        super().data_received(data)
        self._arrivals.extend([at_ns] * (len(self._messages) - before))

    def next_arrival_ns(self) -> int:
        """When the request that is handled next arrived."""
        return self._arrivals.popleft()


def arrival_ns(request: web.Request) -> int:
    """When the head of this request was complete, on the monotonic clock. Ask once per request, before any await."""
    connection = request.protocol
    assert isinstance(connection, StampingHandler)
    return connection.next_arrival_ns()
