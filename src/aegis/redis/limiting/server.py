"""
Which server keeps the permits: after a restart or a failover it may have forgotten some.

A server's name is its `run_id`, asked for once per connection. Scripts compare it with the name under which the state
was written: another one means that what was granted last may be missing, so everybody pauses for one window. A server
that came back empty cannot know; then the processes that have talked to its predecessor say so.
"""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple

from aegis.errors import ServerReplyError
from aegis.redis.client import Redis

_NAMES_MAX = 100  #: connections whose server is remembered; a lost one never comes back
_RUN_ID = re.compile(rb"run_id:([0-9a-f]+)")


class Server(NamedTuple):
    """The server behind one connection."""

    connection: int  #: number of the connection that this was learnt over
    name: str  #: empty when it does not tell (a command forbidden to this user)
    since: float  #: loop time since when it is not the one before; -inf for the first


class ServerWatch:
    """
    Knows the server behind the present connection of one key; asks when there is another connection.

    `names` are those learnt over each connection, shared by all keys of a limiter: few, also with very many keys. With
    `curious=False` none is asked for: then no server differs from the one before, and nobody pauses.
    """

    def __init__(self, redis: Redis, key: str, names: dict[int, str], *, curious: bool = True) -> None:
        self._redis, self._key, self._names, self._curious = redis, key, names, curious
        self.known = Server(0, "", float("-inf"))

    async def ask(self) -> Server:
        """The server that the next command will reach, unless the connection is lost before that."""
        while not self.known.connection or self.known.connection != self._redis.connection_for(self._key):
            connection = self._redis.connection_for(self._key)
            name = self._names.get(connection) or await self._ask_name()
            if connection and self._redis.connection_for(self._key) == connection:
                if len(self._names) >= _NAMES_MAX:
                    self._names.clear()
                self._names[connection] = name
                since = self.known.since
                if self.known.name not in {"", name}:
                    since = asyncio.get_running_loop().time()
                self.known = Server(connection, name, since)
        return self.known

    async def _ask_name(self) -> str:
        if not self._curious:
            return ""
        try:
            found = _RUN_ID.search(await self._redis.ask_server_of(self._key, "INFO", "server"))
        except ServerReplyError as exc:
            if exc.code != "NOPERM":
                raise
            found = None
        return found[1].decode()[:16] if found else ""
