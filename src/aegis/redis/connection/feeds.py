"""
As a `Feed`, for a cluster: one connection to each primary, each channel on the one that pushes it.

Sharded channels (SSUBSCRIBE) are pushed by the owner of their slot, key invalidations by every primary for its own
keys, and classic channels by every node, so those are listened to at one of them. When the cluster's map changes, feeds
come and go with the primaries and channels move; `on_up` then says that something may have been missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from aegis.redis.client import Redis
from aegis.redis.connection.cluster import Cluster
from aegis.redis.connection.feed import INVALIDATIONS, Feed, SetUp
from aegis.redis.connection.slots import slot_of_key
from aegis.redis.connection.topology import Place


def make_feed(
    redis: Redis,
    on_message: Callable[[bytes, Any], None],
    on_up: Callable[[], None],
    on_down: Callable[[str], None],
    *,
    setup: Iterable[SetUp] = (),
    on_heard: Callable[[float], None] | None = None,
    sharded: bool = False,
    classic: Iterable[bytes] = (),
) -> Feed | Feeds:
    """
    A connection for what servers push (see `Feed`), or one to each.

    On a cluster `sharded` means every channel but the `classic` ones; elsewhere it means nothing.
    """
    servers = redis.servers
    if isinstance(servers, Cluster):
        return Feeds(
            servers, on_message, on_up, on_down, setup=setup, on_heard=on_heard, sharded=sharded, classic=classic
        )
    return Feed(redis.config, on_message, on_up, on_down, setup=setup, on_heard=on_heard)


class Feeds:
    """See `Feed`, whose methods these are; with `sharded` every channel but the `classic` ones is a sharded one."""

    def __init__(
        self,
        cluster: Cluster,
        on_message: Callable[[bytes, Any], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        *,
        setup: Iterable[SetUp] = (),
        on_heard: Callable[[float], None] | None = None,
        sharded: bool = False,
        classic: Iterable[bytes] = (),
    ) -> None:
        self._cluster, self._on_message, self._on_up, self._on_down = cluster, on_message, on_up, on_down
        self._setup, self._on_heard, self._sharded = tuple(setup), on_heard, sharded
        self._classic = frozenset({INVALIDATIONS, *classic})
        self._members: dict[Place, Feed] = {}
        self._heard: dict[Place, float] = {}
        self._channels: dict[bytes, Place | None] = {}  # where each is listened to
        self._acks: dict[bytes, list[asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._forget: Callable[[], None] | None = None
        self._closed_connections = 0

    def start(self) -> None:
        """Begin to connect to every primary, in the background."""
        if self._forget is None:
            self._forget = self._cluster.on_topology(self._follow)
            self._follow()

    async def close(self) -> None:
        """Stop and drop all connections."""
        if self._forget is not None:
            self._forget()
        members, self._members = self._members, {}
        await asyncio.gather(*(feed.close() for feed in members.values()), *self._tasks, return_exceptions=True)
        for futures in self._acks.values():
            for future in futures:
                future.cancel()
        self._acks.clear()

    @property
    def connected(self) -> bool:
        """Whether there is a connection to every primary."""
        return bool(self._members) and all(feed.connected for feed in self._members.values())

    @property
    def connections(self) -> int:
        """Made so far."""
        return self._closed_connections + sum(feed.connections for feed in self._members.values())

    # --- channels ---

    async def subscribe(self, *channels: bytes) -> None:
        """Add channels and wait until the server has confirmed them (also across a change of the map)."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in channels]
        for channel, future in zip(channels, futures, strict=True):
            self._acks.setdefault(channel, []).append(future)
        self.add(*channels)
        await asyncio.gather(*futures)

    def add(self, *channels: bytes) -> None:
        """Add channels, without waiting."""
        for channel in channels:
            place = self._channels[channel] = self._place_of(channel)
            for feed in self._feeds_at(channel, place):
                feed.add(channel)

    def unsubscribe(self, *channels: bytes) -> None:
        """Remove channels, without waiting."""
        for channel in channels:
            for feed in self._feeds_at(channel, self._channels.pop(channel, None)):
                feed.unsubscribe(channel)

    async def barrier(self, channel: bytes | None = None) -> None:
        """As that of `Feed`, for one channel or for all of them."""
        feeds = list(self._members.values())
        if channel is not None:
            feeds = self._feeds_at(channel, self._channels.get(channel))
        if not feeds:
            raise ConnectionResetError("not connected")
        await asyncio.gather(*(feed.barrier() for feed in feeds))

    def renew(self, reason: str) -> None:
        """Replace all connections: they answer, but they do not do their work."""
        for feed in self._members.values():
            feed.renew(reason)

    def _place_of(self, channel: bytes) -> Place | None:
        if self._sharded and channel not in self._classic:
            return self._cluster.topology.owners[slot_of_key(channel)]
        return min(self._members, default=None)

    def _feeds_at(self, channel: bytes, place: Place | None) -> list[Feed]:
        if channel == INVALIDATIONS:
            return list(self._members.values())
        return [self._members[place]] if place in self._members else []

    # --- the map ---

    def _follow(self) -> None:
        """Have a feed of every primary, and every channel where it is pushed."""
        primaries = self._cluster.topology.primaries
        for place in self._members.keys() - primaries:
            feed = self._members.pop(place)
            self._heard.pop(place, None)
            self._closed_connections += feed.connections
            self._spawn(feed.close())
            self._on_down(f"{place.host}:{place.port} serves no slots any more")
        for place in primaries - self._members.keys():
            feed = self._members[place] = self._new_feed(place)
            if INVALIDATIONS in self._channels:
                feed.add(INVALIDATIONS)
            feed.start()
        moved = [channel for channel, place in self._channels.items() if self._move(channel, place)]
        if moved:
            self._spawn(self._announce(moved))

    def _move(self, channel: bytes, place: Place | None) -> bool:
        target = self._place_of(channel)
        if channel == INVALIDATIONS or target == place:
            return False
        for feed in self._feeds_at(channel, place):
            feed.unsubscribe(channel)
        self._channels[channel] = target
        for feed in self._feeds_at(channel, target):
            feed.add(channel)
        return True

    async def _announce(self, moved: list[bytes]) -> None:
        """Between the two subscriptions something may have been said."""
        await self.subscribe(*(channel for channel in moved if channel in self._channels))
        self._on_up()

    def _new_feed(self, place: Place) -> Feed:
        def heard(sent_at: float) -> None:
            self._heard[place] = sent_at
            if self._on_heard is not None and self._heard.keys() >= self._members.keys():
                self._on_heard(min(self._heard.values()))

        def down(why: str) -> None:
            self._heard.pop(place, None)
            self._on_down(why)

        return Feed(
            self._cluster.config.at(*place),
            self._on_message,
            self._on_up,
            down,
            setup=self._setup,
            on_heard=heard,
            sharded=self._sharded,
            classic=self._classic,
            on_subscribed=self._subscribed,
            on_gone=self._gone,
        )

    def _subscribed(self, channel: bytes) -> None:
        for future in self._acks.pop(channel, ()):
            if not future.done():
                future.set_result(None)

    def _gone(self, channel: bytes, why: str) -> None:
        """The node does not serve the channel's slot any more: forget where it was, and look at the map."""
        if channel in self._channels:
            self._channels[channel] = None
        self._cluster.doubt(why)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
