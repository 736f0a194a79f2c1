"""
Connections coming into being, and the server being away.

While connecting works, as many attempts run as are wanted and allowed. After a failure one runs at a time, with
jittered back-off, sooner while somebody waits: a server that starts up is not stormed. Each change of state is one log
line, and none of this needs traffic.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol

from aegis.backoff import Backoff
from aegis.database._driver import Conn, Driver
from aegis.database._lease import Counters
from aegis.errors import DatabaseUnavailableError

_log = logging.getLogger("aegis.database")
_BACKOFF = Backoff(base_s=0.1, cap_s=5.0, floor_s=0.05)
_HURRY_S = 0.25  # the longest wait for the next attempt while somebody waits for it


class Owner(Protocol):
    """Who needs connections: the pool."""

    def wanted(self) -> int:
        """How many more attempts would be of use now."""

    def room(self) -> int:
        """How many more connections are allowed."""

    def is_awaited(self) -> bool:
        """Whether somebody waits for one."""

    def arrived(self, conn: Conn) -> None:
        """Here is one."""

    def refused(self, failure: DatabaseUnavailableError) -> None:
        """An attempt failed; others may still run."""


class Supply:
    """Opens connections for one owner between `start` and `stop`."""

    def __init__(self, driver: Driver, owner: Owner, count: Counters, clock: Callable[[], float]) -> None:
        self.failure: DatabaseUnavailableError | None = None  #: the last one; None while connecting works
        self.connecting: set[asyncio.Task[None]] = set()
        self.planned: asyncio.TimerHandle | None = None  #: the next attempt, while the server is away
        self._driver, self._owner, self._count, self._clock = driver, owner, count, clock
        self._open = False
        self._failed_since, self._failed_attempts = 0.0, 0

    def start(self) -> None:
        """From now on."""
        self._open, self.failure = True, None

    def stop(self) -> None:
        """Start nothing more, and cancel what has begun; its tasks are still in `connecting`."""
        self._open = False
        if self.planned is not None:
            self.planned.cancel()
            self.planned = None
        for task in list(self.connecting):
            task.cancel()

    def grow(self) -> None:
        """Start as many attempts as are wanted and allowed; while the server is away, the plan alone decides."""
        if not self._open:
            return
        if self.failure is not None:
            self._plan()
            return
        for _ in range(min(self._owner.wanted(), self._owner.room())):
            self._start_one()

    def _start_one(self) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(), name="aegis.database.connect")
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)  # also when it is cancelled before it ran

    async def _connect(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            conn = await self._driver.connect()
        except DatabaseUnavailableError as exc:
            self.connecting.discard(task)
            self._failed(exc)
            return
        except BaseException:
            self.connecting.discard(task)
            raise
        self.connecting.discard(task)
        if not self._open:
            conn.terminate()
            return
        self._count.opened += 1
        self._is_back()
        self._owner.arrived(conn)
        self.grow()

    def _is_back(self) -> None:
        if self.failure is None:
            return
        attempts, self._failed_attempts, self.failure = self._failed_attempts, 0, None
        away_s = self._clock() - self._failed_since
        _log.info("PostgreSQL at %s is back after %.1f s, %d attempts failed", self._driver.address, away_s, attempts)

    def _failed(self, failure: DatabaseUnavailableError) -> None:
        self._count.connect_failures += 1
        self._failed_attempts += 1
        if self.failure is None:
            self._failed_since = self._clock()
            if self._open:
                _log.warning("%s; trying again in the background", failure)
        self.failure = failure
        self._owner.refused(failure)
        if self._open:
            self._plan()

    def _plan(self) -> None:
        if self.connecting or self._owner.room() < 1:
            return
        loop = asyncio.get_running_loop()
        delay_s = _BACKOFF.delay_s(self._failed_attempts)
        if self._owner.is_awaited():
            delay_s = min(delay_s, random.uniform(_HURRY_S / 2, _HURRY_S))
        if self.planned is not None:
            if self.planned.when() <= loop.time() + delay_s:
                return
            self.planned.cancel()
        self.planned = loop.call_later(delay_s, self.retry)

    def retry(self) -> None:
        """The planned attempt."""
        self.planned = None
        if self.failure is not None and not self.connecting and self._owner.room() > 0:
            self._start_one()
