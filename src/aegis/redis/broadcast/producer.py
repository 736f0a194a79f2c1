"""
The publishing side of one `PubSub`: which lane a key takes, when lanes leave, how much may wait.

The regular flush comes `flush_s` after the first tick that waits, for all lanes in the same turn of the loop, so that
their frames leave in one write. A full parcel or an urgent tick does not wait for it. What waits is bounded over all
lanes; then `publish` waits, first come first served.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from typing import Any

import msgspec

from aegis.errors import ClosedError, OutboxFullError, PayloadError, UnsentTicksError
from aegis.redis.broadcast.clock import ServerClock
from aegis.redis.broadcast.lane import Lane, Shared
from aegis.redis.broadcast.wire import Header, Names
from aegis.redis.client import Redis

#: Most ticks that wait for the server; then `publish` waits.
OUTBOX_MAX = 65_536
FLUSH_S = 0.005
#: Who publishes in a tight loop gives way once in so many ticks that wait, less one: about a millisecond.
_YIELD_MASK = 1023


class Producer:
    """
    One producer in one life: `stream` names both, `producer.epoch`.

    States: open -> ended (the bus was left, or the `Redis` under it closed: `ended_by`).
    """

    def __init__(
        self,
        redis: Redis,
        names: Names,
        clock: ServerClock,
        name: str,
        *,
        flush_s: float,
        outbox_max: int,
        conflate: bool,
        log_frames: int,
        partial: bool,
    ) -> None:
        self._names = names
        self.stream = f"{name}.{time.time_ns() // 1000:x}{uuid.uuid4().hex[:4]}"
        self._flush_s, self._outbox_max = flush_s, outbox_max
        on_fold = self._folded if conflate else None
        self._shared = Shared(redis, names, clock, self.stream, self._taken, self._end, on_fold, log_frames, partial)
        self._encode = msgspec.json.Encoder().encode
        self._lanes: dict[int, Lane] = {}
        self._lane_of: dict[str, Lane] = {}
        self._flush_timer: asyncio.TimerHandle | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ended_by: BaseException | None = ClosedError("PubSub")
        self.blocked = True  # whether a tick must wait for room, or will get none: not open yet, or ended
        self.pending = self.published = self.conflated = 0

    # --- what users call ---

    def put(self, key: str, value: Any, trade: bool, urgent: bool) -> bool:
        """Put a tick into its lane's outbox, while not `blocked`. Returns whether it is time to let others work."""
        try:
            payload = self._encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise PayloadError(key, f"cannot be published as JSON: {exc}") from exc
        lane = self._lane_of.get(key) or self._find_lane(key)
        full = lane.outbox.add(key, payload, trade)
        self.pending = pending = self.pending + 1
        if pending >= self._outbox_max:
            self.blocked = True
        if urgent:
            lane.leave_now()
        elif full:
            lane.leave()
        elif self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(self._flush_s, self._flush_lanes)
        return full or not pending & _YIELD_MASK

    async def wait_for_room(self, timeout: float | None) -> None:
        """
        Return when a tick may be put, first come first served.

        Raises:
            OutboxFullError: not within `timeout` seconds.
        """
        if self._ended_by is not None:
            raise ClosedError("PubSub") from self._ended_by
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        for lane in self._lanes.values():
            lane.leave_now()
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError as exc:
            raise OutboxFullError(self._names.topic, self.pending, timeout or 0.0, self.cause) from exc
        except asyncio.CancelledError:
            self._let_in()  # it may have been let in a moment ago; then the next one takes its place
            raise
        finally:
            if future in self._waiting:
                self._waiting.remove(future)

    def open(self) -> None:
        """From now on ticks are taken."""
        self._ended_by, self.blocked = None, False

    async def flush(self, timeout: float | None) -> None:
        """Return when the server has taken everything published so far."""
        if self._ended_by is not None and self.pending:
            raise ClosedError("PubSub") from self._ended_by
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(*(lane.wait_taken() for lane in self.lanes))
        except TimeoutError as exc:
            raise UnsentTicksError(self._names.topic, self.pending, timeout or 0.0, self.cause) from exc

    async def close(self) -> None:
        """End all lanes; what is pending stays unsent, and who waits is told."""
        self._end(ClosedError("PubSub"))
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        for lane in self.lanes:
            await lane.close()

    # --- what others ask ---

    @property
    def lanes(self) -> list[Lane]:
        """The lanes that have been used."""
        return list(self._lanes.values())

    def lane(self, partition: int) -> Lane | None:
        """The lane of a partition, if it has been used."""
        return self._lanes.get(partition)

    @property
    def cause(self) -> str:
        """Why nothing moves; empty while everything does."""
        return next((lane.cause for lane in self._lanes.values() if lane.cause), "")

    def audit(self, partition: int, header: Header) -> None:
        """What the server says about a partition."""
        lane = self._lanes.get(partition)
        if lane is not None:
            lane.audit(header)

    # --- inside ---

    def _find_lane(self, key: str) -> Lane:
        if not isinstance(key, str):
            raise TypeError(f"the key of a tick must be text: {key!r}")
        if not key or key.startswith("\0"):
            raise ValueError(f"the key of a tick must not be empty or begin with NUL: {key!r}")
        number = self._names.partition_of(key)
        lane = self._lanes.get(number)
        if lane is None:
            lane = self._lanes[number] = Lane(number, self._shared)
        self._lane_of[key] = lane
        return lane

    def _flush_lanes(self) -> None:
        self._flush_timer = None
        now, behind = time.monotonic(), False
        for lane in self._lanes.values():
            if lane.outbox:
                behind = lane.leave_soon(now) or behind
        if behind:
            self._flush_timer = asyncio.get_running_loop().call_later(self._flush_s, self._flush_lanes)

    def _taken(self, count: int) -> None:
        self.pending -= count
        self.published += count
        self._let_in()

    def _folded(self) -> None:
        self.pending -= 1
        self.conflated += 1

    def _let_in(self) -> None:
        if self._ended_by is not None:
            return
        room = self._outbox_max - self.pending
        while self._waiting and room > 0:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                room -= 1
        self.blocked = bool(self._waiting) or self.pending >= self._outbox_max

    def _end(self, exc: BaseException) -> None:
        self._ended_by, self.blocked = self._ended_by or exc, True
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(ClosedError("PubSub"))
