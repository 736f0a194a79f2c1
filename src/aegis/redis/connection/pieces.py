"""
Many commands at once on a cluster: those of one node leave in one piece, and so do those that it sends elsewhere.

A redirection is followed by whole pieces, in the order in which the commands were given: a slot that moves under a long
pipeline costs one more round trip, not one for each command. What no node takes now is asked alone in the end, and
waits within the time that is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hiredis import ReplyError

from aegis.redis.connection.node import Node, NodeGoneError
from aegis.redis.connection.shared import Command
from aegis.redis.connection.slots import is_everywhere, slot_of
from aegis.redis.connection.waiters import Reply

if TYPE_CHECKING:
    from aegis.redis.connection.cluster import Cluster

#: Answers that say: not executed, ask again. The rest of them are redirections.
NOT_NOW = ("TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN")
_ROUNDS_MAX = 8  #: redirections of redirections; then the map is in motion


def is_not_here(reply: Reply) -> bool:
    """Whether the command was not executed, and should be asked again, there or elsewhere."""
    return isinstance(reply, ReplyError) and str(reply).partition(" ")[0] in {"MOVED", "ASK", *NOT_NOW}


@dataclass(slots=True)
class _Piece:
    """Commands for one node, by their places; `asking` when some of them are of slots that are about to be its own."""

    node: Node
    places: list[int] = field(default_factory=list)
    asking: bool = False


class Pieces:
    """The commands of one call, and the replies that they have so far."""

    def __init__(self, cluster: Cluster, commands: Sequence[Command], timeout_s: float) -> None:
        self._cluster, self._commands, self._timeout_s = cluster, commands, timeout_s
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout_s
        self._replies: list[Reply] = [None] * len(commands)
        self._alone: list[int] = []

    async def ask(self) -> list[Reply]:
        """Every reply in the place of its command, refusals included."""
        pieces, rounds = self._first(), 0
        while pieces and rounds < _ROUNDS_MAX:
            refused = await gather_all(self._ask_piece(piece) for piece in pieces)
            pieces = await self._redirected(sorted((at, by) for piece in refused for at, by in piece))
            rounds += 1
        for at in sorted([*self._alone, *(at for piece in pieces for at in piece.places)]):
            self._replies[at] = await self._cluster.ask(self._commands[at], self._left_s())
        return self._replies

    def _first(self) -> list[_Piece]:
        """By the map as we know it; alone what is for every node, or for one that is not there now."""
        pieces: dict[Node, _Piece] = {}
        for at, command in enumerate(self._commands):
            node = None if is_everywhere(command) else self._cluster.serving_now(slot_of(command))
            if node is None:
                self._alone.append(at)
            else:
                pieces.setdefault(node, _Piece(node)).places.append(at)
        return list(pieces.values())

    async def _ask_piece(self, piece: _Piece) -> list[tuple[int, Node]]:
        """The places of those that were not executed, each with the node that said so."""
        commands: list[Command] = [self._commands[at] for at in piece.places]
        if piece.asking:  # before each, so that none is parted from its command where a long piece is cut
            commands = [each for command in commands for each in (("ASKING",), command)]
        try:
            answers = await piece.node.ask_each(commands, self._left_s())
        except NodeGoneError as exc:
            self._cluster.doubt(str(exc))
            self._alone += piece.places
            return []
        for at, reply in zip(piece.places, answers[1::2] if piece.asking else answers, strict=True):
            self._replies[at] = reply
        return [(at, piece.node) for at in piece.places if is_not_here(self._replies[at])]

    async def _redirected(self, refused: Iterable[tuple[int, Node]]) -> list[_Piece]:
        """What was sent elsewhere, by where; `refused` in the order of the commands."""
        pieces: dict[Node, _Piece] = {}
        for at, by in refused:
            word, _, rest = str(self._replies[at]).partition(" ")
            if word == "MOVED":
                slot = slot_of(self._commands[at])
                self._cluster.moved(slot, rest, by)
                node = await self._cluster.serving(slot, self._deadline, self._timeout_s)
            elif word == "ASK":
                node = self._cluster.node_at(rest, by)
            else:
                self._alone.append(at)
                continue
            piece = pieces.setdefault(node, _Piece(node))
            piece.places.append(at)
            piece.asking |= word == "ASK"
        return list(pieces.values())

    def _left_s(self) -> float:
        return max(self._deadline - self._loop.time(), 0.001)


async def gather_all(work: Iterable[Awaitable[Any]]) -> list[Any]:
    """As gather; but when one fails, the others have ended before it is raised."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
