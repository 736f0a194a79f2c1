"""
One server, and every outcome of a command to it said in words.

`SteadyLink` fails futures with internal errors; here they become what callers see (`aegis.errors`), are counted, and
what was not sent is sent again. Replies come back as the server gave them, a refusal (`hiredis.ReplyError`) included.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from hiredis import ReplyError

from aegis.config import RedisConfig
from aegis.errors import RedisUnavailableError, ReplyTimeoutError, ServerLostError
from aegis.redis.connection.link import pack
from aegis.redis.connection.shared import Command, command_name
from aegis.redis.connection.stats import Counters
from aegis.redis.connection.steady import NeverSentError, SteadyLink
from aegis.redis.connection.topology import Place
from aegis.redis.connection.waiters import Block, LinkLostError, Reply, ReplyLateError

_PIPELINE_CHUNK = 1000  #: commands of a pipeline that are queued as one


class NodeGoneError(ConnectionError):
    """Nothing happened: this server of several cannot be asked now. Internal: the cluster asks another."""


class Node:
    """
    A server on its own, or with `one_of_several` a server of a cluster: then what waits is not kept for it.

    `locate` and `on_change` are those of `SteadyLink`.
    """

    def __init__(
        self,
        config: RedisConfig,
        counters: Counters,
        *,
        locate: Callable[[], Awaitable[RedisConfig]] | None = None,
        on_change: Callable[[], None] = lambda: None,
        one_of_several: bool = False,
    ) -> None:
        self.config, self._counters, self._one_of_several = config, counters, one_of_several
        self.steady = SteadyLink(config, counters, locate=locate, on_change=on_change)

    def __repr__(self) -> str:
        return f"<Node {self.config.address} {self.state}>"

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.config.host, self.config.port)

    async def open(self) -> None:
        """See `SteadyLink.open`."""
        await self.steady.open()

    async def close(self) -> None:
        """See `SteadyLink.close`."""
        await self.steady.close()

    @property
    def state(self) -> str:
        """`closed`, `connected` or `reconnecting`."""
        return self.steady.state

    @property
    def in_flight(self) -> int:
        """Commands whose replies have not come."""
        return self.steady.in_flight

    @property
    def waiting(self) -> int:
        """Commands that have not been sent."""
        return self.steady.waiting

    # --- commands ---

    async def ask(self, args: Command, timeout_s: float, *, idempotent: bool = False) -> Reply:
        """Send one command: wait for a link and for room, watch the time, send again where that is allowed."""
        args = tuple(args)
        packed = pack(args)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            future: Future[Reply] = Future(loop=loop)
            self.steady.submit(packed, future, deadline - loop.time() if idempotent else timeout_s)
            try:
                return await future
            except asyncio.CancelledError:
                self.steady.forget(future)
                raise
            except LinkLostError as exc:
                again = not exc.sent or (idempotent and loop.time() < deadline)
                if again and self._one_of_several:
                    raise NodeGoneError(str(exc)) from exc
                if not again:
                    self.lost(args, exc)
            except ReplyLateError as exc:
                self.late(args, timeout_s, exc)
            except NeverSentError as exc:
                self.unavailable(timeout_s, exc)

    async def ask_as_one(self, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        """Send several commands in one piece: nothing comes between them on this connection."""
        loop = asyncio.get_running_loop()
        packed = b"".join([pack(tuple(command)) for command in commands])
        while True:
            future: Future[Reply] = Future(loop=loop)
            block = Block(future, len(commands), patient=self.steady.is_patient(timeout_s))
            self.steady.submit(packed, future, timeout_s, block, len(commands))
            try:
                replies: list[Reply] = await future
            except asyncio.CancelledError:
                self.steady.forget(future)
                raise
            except LinkLostError as exc:
                if exc.sent:
                    self.lost(commands[0], exc)
                if self._one_of_several:
                    raise NodeGoneError(str(exc)) from exc
            except ReplyLateError as exc:
                self.late(commands[0], timeout_s, exc)
            except NeverSentError as exc:
                self.unavailable(timeout_s, exc)
            else:
                return replies

    async def ask_each(self, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        """Send very many commands, in pieces between which others may come."""
        if len(commands) <= _PIPELINE_CHUNK:
            return await self.ask_as_one(commands, timeout_s)
        chunks = [commands[at : at + _PIPELINE_CHUNK] for at in range(0, len(commands), _PIPELINE_CHUNK)]
        parts = await asyncio.gather(*(self.ask_as_one(chunk, timeout_s) for chunk in chunks))
        return [reply for part in parts for reply in part]

    async def transact(self, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        """The replies to MULTI, the commands, and EXEC."""
        return await self.ask_as_one([("MULTI",), *commands, ("EXEC",)], timeout_s)

    def connection_for(self, key: str) -> int:
        """The number of the present or last connection; 0 before the first."""
        del key
        return self.steady.connection

    async def ask_server_of(self, key: str, args: Command, timeout_s: float) -> Reply:
        """As `ask`."""
        del key
        return await self.ask(args, timeout_s)

    # --- outcomes ---

    def refused(self, reply: ReplyError) -> None:
        """
        A caller is about to be told so: perhaps this is not the right server any more.

        A demoted primary says READONLY. One without replicas says NOREPLICAS: it may be cut off and replaced, or it is
        the right one and its replicas are gone.
        """
        match str(reply).partition(" ")[0]:
            case "READONLY":
                self.steady.renew("it is read-only")
            case "NOREPLICAS":
                self.steady.renew("its replicas are gone, and it has been replaced", if_replaced=True)

    def lost(self, args: Command, exc: LinkLostError) -> NoReturn:
        """The command is lost in flight."""
        self._counters.errors["lost"] += 1
        raise ServerLostError(self.config.address, command_name(args), str(exc)) from exc

    def late(self, args: Command, timeout_s: float, exc: ReplyLateError) -> NoReturn:
        """The command's time is over, and it is in flight."""
        self._counters.errors["timeout"] += 1
        raise ReplyTimeoutError(self.config.address, command_name(args), f"no reply within {timeout_s:g} s") from exc

    def unavailable(self, timeout_s: float, exc: NeverSentError) -> NoReturn:
        """The command's time is over, and it was never sent."""
        self._counters.errors["unavailable"] += 1
        cause = self.steady.cause or "the connection had no room"
        raise RedisUnavailableError(self.config.address, f"not sent within {timeout_s:g} s: {cause}") from exc
