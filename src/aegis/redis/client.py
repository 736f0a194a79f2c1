"""
The shared connection to Redis: `execute` for commands, `run` for scripts, `raw` for everything exotic.

One link per object; a lost link fails what was in flight with `ServerLostError` and the next command makes a new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import hiredis
import redis.asyncio

from aegis.config import RedisConfig
from aegis.errors import ClosedError, ServerLostError, ServerReplyError
from aegis.redis._link import Link, Reply, open_link, pack
from aegis.redis._script import Script

Argument = str | bytes | int | float
Command = Sequence[Argument]


class Redis:
    """
    A connection that all tasks share.

    Disabled (`REDIS_ENABLED=false`), it does no I/O: `execute` and `run` give None, `ping` gives 0.0.
    """

    def __init__(self, config: RedisConfig | None = None) -> None:
        self.config = config or RedisConfig()
        self._link: Link | None = None
        self._connecting: asyncio.Lock = asyncio.Lock()
        self._open = False
        self._raw: redis.asyncio.Redis | None = None
        self._on_close: list[Callable[[], Awaitable[None]]] = []

    async def __aenter__(self) -> Self:
        self._open = True
        if self.enabled:
            try:
                await self.ping()
            except BaseException:
                await self.close()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def enabled(self) -> bool:
        """False when REDIS_ENABLED=false: every feature is a no-op."""
        return self.config.enabled

    async def close(self) -> None:
        """End what works in the background on this connection (`on_close`), then close it. Idempotent."""
        try:
            await self._end_background()
        finally:
            await self._disconnect()

    def on_close(self, callback: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """
        Await `callback()` at the beginning of `close`, while commands still work; the last one added runs first.

        Returns a function that takes the callback back, for work that ends earlier. An exception in one does not keep
        the others from running; `close` raises them together at its end.
        """
        self._on_close.append(callback)

        def forget() -> None:
            if callback in self._on_close:
                self._on_close.remove(callback)

        return forget

    async def _end_background(self) -> None:
        problems: list[Exception] = []
        while self._on_close:
            try:
                await self._on_close.pop()()
            except Exception as exc:  # noqa: BLE001 - the others must run; raised below
                problems.append(exc)
        if problems:
            raise ExceptionGroup("background work on Redis failed to end", problems)

    async def _disconnect(self) -> None:
        self._open = False
        link, self._link = self._link, None
        if link is not None:
            link.abort("closed")
        if self._raw is not None:
            raw, self._raw = self._raw, None
            await raw.aclose()

    async def ping(self) -> float:
        """One round trip, in seconds."""
        if not self.enabled:
            return 0.0
        started = time.perf_counter()
        await self.execute("PING")
        return time.perf_counter() - started

    async def execute(self, *args: Argument, timeout: float | None = None, idempotent: bool = False) -> Reply:
        """Send one command and return its reply."""
        if not self.enabled:
            return None
        for attempt in range(2):
            link = self._link or await self._connect()
            try:
                async with asyncio.timeout(timeout or self.config.command_timeout):
                    reply = await link.send(pack(args))
            except ConnectionResetError as exc:
                if idempotent and attempt == 0:
                    continue
                raise ServerLostError(self.config.address, str(args[0]), str(exc)) from exc
            except TimeoutError as exc:
                raise ServerLostError(self.config.address, str(args[0]), "no reply in time") from exc
            if isinstance(reply, hiredis.ReplyError):
                raise ServerReplyError(str(args[0]), str(reply))
            return reply
        raise AssertionError

    async def run(
        self,
        script: Script,
        keys: Sequence[str | bytes] = (),
        args: Sequence[Argument] = (),
        *,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> Reply:
        """Run a script by its hash; the source is sent when the server does not know it (NOSCRIPT: nothing ran)."""
        try:
            return await self.execute(
                "EVALSHA", script.sha, len(keys), *keys, *args, timeout=timeout, idempotent=idempotent
            )
        except ServerReplyError as exc:
            if exc.code != "NOSCRIPT":
                raise
        return await self.execute(
            "EVAL", script.source, len(keys), *keys, *args, timeout=timeout, idempotent=idempotent
        )

    async def pipeline(
        self, commands: Iterable[Command], *, timeout: float | None = None, return_errors: bool = False
    ) -> list[Reply]:
        """
        Send many commands in one write and return their replies in order; other callers' commands may come between.

        A refused command does not stop those after it. The first refusal is raised once all replies are here; with
        `return_errors` it stands in its place of the list instead.
        """
        replies = await asyncio.gather(
            *(self.execute(*command, timeout=timeout) for command in commands), return_exceptions=True
        )
        return _first_error_raised(replies, return_errors=return_errors)

    async def transaction(
        self, commands: Iterable[Command], *, timeout: float | None = None, return_errors: bool = False
    ) -> list[Reply]:
        """
        Execute many commands as one (MULTI, EXEC), in one write: no other client's command comes between.

        All are executed or none; but one that the server refuses while executing (`WRONGTYPE`) does not undo the
        others: that is Redis. Its error is raised, or with `return_errors` stands in its place.
        For a decision in the middle (WATCH) use a script.
        """
        commands = list(commands)
        if not commands or not self.enabled:
            return [None] * len(commands)
        wrapped = (("MULTI",), *commands, ("EXEC",))
        queued = await asyncio.gather(
            *(self.execute(*command, timeout=timeout) for command in wrapped), return_exceptions=True
        )
        executed = queued[-1]
        if isinstance(executed, BaseException):
            raise next(reply for reply in queued if isinstance(reply, BaseException))
        names = (str(command[0]) for command in commands)
        replies = [
            ServerReplyError(name, str(reply)) if isinstance(reply, hiredis.ReplyError) else reply
            for name, reply in zip(names, executed, strict=True)
        ]
        return _first_error_raised(replies, return_errors=return_errors)

    @property
    def raw(self) -> redis.asyncio.Redis:
        """redis-py's client for everything else, with the same settings; made on first use, closed with this object."""
        if self._raw is None:
            c = self.config
            password = c.password.get_secret_value() if c.password else None
            common: dict[str, Any] = {"db": c.db, "username": c.username, "password": password, "protocol": 2}
            if c.socket:
                self._raw = redis.asyncio.Redis(unix_socket_path=c.socket, **common)
            else:
                self._raw = redis.asyncio.Redis(host=c.host, port=c.port, ssl=c.tls, **common)
        return self._raw

    async def _connect(self) -> Link:
        async with self._connecting:
            if not self._open:
                raise ClosedError("Redis")
            if self._link is None:
                self._link = await open_link(self.config, self._lost)
            return self._link

    def _lost(self, reason: str) -> None:
        del reason
        self._link = None


def _first_error_raised(replies: list[Reply], *, return_errors: bool) -> list[Reply]:
    for reply in replies:
        if isinstance(reply, BaseException) and not (return_errors and isinstance(reply, ServerReplyError)):
            raise reply
    return replies


__all__ = ["Argument", "Command", "Redis"]
