"""
What ties this process's copies to the server: one connection that reports changes, and announcements of ended loads.

CLIENT TRACKING in broadcasting mode with a prefix, redirected to the connection itself, on RESP2: works on Redis 6 and
on Valkey, and avoids the leak of hiredis with RESP3 pushes (redis-py #4339). Only the cache's own prefixes are tracked,
so quote writes never pass here. Rejected: tracking on the data connection with REDIRECT (when that is lost, the server
stops tracking and tells nobody: redis #13082), publish-and-subscribe beside each write (expiry would not be told).
"""

from __future__ import annotations

from typing import Any

from aegis.redis.caching.background import Background
from aegis.redis.caching.loads import Loads
from aegis.redis.caching.shelf import WITHDRAWN, Shelf
from aegis.redis.caching.tier import Tier
from aegis.redis.connection.feed import INVALIDATIONS, OWN_ID, Feed
from aegis.redis.connection.feeds import Feeds, make_feed


class Tether:
    """Started with the first use of the cache, because only then is there an event loop."""

    def __init__(self, shelf: Shelf, tier: Tier, loads: Loads, background: Background) -> None:
        self._shelf, self._tier, self._loads, self._background = shelf, tier, loads, background
        self._feed: Feed | Feeds | None = None
        self.started = not shelf.enabled
        self.hears = False  #: what has been announced since it last became true has arrived
        self._values, self._tags = shelf.values.encode(), shelf.generation_keys.encode()

    def start(self) -> None:
        """Begin to connect, in the background."""
        self.started = True
        values = ("PREFIX", self._shelf.values) if self._tier.entries_max else ()
        tags = (
            "PREFIX",
            self._shelf.generation_keys,
        )  # also without a tier: loads under way must not outlive their tags
        tracking = ("CLIENT", "TRACKING", "ON", "REDIRECT", OWN_ID, "BCAST", *tags, *values)
        self._feed = make_feed(
            self._shelf.redis,
            self._on_message,
            self._on_up,
            self._on_down,
            setup=(tracking,),
            on_heard=self._on_heard,
            sharded=True,
            classic=(self._shelf.channel.encode(),),
        )
        self._feed.start()
        if self._shelf.sharded:
            self._loads.elsewhere.on_wait, self._loads.elsewhere.on_leave = self._listen, self._leave
        self._background.spawn(self._feed.subscribe(INVALIDATIONS, self._shelf.channel.encode()))

    async def close(self) -> None:
        """End the connection."""
        self.started = True
        self._tier.distrust()
        feed, self._feed = self._feed, None
        if feed is not None:
            await feed.close()

    def _listen(self, key: str) -> None:
        """On a cluster, hear the end of this key's load. Not awaited: what is missed meanwhile the next look finds."""
        if self._feed is not None:
            self._feed.add(self._shelf.ends_channel(key).encode())

    def _leave(self, key: str) -> None:
        if self._feed is not None:
            self._feed.unsubscribe(self._shelf.ends_channel(key).encode())

    def _on_up(self) -> None:
        """Connected, not heard yet. A primary that joins a cluster was never down: what was read of it may be old."""
        self._distrust()

    def _on_down(self, why: str) -> None:
        del why
        self._distrust()

    def _distrust(self) -> None:
        self.hears = False
        self._tier.distrust()

    def _on_heard(self, sent_at: float) -> None:
        if not self.hears:
            self.hears = True
            self._loads.failures.clear()  # that a key was set may have been missed
        self._tier.heard(sent_at)

    def _on_message(self, channel: bytes, payload: Any) -> None:
        if channel != INVALIDATIONS:
            told = payload.decode()
            if told.startswith(WITHDRAWN):
                self._loads.forget(told[1:])
            self._loads.elsewhere.announced(told[1:])
        elif payload is None:  # FLUSHDB, or the server gave up on tracking single keys
            self._tier.clear()
        else:
            self._changed(payload)

    def _changed(self, names: list[bytes]) -> None:
        keys, tags = [], []
        for name in names:
            if name.startswith(self._values):
                keys.append(name[len(self._values) + 1 : -1].decode(errors="replace"))
            else:
                tags.append(name[len(self._tags) :].decode(errors="replace"))
        self._tier.invalidated(keys, tags)
        for tag in tags:
            self._loads.forget_tag(tag)
