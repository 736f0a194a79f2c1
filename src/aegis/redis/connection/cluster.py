"""
Commands to a cluster: each to the primary that owns its slot (`Members`), asked again where that is allowed.

A command is executed at most once: it is asked again elsewhere only after an answer that says it was not executed
(MOVED, ASK, TRYAGAIN, CLUSTERDOWN, LOADING), or when it was never written. One that was lost in flight is the caller's
business, unless it is idempotent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from hiredis import ReplyError

from aegis.redis.connection.link import pack
from aegis.redis.connection.members import Members
from aegis.redis.connection.node import Node, NodeGoneError
from aegis.redis.connection.pieces import NOT_NOW, Pieces, gather_all, is_not_here
from aegis.redis.connection.shared import Command, command_name
from aegis.redis.connection.slots import is_everywhere, one_slot, slot_of, slot_of_key
from aegis.redis.connection.waiters import LinkLostError, Reply, ReplyLateError

_REDIRECTIONS_MAX = 8  #: in a row; then the map is in motion, and we wait a little
_PAUSE_BASE_S, _PAUSE_CAP_S = 0.01, 0.25


class Cluster(Members):
    """One cluster, asked as one server."""

    async def ask(self, args: Command, timeout_s: float, *, idempotent: bool = False) -> Reply:
        """Send one command to whoever owns its slot; see the rules above."""
        if is_everywhere(args):
            return await self._ask_everywhere(args, timeout_s)
        if command_name(args) == "SCAN":
            raise ValueError("SCAN walks through one node of a cluster only; use redis.raw.scan_iter()")
        return await self._ask(slot_of(args), args, timeout_s, idempotent=idempotent)

    async def _ask(self, slot: int | None, args: Command, timeout_s: float, *, idempotent: bool = False) -> Reply:
        loop = asyncio.get_running_loop()
        attempts = _Attempts(loop.time() + timeout_s)
        while True:
            node = await self.serving(slot, attempts.deadline, timeout_s)
            try:
                reply = await self._ask_fast(node, args, attempts, idempotent=idempotent)
                if type(reply) is not ReplyError:
                    return reply
                word, _, rest = str(reply).partition(" ")
                if word == "ASK":
                    replies = await self.node_at(rest, node).ask_as_one([("ASKING",), args], attempts.left_s())
                    reply = replies[1]
                    if type(reply) is not ReplyError:
                        return reply
                    word, _, rest = str(reply).partition(" ")
            except NodeGoneError as exc:
                self.doubt(str(exc))
                continue
            if word == "MOVED":
                self.moved(slot, rest, node)
            elif word in NOT_NOW:
                self.doubt(str(reply))
            elif word != "ASK":
                return reply
            if not await attempts.pause(redirected=word in {"MOVED", "ASK"}):
                return reply

    async def _ask_fast(self, node: Node, args: Command, attempts: _Attempts, *, idempotent: bool) -> Reply:
        """Without a record per command where the link takes it at once, as the hot path of a single server."""
        link, steady, left_s = node.steady.ready, node.steady, attempts.left_s()
        if link is None or link.full or idempotent or steady.is_patient(left_s):
            return await node.ask(args, left_s, idempotent=idempotent)
        pending = link.ask(pack(tuple(args)))
        if attempts.made or left_s < self.config.command_timeout * 0.99:
            steady.watch(left_s, pending)
        try:
            return await pending
        except LinkLostError as exc:
            if not exc.sent:
                raise NodeGoneError(str(exc)) from exc
            node.lost(args, exc)
        except ReplyLateError as exc:
            node.late(args, left_s, exc)

    async def ask_each(self, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        """Send many commands, those of one node in one piece (`Pieces`)."""
        return await Pieces(self, commands, timeout_s).ask()

    async def transact(self, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        """
        The replies to MULTI, the commands, and EXEC, from the owner of their slot.

        Raises:
            ValueError: their keys are of several slots; nothing was sent.
        """
        slot = one_slot(commands)
        attempts = _Attempts(asyncio.get_running_loop().time() + timeout_s)
        while True:
            node = await self.serving(slot, attempts.deadline, timeout_s)
            try:
                replies = await node.transact(commands, attempts.left_s())
            except NodeGoneError as exc:
                self.doubt(str(exc))
                continue
            refusal = next((reply for reply in replies if is_not_here(reply)), None)
            if refusal is None:
                return replies
            word, _, rest = str(refusal).partition(" ")  # refused while queueing: EXEC has executed nothing
            if word == "MOVED":
                self.moved(slot, rest, node)
            else:
                self.doubt(str(refusal))
            if not await attempts.pause(redirected=word == "MOVED"):
                return replies

    async def _ask_everywhere(self, args: Command, timeout_s: float) -> Reply:
        replies = await gather_all(node.ask(args, timeout_s) for node in self.nodes)
        for reply in replies:
            if isinstance(reply, ReplyError):
                return reply
        match command_name(args):
            case "DBSIZE":
                return sum(replies)
            case "KEYS":
                return [key for reply in replies for key in reply]
        return replies[0]

    async def ask_server_of(self, key: str, args: Command, timeout_s: float) -> Reply:
        """As `ask`, of the owner of the key's slot."""
        return await self._ask(slot_of_key(key), args, timeout_s)

    def refused(self, reply: ReplyError) -> None:
        """A caller is about to be told so; a primary that is read-only, or alone, may be one no more."""
        if str(reply).startswith(("READONLY", "NOREPLICAS")):
            self.doubt(str(reply))


class _Attempts:
    """How often one command was asked, and until when it may be."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self.made = deadline, 0
        self._loop = asyncio.get_running_loop()

    def left_s(self) -> float:
        return max(self.deadline - self._loop.time(), 0.001)

    async def pause(self, *, redirected: bool) -> bool:
        """After an answer that says "not here": wait where that helps; False when there is no time for another."""
        self.made += 1
        if redirected and self.made < _REDIRECTIONS_MAX:
            return True
        pause_s = min(_PAUSE_BASE_S * 2.0 ** min(self.made, 10), _PAUSE_CAP_S) * random.uniform(0.5, 1.0)
        if self._loop.time() + pause_s >= self.deadline:
            return False
        await asyncio.sleep(pause_s)
        return True
