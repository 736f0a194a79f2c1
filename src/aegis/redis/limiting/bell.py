"""
What one process tells the others at once: come, you are next in line; everybody hold; everything was reset.

One subscription per `RateLimiter`, opened when somebody has to wait for the first time. Nothing depends on it but
speed: without it a freed permit is found when its next owner comes, and a hold when a process asks next, which is at
most one horizon later. In a cluster each limit's channel is a sharded one, on the node that keeps the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from aegis.redis.client import Redis
from aegis.redis.connection.feed import Feed
from aegis.redis.connection.feeds import Feeds, make_feed


class Listener(Protocol):
    """Who is told."""

    def come(self) -> None:
        """Ask now."""
        ...

    def hold(self, seconds: float) -> None:
        """Pause."""
        ...


class Bell:
    """Routes messages by channel; `me` is the name under which we are called."""

    def __init__(self, redis: Redis, me: str, spawn: Callable[[Coroutine[Any, Any, None]], Any]) -> None:
        self._redis, self._me, self._spawn = redis, me.encode(), spawn
        self._listeners: dict[bytes, Listener] = {}
        self._feed: Feed | Feeds | None = None
        self._was_down = False

    def listen(self, channel: str, listener: Listener) -> None:
        """From now on, as soon as the server has confirmed it."""
        name = channel.encode()
        if name in self._listeners:
            return
        if self._feed is None:
            self._feed = make_feed(self._redis, self._on_message, self._on_up, self._on_down, sharded=True)
            self._feed.start()
        self._listeners[name] = listener
        self._spawn(self._feed.subscribe(name))

    def leave(self, channel: str) -> None:
        """No more."""
        name = channel.encode()
        if self._listeners.pop(name, None) is not None and self._feed is not None:
            self._feed.unsubscribe(name)

    async def close(self) -> None:
        """Drop the connection."""
        self._listeners.clear()
        feed, self._feed = self._feed, None
        if feed is not None:
            await feed.close()

    def _on_up(self) -> None:
        if self._was_down:  # something may have been missed
            self._was_down = False
            for listener in list(self._listeners.values()):
                listener.come()

    def _on_down(self, why: str) -> None:
        del why
        self._was_down = True

    def _on_message(self, channel: bytes, payload: Any) -> None:
        listener = self._listeners.get(channel)
        if listener is None:
            return
        if payload.startswith(b"hold "):
            listener.hold(int(payload[5:]) / 1e6)
        elif payload in {self._me, b"reset"}:
            listener.come()
