"""
LISTEN on a connection of its own, that comes back by itself and says when something may have been missed.

PostgreSQL delivers a notification to whoever listens at that moment and keeps nothing, so a lost connection is a gap.
States of a listener: listening, away (its task reconnects, with back-off), closed. The task alone owns the connection.
It does not outlive its Database, whose end it looks for before and after it connects.
After a reconnect LISTEN comes first and `MaybeMissed` second, so whoever then reads the table again misses nothing.
The connection is asked every second, because a half-open one would be silent for ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aegis.backoff import Backoff
from aegis.database._driver import Conn, ours
from aegis.database.pool import Pool
from aegis.errors import ClosedError, DatabaseError

_log = logging.getLogger("aegis.database")
_CHANNEL_BYTES_MAX = 63  # the server cuts longer names (NAMEDATALEN - 1), and then nothing would ever match
_PING_EVERY_S, _PING_TIMEOUT_S = 1.0, 1.5
_CONNECT_TIMEOUT_S = 3.0  # of a reconnect: a hung attempt must not cost the five seconds in which we listen again
_BACKOFF = Backoff(base_s=0.1, cap_s=1.0, floor_s=0.05)


@dataclass(frozen=True, slots=True)
class Notification:
    """One NOTIFY. `pid` is the server process of the sender."""

    channel: str
    payload: str
    pid: int


@dataclass(frozen=True, slots=True)
class MaybeMissed:
    """
    Notifications may have been lost before this point; read again what they would have told you.

    `reason` is "reconnected" (the connection was away for `away_s` seconds) or "overflow" (you read too slowly).
    """

    reason: str
    away_s: float


class Listener:
    """The events of some channels, in order: `async with db.listen("quotes") as notes: async for note in notes`."""

    def __init__(self, pool: Pool, channels: tuple[str, ...], capacity: int) -> None:
        if not channels:
            raise ValueError("listen to what? Name at least one channel")
        for channel in channels:
            if not 0 < len(channel.encode()) <= _CHANNEL_BYTES_MAX:
                raise ValueError(f"channel {channel!r} is not 1 to {_CHANNEL_BYTES_MAX} bytes long")
        if capacity < 1:
            raise ValueError(f"capacity={capacity} is below 1")
        self.channels, self._capacity, self._pool, self._driver = channels, capacity, pool, pool.driver
        self._events: deque[Notification | MaybeMissed] = deque()
        self._arrived, self._lost = asyncio.Event(), asyncio.Event()
        self._conn: Conn = None
        self._task: asyncio.Task[None] | None = None
        self._away_since: float | None = None
        self._closed_by = ""

    def __repr__(self) -> str:
        state = "closed" if self._task is None else "away" if self._away_since is not None else "listening"
        return f"<Listener {', '.join(self.channels)} {state}, {len(self._events)} events wait>"

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("this listener is open already")
        self._needs_open_pool()
        await self._connect()
        self._task = asyncio.create_task(self._keep(), name="aegis.database.listen")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Notification | MaybeMissed:
        """The next event. Cancelling the wait (`wait_for`) loses nothing and ends nothing."""
        while not self._events:
            if self._task is None:
                raise ClosedError(self._closed_by or "Listener")
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()

    async def close(self, by: str = "Listener") -> None:
        """End it; whoever waits for an event gets ClosedError. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        self._closed_by = by
        self._arrived.set()
        task.cancel()
        await asyncio.wait([task])
        if self._conn is not None:
            await self._driver.close(self._conn)

    def _needs_open_pool(self) -> None:
        if not self._pool.is_open:
            raise ClosedError("Database")

    async def _connect(self) -> None:
        conn = await self._driver.connect()
        try:
            conn.add_termination_listener(self._on_lost)
            for channel in self.channels:
                await conn.add_listener(channel, self._on_notification)
            self._needs_open_pool()
        except BaseException as exc:
            conn.terminate()
            raise ours(exc, self._driver.address) from exc
        self._conn = conn
        self._lost.clear()

    async def _keep(self) -> None:
        """Watch the connection, and get another one when it is gone, until cancelled."""
        while True:
            await self._until_lost()
            self._away_since = time.monotonic()
            _log.warning("listening to %s at %s was interrupted", ", ".join(self.channels), self._driver.address)
            self._conn.terminate()
            attempt = 0
            while True:
                try:
                    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                        await self._connect()
                    break
                except (DatabaseError, TimeoutError):
                    attempt += 1
                await asyncio.sleep(_BACKOFF.delay_s(attempt))
            away_s, self._away_since = time.monotonic() - self._away_since, None
            _log.info("listening to %s again after %.1f s", ", ".join(self.channels), away_s)
            self._append(MaybeMissed("reconnected", away_s))

    async def _until_lost(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_PING_EVERY_S):
                    await self._lost.wait()
                return
            except TimeoutError:
                pass
            try:
                async with asyncio.timeout(_PING_TIMEOUT_S):
                    await self._driver.ping(self._conn)
            except Exception:  # noqa: BLE001 - whatever a ping raises, the connection is no good
                return

    def _on_lost(self, conn: Conn) -> None:
        if conn is self._conn:
            self._lost.set()

    def _on_notification(self, _conn: Conn, pid: int, channel: str, payload: str) -> None:
        if len(self._events) >= self._capacity:
            if not isinstance(self._events[-1], MaybeMissed):
                self._append(MaybeMissed("overflow", 0.0))
            return
        self._append(Notification(channel, payload, pid))

    def _append(self, event: Notification | MaybeMissed) -> None:
        self._events.append(event)
        self._arrived.set()
