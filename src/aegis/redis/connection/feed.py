"""
One dedicated connection for what the server pushes: channel messages and key invalidations.

RESP2, because hiredis leaks about 97 bytes for every RESP3 push (redis-py #4339). The reader never awaits: `on_message`
is called in the socket's callback and must only route. Half-open links are noticed by a PING whose reply is required.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import hiredis

from aegis.backoff import Backoff
from aegis.config import RedisConfig
from aegis.errors import RedisUnavailableError
from aegis.redis.connection.link import Link, pack
from aegis.redis.connection.open import open_link
from aegis.redis.connection.raw import locate_server
from aegis.redis.connection.slots import slot_of_key

log = logging.getLogger("aegis.redis")

SetUp = tuple[str | bytes | int, ...]  #: a command that prepares the connection
INVALIDATIONS = b"__redis__:invalidate"  #: on RESP2, the channel of CLIENT TRACKING
#: Stands for the connection's own id in a `setup` command (CLIENT TRACKING ON REDIRECT <own id>).
OWN_ID = "{own client id}"
_PING_EVERY_S = 1.0
_PING_TIMEOUT_S = 1.0
_CHANNELS_PER_COMMAND = 512
_PING = pack(("PING",))


class Feed:
    """
    Subscriptions that survive reconnection.

    `on_message(channel, payload)` gets every message; `on_up()` is called after every (re)subscription, `on_down(why)`
    whenever messages may have been missed from now on. `on_heard(sent_at)` is called after each answered PING with the
    monotonic time at which that was sent: whatever the server had pushed before it has been delivered. With Sentinels
    the primary is asked for before each connection.

    For a feed of one of several servers (`Feeds`): `sharded` channels, but for the `classic` ones,
    `on_subscribed(channel)` when one is confirmed, and `on_gone(channel, why)` when this server does not serve it (any
    more).
    """

    def __init__(
        self,
        config: RedisConfig,
        on_message: Callable[[bytes, Any], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        *,
        setup: Iterable[SetUp] = (),
        on_heard: Callable[[float], None] | None = None,
        sharded: bool = False,
        classic: Iterable[bytes] = (),
        on_subscribed: Callable[[bytes], None] = lambda _: None,
        on_gone: Callable[[bytes, str], None] = lambda _, __: None,
    ) -> None:
        self._config, self._on_message, self._on_up, self._on_down = config, on_message, on_up, on_down
        self._setup, self._on_heard = tuple(setup), on_heard
        self._on_subscribed, self._on_gone = on_subscribed, on_gone
        self._sharded, self._classic = sharded, frozenset({INVALIDATIONS, *classic})
        self._channels: set[bytes] = set()
        self._leaving: Counter[bytes] = Counter()  # sharded ones whose SUNSUBSCRIBE has not been answered
        self._acks: dict[bytes, list[asyncio.Future[None]]] = {}
        self._link: Link | None = None
        self.connections = 0  #: made so far
        self._task: asyncio.Task[None] | None = None
        self._lost_event: asyncio.Event = asyncio.Event()

    def start(self) -> None:
        """Begin to connect, in the background."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="aegis feed")

    async def close(self) -> None:
        """Stop and drop the connection."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for futures in self._acks.values():
            for future in futures:
                future.cancel()
        self._acks.clear()

    async def subscribe(self, *channels: bytes) -> None:
        """Add channels and wait until the server has confirmed them (also across a reconnection)."""
        loop = asyncio.get_running_loop()
        futures = []
        for channel in channels:
            future = loop.create_future()
            self._acks.setdefault(channel, []).append(future)
            futures.append(future)
            self._channels.add(channel)
        self._ask("SUBSCRIBE", channels)
        await asyncio.gather(*futures)

    def add(self, *channels: bytes) -> None:
        """Add channels, without waiting."""
        self._channels.update(channels)
        self._ask("SUBSCRIBE", channels)

    def unsubscribe(self, *channels: bytes) -> None:
        """Remove channels, without waiting."""
        self._channels.difference_update(channels)
        self._ask("UNSUBSCRIBE", channels)

    async def barrier(self, channel: bytes | None = None) -> None:
        """
        Return when everything that the server had pushed before has been delivered here, on `channel` or on all.

        Raises:
            ConnectionError: there is no connection, or it was lost meanwhile.
            TimeoutError: the server did not answer.
        """
        del channel  # one connection, one order
        link = self._link
        if link is None:
            raise ConnectionResetError("not connected")
        async with asyncio.timeout(_PING_TIMEOUT_S):
            await link.send(_PING)

    def renew(self, reason: str) -> None:
        """Replace the connection: it answers, but it does not do its work."""
        if self._link is not None:
            self._link.abort(reason)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._link is not None

    def _ask(self, command: str, channels: Collection[bytes]) -> None:
        if self._link is None:
            return
        classic = [channel for channel in channels if self._is_classic(channel)]
        for start in range(0, len(classic), _CHANNELS_PER_COMMAND):
            self._link.write(pack((command, *classic[start : start + _CHANNELS_PER_COMMAND])))
        for channel in channels:
            if not self._is_classic(channel):  # those of one command must be of one slot: each has its own
                self._leaving[channel] += command == "UNSUBSCRIBE"
                self._link.write(pack((f"S{command}", channel)))

    def _is_classic(self, channel: bytes) -> bool:
        return not self._sharded or channel in self._classic

    async def _run(self) -> None:
        backoff, attempt = Backoff(0.05, 2.0), 0
        while True:
            self._lost_event.clear()
            try:
                await self._serve_one_link()
                attempt = 0
            except (ConnectionError, TimeoutError) as exc:  # not made (RedisUnavailableError), or lost while set up
                attempt += 1
                if attempt == 1:
                    self._on_down(str(exc))
            await asyncio.sleep(backoff.delay_s(max(attempt, 1)))

    async def _serve_one_link(self) -> None:
        config = await locate_server(self._config)
        link = await open_link(config, self._lost, self._push, primary=self._config.mode == "sentinel")
        try:
            await self._set_up(link)
            self._link = link
            self._leaving.clear()
            self.connections += 1
            self._ask("SUBSCRIBE", list(self._channels))
            self._on_up()
            await self._watch(link)
        finally:
            self._link = None
            link.abort("feed ended")

    async def _set_up(self, link: Link) -> None:
        for command in self._setup:
            parts = command
            if OWN_ID in command:
                own_id = await link.send(pack(("CLIENT", "ID")))
                parts = tuple(own_id if part == OWN_ID else part for part in command)
            reply = await link.send(pack(parts))
            if isinstance(reply, hiredis.ReplyError):
                raise RedisUnavailableError(self._config.address, f"{command[0]!s} {command[1]!s} refused: {reply}")

    async def _watch(self, link: Link) -> None:
        """Return when the link is lost or does not answer."""
        while not self._lost_event.is_set():
            sent_at = time.monotonic()
            try:
                # not wait_for: until 3.12 it loses a cancellation that coincides with the reply, and `close` would hang
                async with asyncio.timeout(_PING_TIMEOUT_S):
                    await link.send(_PING)
                if self._on_heard is not None:
                    self._on_heard(sent_at)
            except (TimeoutError, ConnectionResetError):
                if not self._lost_event.is_set():
                    self._on_down("no answer to PING")  # the link's own report comes when it is no longer ours
                link.abort("no answer to PING")
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_EVERY_S):
                    await self._lost_event.wait()

    def _push(self, reply: list[Any]) -> None:
        kind = reply[0]
        if kind in {b"message", b"smessage"}:
            self._on_message(reply[1], reply[2])
        elif kind in {b"subscribe", b"ssubscribe"}:
            for future in self._acks.pop(reply[1], ()):
                if not future.done():
                    future.set_result(None)
            self._on_subscribed(reply[1])
        elif kind == b"sunsubscribe":
            self._left(reply[1])
        elif isinstance(kind, hiredis.ReplyError):  # the answer to SSUBSCRIBE of a slot that is not served here
            for channel in self._refused_by(str(kind)):
                self._channels.discard(channel)
                self._on_gone(channel, str(kind))

    def _left(self, channel: bytes) -> None:
        if self._leaving[channel] > 1:
            self._leaving[channel] -= 1
        elif self._leaving.pop(channel, 0) == 0 and channel in self._channels:  # not asked for: its slot has moved away
            self._channels.discard(channel)
            self._on_gone(channel, "a channel's slot has moved")

    def _refused_by(self, refusal: str) -> list[bytes]:
        """The channels that a redirection is about; all of them where it names no slot."""
        word, _, rest = refusal.partition(" ")
        slot = rest.partition(" ")[0] if word == "MOVED" else ""

        def concerned(channel: bytes) -> bool:
            return not self._is_classic(channel) and (not slot or str(slot_of_key(channel)) == slot)

        for channel in filter(concerned, tuple(self._leaving)):  # it may have been the answer to SUNSUBSCRIBE
            del self._leaving[channel]
        return list(filter(concerned, self._channels))

    def _lost(self, reason: str) -> None:
        self._lost_event.set()
        if self._link is not None:
            self._on_down(reason)
