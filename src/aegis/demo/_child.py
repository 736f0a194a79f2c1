"""
The thread between a child process and the demo: lines of JSON up its stdout, one word down its stdin.

The child owns nothing that must survive it. It ends in order on the word `stop`, and at once when its stdin closes,
which is what the kernel does when the demo is killed: nothing is orphaned.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

_ABANDONED_EXIT_CODE = 1


class Parent:
    """The demo as seen from a child: tell it how far you are, learn when to stop."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()

    def tell(self, kind: str, **fields: Any) -> None:
        """Send one record up. A parent that is gone is noticed by `watch`, not here."""
        line = msgspec.json.encode({"kind": kind, **fields}) + b"\n"
        try:
            os.write(sys.stdout.fileno(), line)  # below PIPE_BUF, so a line is never torn
        except BrokenPipeError:
            os._exit(_ABANDONED_EXIT_CODE)

    async def watch(self) -> None:
        """Set `stopping` on the word `stop`; leave at once when the parent is gone."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            if line.strip() == b"stop":
                self.stopping.set()
        os._exit(_ABANDONED_EXIT_CODE)


def run_child(main: Callable[[Parent], Awaitable[None]]) -> None:
    """Run `main` until it returns; an error becomes one `error` record and exit code 1."""

    async def supervised() -> int:
        parent = Parent()
        watcher = asyncio.create_task(parent.watch())
        try:
            await main(parent)
        except Exception as exc:  # noqa: BLE001 - the edge of the process: every error becomes one line for the parent
            first = first_of(exc)
            parent.tell("error", message=f"{type(first).__name__}: {first}"[:1000])
            return 1
        finally:
            watcher.cancel()
        return 0

    raise SystemExit(asyncio.run(supervised()))


def first_of(exc: BaseException) -> BaseException:
    """What went wrong first, out of the groups that tasks wrap it in."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
