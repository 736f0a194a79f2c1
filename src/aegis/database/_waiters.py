"""Those who wait for a connection, first come first served, each until a deadline of its own."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from operator import itemgetter

from aegis.database._lease import Lease


class Waiters:
    """A queue of futures in the order of their deadlines, which is that of their arrival: all wait equally long."""

    def __init__(self) -> None:
        self._queue: OrderedDict[asyncio.Future[Lease], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[asyncio.Future[Lease]]:
        return iter(self._queue)

    def join(self, deadline: float) -> asyncio.Future[Lease]:
        """A place in the line. Who came before others, but asked a dead connection meanwhile, is put before them."""
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        late = bool(self._queue) and next(reversed(self._queue.values())) > deadline
        self._queue[waiter] = deadline
        if late:
            self._queue = OrderedDict(sorted(self._queue.items(), key=itemgetter(1)))
        return waiter

    def leave(self, waiter: asyncio.Future[Lease]) -> None:
        """Its caller was cancelled."""
        self._queue.pop(waiter, None)

    def first(self) -> asyncio.Future[Lease] | None:
        """Who has waited longest, out of the line; None: nobody waits."""
        while self._queue:
            waiter, _ = self._queue.popitem(last=False)
            if not waiter.done():  # a cancelled one has not run its clean-up yet
                return waiter
        return None

    def overdue(self, now: float) -> Iterator[asyncio.Future[Lease]]:
        """Those whose time is up, out of the line."""
        while self._queue and next(iter(self._queue.values())) <= now:
            waiter, _ = self._queue.popitem(last=False)
            if not waiter.done():
                yield waiter

    def next_deadline(self) -> float | None:
        """When somebody's time is up next."""
        return next(iter(self._queue.values()), None)

    def fail(self, error: Callable[[], Exception]) -> None:
        """Everybody hears an error of his own: a shared one would collect the tracebacks of all."""
        while (waiter := self.first()) is not None:
            waiter.set_exception(error())
