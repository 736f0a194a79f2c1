"""
The shared connection to Redis: `execute` for commands, `run` for scripts, `raw` for everything exotic.

`execute` is the hot path of everything above it, so it is written for few steps: it packs, queues on the link and
awaits one future. Everything that is not the ordinary case (no link, no room, a timeout above the default) takes the
second path, through the backlog of `SteadyLink`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import redis.asyncio
from hiredis import ReplyError

from aegis.config import RedisConfig
from aegis.errors import ClosedError, RedisUnavailableError, ServerReplyError
from aegis.redis._script import Script
from aegis.redis.connection.cluster import Cluster
from aegis.redis.connection.link import pack
from aegis.redis.connection.node import Node
from aegis.redis.connection.raw import close_raw, locate_server, make_raw
from aegis.redis.connection.shared import Argument, Command, check_shareable, command_name, harmless
from aegis.redis.connection.stats import Counters, RedisStats
from aegis.redis.connection.waiters import LinkLostError, Reply, ReplyLateError, Waiter


class Redis:
    """
    A connection that all tasks of one event loop share. Use it with `async with`; close it, not what is built on it.

    What happens when something goes wrong, and what is known afterwards:

    - refused, not found, wrong password, wrong database, TLS not accepted, still LOADING: `async with` raises
      `RedisUnavailableError` with address and cause, at once; no connection is left. Nothing was sent.
    - lost later (reset, closed, killed, restarted): commands in flight raise `ServerLostError`, their outcome is
      unknown and they are not sent again, except those marked `idempotent`. One task of this object reconnects,
      with jittered back-off up to 1 s and without end. Commands given meanwhile, and those that had not been written,
      are sent afterwards; one whose time passes first raises `RedisUnavailableError`: it was not sent.
    - hung or half-open (packets vanish, the process is stopped): when a reply is due and nothing has come for
      `REDIS_HANG_TIMEOUT` (2 s), the connection counts as lost. An idle connection is asked with a PING, so it is
      noticed there, too. Only a command given a `timeout` above REDIS_COMMAND_TIMEOUT makes it wait longer.
    - no reply in time although the connection lives: `ReplyTimeoutError`, outcome unknown; the reply is thrown away.
    - a reply that is malformed or above `REDIS_MAX_REPLY_BYTES` closes the connection: as lost, with that cause.
    - the server refuses (`WRONGTYPE`, `OOM`, `LOADING`, ...): `ServerReplyError` with `code`; no effect. `READONLY`
      also replaces the connection, because after a failover the same name may lead to the new primary.
    - the caller is cancelled: a command not yet written is never sent; one in flight keeps its place and its reply is
      thrown away, so nobody ever gets another's reply.
    - `close`: in flight raises `ServerLostError`, not yet sent raises `ClosedError`.

    Disabled (`REDIS_ENABLED=false`), it does no I/O: `execute` and `run` give None, `ping` gives 0.0.
    """

    def __init__(self, config: RedisConfig | None = None) -> None:
        self.config = config or RedisConfig()
        self._timeout_s = self.config.command_timeout
        self._counters = Counters()
        locate = partial(locate_server, self.config) if self.config.mode == "sentinel" else None
        self._node = Node(self.config, self._counters, locate=locate)  # with a cluster it is never opened,
        self._steady = self._node.steady  # so the hot path finds no link that would take every command
        #: Who is asked; for the rooms above, which listen to what servers push (`make_feed`).
        self.servers: Node | Cluster = self._node
        if self.config.mode == "cluster":
            self.servers = Cluster(self.config, self._counters)
        self._raw: redis.asyncio.Redis | None = None
        self._on_close: list[Callable[[], Awaitable[None]]] = []

    def __repr__(self) -> str:
        return f"<Redis {self.config.address} {self._state}>"

    # --- opening and closing ---

    async def __aenter__(self) -> Self:
        if self.enabled:
            await self.servers.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def enabled(self) -> bool:
        """False when REDIS_ENABLED=false: every feature is a no-op."""
        return self.config.enabled

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

    async def close(self) -> None:
        """End what works in the background on this connection (`on_close`), then close it. Idempotent."""
        try:
            await self._end_background()
        finally:
            await self.servers.close()
            raw, self._raw = self._raw, None
            if raw is not None:
                await close_raw(raw)

    async def _end_background(self) -> None:
        problems: list[Exception] = []
        while self._on_close:
            try:
                await self._on_close.pop()()
            except Exception as exc:  # noqa: BLE001 - the others must run; raised below
                problems.append(exc)
        if problems:
            raise ExceptionGroup("background work on Redis failed to end", problems)

    # --- commands ---

    async def ping(self) -> float:
        """One round trip, in seconds."""
        if not self.enabled:
            return 0.0
        started = time.perf_counter()
        await self.execute("PING")
        return time.perf_counter() - started

    async def execute(self, *args: Argument, timeout: float | None = None, idempotent: bool = False) -> Reply:
        """
        Send one command and return its reply: bytes, int, list or None.

        `timeout` (seconds, from now to the reply) is REDIS_COMMAND_TIMEOUT unless given. With `idempotent` a command
        whose outcome is unknown is sent again after reconnection, within its time.

        Raises:
            ServerReplyError: the server refused it; no effect.
            ServerLostError: sent, and no reply came; outcome unknown. `ReplyTimeoutError` when only time is over.
            RedisUnavailableError: there was no connection within its time; it was not sent.
            CommandNotAllowedError: it blocks, subscribes or changes the connection; it was not sent.
            ClosedError: outside of the `async with`; it was not sent.
            ValueError: `timeout` is not a finite number; it was not sent.
        """
        if timeout is not None:
            check_seconds(timeout)
        link = self._steady.ready
        if link is None or link.full or idempotent or (timeout is not None and timeout > self._timeout_s):
            return await self._execute_with_care(args, timeout, idempotent=idempotent)
        packed = pack(args)
        if not args or args[0] not in harmless:
            check_shareable(args)
        pending = link.ask(packed)
        if timeout is not None:
            self._steady.watch(timeout, pending)
        try:
            reply = await pending
        except LinkLostError as exc:
            if not exc.sent:
                return await self._execute_with_care(args, timeout, idempotent=idempotent)
            self._node.lost(args, exc)
        except ReplyLateError as exc:
            self._node.late(args, self._timeout_s if timeout is None else timeout, exc)
        if type(reply) is ReplyError:
            raise self._refused(args, reply)
        return reply

    def begin(self, packed: bytes, waiter: Waiter) -> bool:
        """
        Queue one packed command for a waiter of the caller's own, without a task. False when it cannot be sent now.

        The waiter gets the raw reply, a `hiredis.ReplyError` included, or `LinkLostError` or `ReplyLateError`.
        """
        link = self._steady.ready
        if link is None or link.full:
            return False
        link.enqueue(packed, waiter)
        return True

    def before_write(self, call: Callable[[], None]) -> bool:
        """Call it once, when what has been given in this turn of the loop is written. False: there is no connection."""
        link = self._steady.ready
        if link is None:
            return False
        link.before_flush(call)
        return True

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
        `return_errors` it stands in its place of the list instead. When the connection is lost, the outcome of all
        of them is unknown.
        """
        commands = [tuple(command) for command in commands]
        for command in commands:
            check_shareable(command)
        timeout_s = self._timeout_s if timeout is None else check_seconds(timeout)
        if not commands or not self.enabled:
            return [None] * len(commands)
        replies = await self.servers.ask_each(commands, timeout_s)
        return self._checked(commands, replies, return_errors=return_errors)

    async def transaction(
        self, commands: Iterable[Command], *, timeout: float | None = None, return_errors: bool = False
    ) -> list[Reply]:
        """
        Execute many commands as one (MULTI, EXEC), in one write: no other client's command comes between.

        All are executed or none; but one that the server refuses while executing (`WRONGTYPE`) does not undo the
        others: that is Redis. Its error is raised, or with `return_errors` stands in its place.
        For a decision in the middle (WATCH) use a script.
        """
        commands = [tuple(command) for command in commands]
        for command in commands:
            check_shareable(command)
        timeout_s = self._timeout_s if timeout is None else check_seconds(timeout)
        if not commands or not self.enabled:
            return [None] * len(commands)
        queued = await self.servers.transact(commands, timeout_s)
        executed = queued[-1]
        if isinstance(executed, ReplyError):  # one was refused while queueing: that one is the cause, not EXECABORT
            at = next(at for at, reply in enumerate(queued) if isinstance(reply, ReplyError))
            raise self._refused((("MULTI",), *commands, ("EXEC",))[at], queued[at])
        return self._checked(commands, executed, return_errors=return_errors)

    # --- what else there is ---

    @property
    def raw(self) -> redis.asyncio.Redis:
        """redis-py's client for everything else, with the same settings; made on first use, closed with this object."""
        if not self.enabled:
            raise RedisUnavailableError(self.config.address, "REDIS_ENABLED=false")
        if self._raw is None:
            self._raw = make_raw(self.config)
        return self._raw

    @property
    def connection(self) -> int:
        """Which connection this is, counted from 1: another number after every reconnection."""
        return self._counters.connections

    @property
    def connected(self) -> bool:
        """Whether a command given now is sent now, with a cluster whatever its key."""
        return self.servers.state == "connected"

    @property
    def sharded(self) -> bool:
        """Whether keys are spread over servers: then channels are, too (SPUBLISH, SSUBSCRIBE)."""
        return isinstance(self.servers, Cluster)

    def connection_for(self, key: str) -> int:
        """As `connection`, of the server that `key` belongs to; another number when the key belongs to another."""
        return self.servers.connection_for(key)

    async def ask_server_of(self, key: str, *args: Argument) -> Reply:
        """As `execute`, for a command without a key, of the server that `key` belongs to."""
        if not self.enabled:
            return None
        reply = await self.servers.ask_server_of(key, args, self._timeout_s)
        if type(reply) is ReplyError:
            raise self._refused(args, reply)
        return reply

    def stats(self) -> RedisStats:
        """What this client has done so far."""
        return self._counters.record(self._state, in_flight=self.servers.in_flight, waiting=self.servers.waiting)

    @property
    def _state(self) -> str:
        return self.servers.state if self.enabled else "disabled"

    # --- the second path ---

    async def _execute_with_care(self, args: Command, timeout: float | None, *, idempotent: bool) -> Reply:
        """As `execute`, in every case: waits for a link and for room, watches the time, sends again where allowed."""
        if not self.enabled:
            return None
        check_shareable(args)
        timeout_s = self._timeout_s if timeout is None else timeout
        reply = await self.servers.ask(args, timeout_s, idempotent=idempotent)
        if type(reply) is ReplyError:
            raise self._refused(args, reply)
        return reply

    def _checked(self, commands: Sequence[Command], replies: list[Any], *, return_errors: bool) -> list[Reply]:
        checked = [
            self._refused(command, reply) if isinstance(reply, ReplyError) else reply
            for command, reply in zip(commands, replies, strict=True)
        ]
        if not return_errors:
            for reply in checked:
                if isinstance(reply, ServerReplyError):
                    raise reply
        return checked

    # --- errors ---

    def _refused(self, args: Command, reply: ReplyError) -> ServerReplyError:
        error = ServerReplyError(command_name(args), str(reply))
        self._counters.errors[error.code] += 1
        self.servers.refused(reply)
        return error


def check_seconds(timeout: float) -> float:
    """
    `timeout`, if a clock can be set to it.

    Raises:
        ValueError: it is infinite or not a number: every wait here has an end.
    """
    if not math.isfinite(timeout):
        raise ValueError(f"timeout={timeout} must be a finite number of seconds")
    return timeout


__all__ = ["Argument", "ClosedError", "Command", "Redis", "RedisStats"]
