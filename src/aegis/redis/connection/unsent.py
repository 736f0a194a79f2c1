"""How much of what was written the other side has not taken yet: asked of the kernel, where it tells."""

from __future__ import annotations

import asyncio
import contextlib
import sys

if sys.platform != "win32":
    import fcntl
    import termios


def unacknowledged_bytes(transport: asyncio.Transport | None) -> int:
    """Bytes that the transport holds and, on Linux, that the peer has not confirmed (`TIOCOUTQ`: tcp(7), unix(7))."""
    if transport is None:
        return 0
    queued = bytearray(4)
    if sys.platform != "win32":
        with contextlib.suppress(OSError, ValueError):  # no such call on this system; a socket closed a moment ago
            fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
    return transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)
