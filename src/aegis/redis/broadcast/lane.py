"""
The way of one partition's ticks to the server: an outbox, one task, one frame in flight.

States: idle -> sending -> idle; a frame whose outcome is unknown is sent again until it is known, and published once,
because the script remembers how far the stream has come. After a reconnection, and when an answer shows that the server
has lost what it had acknowledged (another life of the data, or a stream that went back: a restart, a flush, a
failover), the lane writes its book again before it goes on. Only the lane's task talks to the server for it, so nothing
here can overtake.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aegis.backoff import Backoff
from aegis.errors import ClosedError, RedisError
from aegis.redis._script import load_script
from aegis.redis.broadcast.clock import ServerClock
from aegis.redis.broadcast.outbox import ConflatingOutbox, Outbox, Parcel
from aegis.redis.broadcast.parts import merge, newest_of
from aegis.redis.broadcast.turn import Turn
from aegis.redis.broadcast.wire import Body, Header, Names, pack_body, stored_at_us, stored_payload, stored_prefix
from aegis.redis.client import Redis
from aegis.redis.connection.shared import Argument

log = logging.getLogger("aegis.redis")

_PUBLISH = load_script("quotes_header", "quotes_record", "quotes_publish")
_RESTORE = load_script("quotes_header", "quotes_record", "quotes_restore")
_RETRY = Backoff(base_s=0.05, cap_s=1.0)
_RESTORE_AT_ONCE = 500
#: Behind a frame in flight, ticks are gathered for so long before they become another frame.
_GATHER_S = 0.05


@dataclass(frozen=True, slots=True)
class Shared:
    """
    What all lanes of one producer share.

    `on_taken(count)` is called whenever the server has taken ticks, `on_end(exc)` when a lane can go on no more (the
    `Redis` was closed). With `on_fold`, outboxes conflate, and call it for every tick that a newer one replaced.
    """

    redis: Redis
    names: Names
    clock: ServerClock
    stream: str
    on_taken: Callable[[int], None]
    on_end: Callable[[BaseException], None]
    on_fold: Callable[[], None] | None
    log_frames: int
    partial: bool


class Lane:
    """One partition of one producer. `cause` says why nothing moves, if so."""

    def __init__(self, number: int, shared: Shared) -> None:
        self.number, self._shared = number, shared
        self._redis, self._names, self._stream = shared.redis, shared.names, shared.stream
        self.outbox: Outbox | ConflatingOutbox = (
            Outbox() if shared.on_fold is None else ConflatingOutbox(shared.on_fold)
        )
        self._book: dict[str, bytes] = {}  # the newest value of each key, as it is stored
        self._life = ""
        self._seq = 0  # of the newest tick that the server has taken
        self._version = 0  # newest that we know of the partition
        self._newest_frame = (0, 0)  # its version, its time
        self._turn = Turn(shared.stream)
        self._book_on = 0  # the connection over which the server has shown that it holds our book
        self._sending = False
        self._lost_data = False
        self._hurry = False  # the open parcel must not wait for the regular flush
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.taken = self.frames = self.restored = 0
        self.cause = ""

    def __repr__(self) -> str:
        state = "sending" if self._sending else "idle"
        return f"<Lane {self.number} {state} pending={self.outbox.accepted - self.taken} seq={self._seq}>"

    # --- the publisher's side: never waits ---

    def leave(self) -> None:
        """Send the parcels that are closed."""
        self._start()

    def leave_now(self) -> None:
        """Send everything as soon as the frame in flight has been answered; until then, it may become more."""
        self._hurry = True
        self._start()

    def leave_soon(self, now: float) -> bool:
        """The regular flush. Returns whether something stays behind for the next one."""
        self.outbox.close_parcel(now - _GATHER_S if self._sending else float("inf"))
        self._start()
        return len(self.outbox) > 0

    async def wait_taken(self) -> None:
        """Return when the server has taken everything accepted so far."""
        accepted = self.outbox.accepted
        if self.taken >= accepted:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((accepted, future))
        self.leave_now()
        await future

    def audit(self, header: Header) -> None:
        """What the server says about the partition: is all there that it had acknowledged, and is it the same one?"""
        if not self._life:
            return
        behind = header.life != self._life or header.streams.get(self._stream, 0) < self._seq
        if behind or self._connection != self._book_on:
            self._lost_data = True
            self._start()

    def forget(self, before_us: int) -> None:
        """Values from before this time shall not be written again."""
        self._book = {key: value for key, value in self._book.items() if stored_at_us(value) >= before_us}

    async def close(self) -> None:
        """Stop; what is pending stays unsent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._fail_waiters(ClosedError("PubSub"))

    def _fail_waiters(self, exc: BaseException) -> None:
        while self._waiters:
            _, future = self._waiters.pop()
            if not future.done():
                future.set_exception(exc)

    # --- the task ---

    def _start(self) -> None:
        self._wake.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"aegis broadcast lane {self.number}")

    async def _run(self) -> None:
        try:
            await self._serve()
        except Exception as exc:  # noqa: BLE001 - whatever ends the lane must reach those who wait for it
            self._fail_waiters(exc)
            self._shared.on_end(exc)

    async def _serve(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._sending = True
            while True:
                if self._lost_data:
                    await self._until_taken(self._restore)
                elif (parcel := self.outbox.take()) is not None:
                    await self._send(parcel)
                elif self._hurry:
                    self._hurry = False
                    self.outbox.close_parcel()
                else:
                    break
            self._sending = False

    async def _send(self, parcel: Parcel) -> None:
        count, seq, at_us = len(parcel), self._seq + 1, self._shared.clock.at_us(parcel.born)
        version = max(self._version + 1, at_us)  # as we propose
        folded = parcel.folded if any(parcel.folded) else []
        body = pack_body(Body(self._stream, seq, parcel.kinds, folded, parcel.keys, parcel.payloads))
        partial, ticks = self._shared.partial, zip(parcel.keys, parcel.payloads, strict=True)
        newest = newest_of(ticks) if partial else dict(ticks)
        prefix = stored_prefix(version + count - 1, seq + count - 1, at_us, self._stream)
        values = {key: prefix + payload for key, payload in newest.items()}
        head: list[Argument] = [self._stream, seq, count, at_us, self._shared.log_frames, version, self._names.publish]
        tail: list[Argument] = [body, len(prefix), int(partial)]
        tail += itertools.chain.from_iterable(values.items())

        async def publish() -> None:
            connection = self._connection
            known = at_us >= 0 and not partial and newest.keys() <= self._book.keys()
            turn, unseen = self._turn.ask(connection, known=known)
            args = [uuid.uuid4().hex, *head, turn, self._life if unseen else "", *tail]
            reply = await self._redis.run(_PUBLISH, self._keys, args, idempotent=not unseen)
            self._turn.answered(turn, connection, reply[3])
            decided = self._answered(parcel, seq, at_us, reply)
            if partial:
                self._book.update({key: decided + self._merged(key, payload) for key, payload in newest.items()})
            elif decided != prefix:
                self._book.update({key: decided + payload for key, payload in newest.items()})
            else:
                self._book.update(values)

        await self._until_taken(publish)

    def _answered(self, parcel: Parcel, seq: int, at_us: int, reply: list[bytes]) -> bytes:
        """
        The server has taken a frame: remember it, and look whether it still has those before.

        Returns what now stands before its payloads.
        """
        life, version, had = reply[0].decode(), int(reply[1]), int(reply[2])
        count = len(parcel)
        last = seq + count - 1
        if had != last:  # else it had been taken before, and only the answer was lost
            self._lost_data = self._lost_data or had != self._seq or (bool(self._life) and life != self._life)
        if not self._life:
            self._book_on = self._connection
        self._life, self._seq, self._version = life, last, max(self._version, version + count - 1)
        at_us = version if at_us < 0 else at_us  # the server's own time then, which is what a version is
        self._newest_frame = (version, at_us)
        self.taken += count + sum(parcel.folded)
        self.frames += 1
        self._shared.on_taken(count)
        while self._waiters and self._waiters[0][0] <= self.taken:
            _, future = self._waiters.pop(0)
            if not future.done():
                future.set_result(None)
        return stored_prefix(version + count - 1, last, at_us, self._stream)

    def _merged(self, key: str, payload: bytes) -> bytes:
        """A record in parts, as far as it is ours."""
        older = self._book.get(key)
        return payload if older is None else merge(stored_payload(older), payload)

    async def _restore(self) -> None:
        """Write the book again: under its old versions, and only where the server has nothing as new."""
        self._lost_data, connection = False, self._connection
        self._turn.end()
        fields = list(self._book.items())
        version, at_us = self._newest_frame
        try:
            for start in range(0, len(fields), _RESTORE_AT_ONCE):
                flat: list[Argument] = []
                for field in fields[start : start + _RESTORE_AT_ONCE]:
                    flat += field
                head: list[Argument] = [
                    self._names.publish,
                    uuid.uuid4().hex,
                    self._stream,
                    self._seq,
                    version,
                    at_us,
                    self._version,
                ]
                reply = await self._redis.run(_RESTORE, self._keys[:2], [*head, *flat], idempotent=True)
                self._life = reply[0].decode()
                self.restored += reply[1]
            self._book_on = connection
        except BaseException:
            self._lost_data = True
            raise

    async def _until_taken(self, work: Callable[[], Awaitable[None]]) -> None:
        """However often it takes. Refusals (a wrong type, no permission, no memory) may be put right meanwhile, too."""
        attempt = 0
        while True:
            try:
                await work()
            except RedisError as exc:
                attempt, self.cause = attempt + 1, str(exc)
                if attempt == 2:  # the first may be a frame whose answer was lost with the connection
                    log.warning("broadcast %s: cannot publish, trying on: %s", self._names.topic, exc)
            else:
                if attempt > 1:
                    log.info("broadcast %s: publishing again after %d attempts", self._names.topic, attempt)
                self.cause = ""
                return
            await asyncio.sleep(_RETRY.delay_s(attempt))

    @property
    def _connection(self) -> int:
        return self._redis.connection_for(self._names.book(self.number))

    @property
    def _keys(self) -> list[str]:
        names, number = self._names, self.number
        return [names.book(number), names.channel(number), names.log(number)]


__all__ = ["Lane"]
