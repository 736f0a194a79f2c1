"""
Loads of other processes: who waits for them here, and what wakes him.

An announcement does (`tether.py`). Nobody asks again and again for the value; but while somebody waits, this process
asks, once for all who wait in it, whether the leases still stand. So one who waits in an otherwise quiet process learns
within one patience that Redis hangs, and an announcement that was lost costs no more than the next look.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from itertools import islice

from aegis.redis.caching.background import Background
from aegis.redis.caching.shelf import Shelf

#: The answer may take what this leaves of the patience, so that a hang is noticed within one.
_LOOK_EVERY_S = 0.05
#: Leases of one look; with more keys the looks take turns.
_LEASES_PER_LOOK = 32


class Elsewhere:
    """
    Wakes who listens for a key.

    The look runs while somebody waits, and only then; it is owned by those who wait: the first one starts it, the last
    one to leave ends it. That Redis is away it tells the `Outage`, which wakes everybody. `on_wait(key)` and
    `on_leave(key)` are called when the first one begins to wait for a key, and when the last one has left.
    """

    def __init__(self, shelf: Shelf, background: Background) -> None:
        self._shelf, self._background = shelf, background
        self._events: dict[str, set[asyncio.Event]] = {}
        self._waiting: dict[str, int] = {}  # how many wait for a key; the next look begins with the first key
        self._looking: asyncio.Task[None] | None = None
        self.on_wait: Callable[[str], None] = _nothing
        self.on_leave: Callable[[str], None] = _nothing

    @contextlib.contextmanager
    def listening(self, key: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something may have changed about this key."""
        event, events = asyncio.Event(), self._events.setdefault(key, set())
        events.add(event)
        try:
            yield event
        finally:
            events.discard(event)
            if not events and self._events.get(key) is events:
                del self._events[key]

    def announced(self, key: str) -> None:
        """A load of this key ended somewhere, or its value changed."""
        for event in self._events.get(key, ()):
            event.set()

    def wake_all(self) -> None:
        """Let everybody ask."""
        for key in tuple(self._events):
            self.announced(key)

    async def wait(self, key: str, event: asyncio.Event, left_ms: int) -> None:
        """Until the event is set, at most until the lease has run out: its holder was killed then."""
        if key not in self._waiting:
            self.on_wait(key)
        self._waiting[key] = self._waiting.get(key, 0) + 1
        if self._looking is None:
            self._looking = self._background.spawn(self._look_now_and_then())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(left_ms, 1) / 1000 + random.uniform(0.001, 0.02)):
                    await event.wait()
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                self.on_leave(key)
            if not self._waiting:
                self._looking.cancel()
                self._looking = None

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            keys = list(islice(self._waiting, _LEASES_PER_LOOK))
            for key in keys:
                self._waiting[key] = self._waiting.pop(key)  # to the end
            stand = await self._shelf.leases_stand(keys, self._shelf.patience(spent_s=_LOOK_EVERY_S))
            for key, stands in zip(keys, stand, strict=True):
                if stands is False:
                    self.announced(key)


def _nothing(key: str) -> None:
    del key
