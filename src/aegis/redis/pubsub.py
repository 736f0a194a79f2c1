"""
The broadcast of quotes: the newest value always arrives, every loss is reported, a slow reader hurts only itself.

A topic has partitions. Publishing puts ticks into a partition's outbox; a flush every few milliseconds turns each
outbox into one script call that stores the newest values and announces them as one frame. Versions are given by the
server, per partition and without holes, so a hole that a subscriber sees is a loss, whoever published. Tail loss on a
quiet key is seen by comparing versions with the server once a second. Every repair is the same: report the gap, read
the partition, merge by version.

States and owners: outboxes belong to the publisher's flush task; a partition's `seen` version belongs to the reader;
`_repair` brings a partition up to date, one at a time. Rejected: one message per tick (the cost is per message),
versions by the producer's clock (two producers disagree), `SET` and `PUBLISH` apart (stored but never announced).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
import zlib
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec

from aegis.backoff import Backoff
from aegis.errors import ClosedError, RedisError, ServerReplyError
from aegis.redis._feed import Feed
from aegis.redis._frame import Gap, Tick, Update, parse_frame, parse_last
from aegis.redis._script import load_script
from aegis.redis._subscription import POLICIES, RING, Policy, Subscription
from aegis.redis.client import Redis

__all__ = ["Gap", "PubSub", "PubSubStats", "Subscription", "Update"]

log = logging.getLogger("aegis.redis")

_PUBLISH = load_script("quotes_publish")
_PARTITIONS = 16
_FLUSH_EVERY_S = 0.005
_HEARTBEAT_S = 1.0
#: Most ticks that wait for the server; then `publish` waits.
_OUTBOX_MAX = 65_536
_FRAME_TICKS_MAX = 500
_PRODUCER_REMEMBERED_S = 3600


@dataclass(frozen=True, slots=True)
class PubSubStats:
    """Totals of one `PubSub`."""

    published: int  #: ticks that the server has taken
    frames: int
    pending: int  #: ticks in the outbox
    received: int  #: ticks that arrived here
    gaps: int
    repairs: int
    subscriptions: int
    lag_s: float  #: of the newest frame, by the two machines' clocks


@dataclass(slots=True)
class _Partition:
    """One stream: what is to be sent, and what has been seen of it."""

    number: int
    outbox: deque[tuple[str, bytes]] = field(default_factory=deque)
    frame: int = 0
    sending: bool = False
    epoch: bytes = b""
    seen: int = -1  #: newest version that arrived; -1: nothing is known yet
    server_had: int = 0  #: what the server had at the last heartbeat
    repairing: bool = False


class PubSub:
    """
    One topic. `publish` returns when the tick is in the outbox; `flush` when the server has everything.

    A frame whose answer was lost is sent again and published once. With Redis disabled, publishing does nothing and a
    subscription stays quiet until it is closed.
    """

    def __init__(self, redis: Redis, prefix: str = "aegis", topic: str = "quotes") -> None:
        self._redis, self._name = redis, f"{prefix}:{topic}"
        self._producer = uuid.uuid4().hex
        self._partitions = [_Partition(number) for number in range(_PARTITIONS)]
        self._by_channel = {self._channel(p.number).encode(): p for p in self._partitions}
        self._subscriptions: list[Subscription] = []
        self._feed: Feed | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._dirty, self._drained = asyncio.Event(), asyncio.Event()
        self._drained.set()
        self._pending = self._published = self._frames = self._received = self._gaps = self._repairs = 0
        self._lag_s = 0.0
        self._open = False

    def __repr__(self) -> str:
        return f"<PubSub {self._name} pending={self._pending} subscriptions={len(self._subscriptions)}>"

    async def __aenter__(self) -> Self:
        self._open = True
        if self._redis.enabled:
            self._spawn(self._flush_for_ever())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._redis.enabled:
                await self.flush()
        finally:
            await self._close()

    async def publish(self, key: str, value: Any, *, urgent: bool = False) -> None:
        """
        Announce the newest value of `key`; waits only while the outbox is full. `urgent` does not wait for the flush.

        Raises:
            ClosedError: the bus is not open.
        """
        if not self._redis.enabled:
            return
        if not self._open:
            raise ClosedError("PubSub")
        while self._pending >= _OUTBOX_MAX:
            self._drained.clear()
            await self._drained.wait()
        partition = self._partition_of(key)
        partition.outbox.append((key, msgspec.json.encode(value)))
        self._pending += 1
        if urgent:
            self._send_soon(partition)
        self._dirty.set()

    async def flush(self) -> None:
        """Wait until the server has taken everything that was published before."""
        while self._pending:
            self._dirty.set()
            self._drained.clear()
            await self._drained.wait()

    def subscribe(self, *keys: str, type: Any = Any, policy: Policy = "latest") -> Subscription:  # noqa: A002 - contract
        """
        The last values of `keys` (none: the whole topic), then every change, decoded into `type`.

        `latest` keeps the newest tick of every key for a slow consumer; `all` keeps every tick in a ring.
        """
        if policy not in POLICIES:
            raise ValueError(f"policy={policy!r} is none of {', '.join(POLICIES)}")
        wanted = frozenset(keys) or None
        decoder = msgspec.json.Decoder(type)
        return Subscription(wanted, decoder, policy, ring=RING, attach=self._attach, detach=self._detach)

    async def last(self, key: str, type: Any = Any) -> Any:  # noqa: A002 - the contract's name
        """The newest value of `key`, or None."""
        partition = self._partition_of(key)
        stored = await self._redis.execute("HGET", self._key(partition.number, "last"), key)
        return None if stored is None else msgspec.json.decode(parse_last(key.encode(), stored).payload, type=type)

    def stats(self) -> PubSubStats:
        """Totals since this object was made."""
        return PubSubStats(
            self._published,
            self._frames,
            self._pending,
            self._received,
            self._gaps,
            self._repairs,
            len(self._subscriptions),
            self._lag_s,
        )

    # --- publishing ---

    async def _flush_for_ever(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(_FLUSH_EVERY_S)
            self._dirty.clear()
            for partition in self._partitions:
                self._send_soon(partition)

    def _send_soon(self, partition: _Partition) -> None:
        if partition.outbox and not partition.sending:
            partition.sending = True
            self._spawn(self._send(partition))

    async def _send(self, partition: _Partition) -> None:
        """Empty the outbox, frame by frame, one in flight: the order is the publisher's."""
        try:
            while partition.outbox:
                ticks = [partition.outbox[i] for i in range(min(len(partition.outbox), _FRAME_TICKS_MAX))]
                await self._send_frame(partition, ticks)
                for _ in ticks:
                    partition.outbox.popleft()
                self._pending -= len(ticks)
                self._published += len(ticks)
                self._frames += 1
                self._drained.set()
        finally:
            partition.sending = False

    async def _send_frame(self, partition: _Partition, ticks: list[tuple[str, bytes]]) -> None:
        """Publish one frame exactly once, however often it takes: the script knows the number of the last one."""
        partition.frame += 1
        number, backoff, attempt = partition.number, Backoff(0.05, 2.0), 0
        keys = [self._key(number, "last"), self._key(number, "meta"), self._key(number, self._producer)]
        flat = [part for tick in ticks for part in tick]
        args = [uuid.uuid4().hex, partition.frame, _PRODUCER_REMEMBERED_S, *flat]
        while True:
            try:
                await self._redis.run(_PUBLISH, [*keys, self._channel(number)], args, idempotent=True)
            except ClosedError:
                raise
            except RedisError as exc:
                attempt += 1
                if attempt == 1:
                    log.warning("broadcast %s: a frame could not be published, trying on: %s", self._name, exc)
                if isinstance(exc, ServerReplyError) and exc.code in {"WRONGTYPE", "NOPERM"}:
                    raise
            else:
                return
            await asyncio.sleep(backoff.delay_s(attempt))

    # --- subscribing ---

    async def _attach(self, subscription: Subscription) -> None:
        """Subscribe, wait for the confirmation, and only then read: nothing falls between."""
        if not self._open:
            raise ClosedError("PubSub")
        if not self._redis.enabled:
            return
        for partition in self._partitions_of(subscription):
            subscription.set_aside(partition.number)
        self._subscriptions.append(subscription)
        try:
            await self._start_feed().subscribe(*self._by_channel)
            for partition in self._partitions_of(subscription):
                await self._read_into(partition, [subscription])
        except BaseException:
            self._detach(subscription)
            raise

    def _detach(self, subscription: Subscription) -> None:
        with contextlib.suppress(ValueError):
            self._subscriptions.remove(subscription)

    def _partitions_of(self, subscription: Subscription) -> list[_Partition]:
        if subscription.keys is None:
            return self._partitions
        numbers = {self._partition_of(key).number for key in subscription.keys}
        return [self._partitions[number] for number in sorted(numbers)]

    def _start_feed(self) -> Feed:
        if self._feed is None:
            self._feed = Feed(self._redis.config, self._on_message, self._on_up, self._on_down)
            self._feed.start()
            self._spawn(self._compare_for_ever())
        return self._feed

    def _on_up(self) -> None:
        """Connected again: whatever was announced meanwhile is read."""
        for partition in self._partitions:
            if partition.seen >= 0:
                self._repair_soon(partition, "the connection was lost")

    def _on_down(self, why: str) -> None:
        log.warning("broadcast %s: connection lost, quotes are stale: %s", self._name, why)

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        partition = self._by_channel.get(channel)
        if partition is None:
            return
        frame = parse_frame(payload)
        self._received += len(frame.ticks)
        self._lag_s = time.time() - frame.ticks[0].at_us / 1e6
        if partition.seen >= 0 and not partition.repairing:
            if partition.epoch and frame.epoch != partition.epoch:
                self._repair_soon(partition, "the stream began anew")
                partition.seen = 0
            elif frame.first_version > partition.seen + 1:  # at most: it was read before it arrived
                self._repair_soon(partition, "announcements were lost")
        partition.epoch, partition.seen = frame.epoch, max(partition.seen, frame.ticks[-1].version)
        for subscription in self._subscriptions:
            subscription.offer(partition.number, frame.ticks)

    async def _compare_for_ever(self) -> None:
        """Once a second: what the server had a second ago and has not arrived here was lost."""
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            if not self._subscriptions:
                continue
            with contextlib.suppress(RedisError):
                commands = [("HMGET", self._key(p.number, "meta"), "epoch", "version") for p in self._partitions]
                for partition, (epoch, version) in zip(
                    self._partitions, await self._redis.pipeline(commands), strict=True
                ):
                    self._compare(partition, epoch or b"", int(version or 0))

    def _compare(self, partition: _Partition, epoch: bytes, version: int) -> None:
        if partition.seen < 0 or partition.repairing:
            return
        if partition.epoch and epoch != partition.epoch:
            self._repair_soon(partition, "the stream began anew")
        elif partition.seen < partition.server_had <= version:
            self._repair_soon(partition, "the last announcements were lost")
        partition.server_had = version

    def _repair_soon(self, partition: _Partition, reason: str) -> None:
        if partition.repairing:
            return
        partition.repairing = True
        affected = [s for s in self._subscriptions if partition in self._partitions_of(s)]
        for subscription in affected:
            subscription.set_aside(partition.number)
        self._spawn(self._repair(partition, affected, (partition.epoch, partition.seen), reason))

    async def _repair(
        self, partition: _Partition, affected: list[Subscription], known: tuple[bytes, int], reason: str
    ) -> None:
        """Report what was lost, then bring everybody up to date, however often reading takes."""
        known_epoch, seen = known
        try:
            epoch, version, stored = await self._read_in_any_weather(partition)
            anew = bool(known_epoch) and epoch != known_epoch
            if anew or version > seen:
                self._gaps += 1
                gap = Gap(partition.number, seen + 1, version, 0 if anew else version - seen, reason)
                for subscription in affected:
                    if anew:
                        subscription.forget_versions(lambda key: self._partition_of(key) is partition)
                    subscription.report(gap)
            for subscription in affected:
                subscription.merge(partition.number, stored)
            self._repairs += 1
            partition.seen = version if epoch != partition.epoch else max(version, partition.seen)
            partition.epoch = epoch
        finally:
            partition.repairing = False

    async def _read_in_any_weather(self, partition: _Partition) -> tuple[bytes, int, list[Tick]]:
        backoff, attempt = Backoff(0.05, 1.0), 0
        assert self._feed is not None
        while True:
            try:
                await self._feed.subscribe(self._channel(partition.number).encode())  # confirmed first, read then
                return await self._read(partition)
            except RedisError:
                attempt += 1
                await asyncio.sleep(backoff.delay_s(attempt))

    async def _read_into(self, partition: _Partition, subscriptions: list[Subscription]) -> None:
        epoch, version, stored = await self._read(partition)
        if version > partition.seen:
            partition.epoch, partition.seen = epoch or partition.epoch, version
        for subscription in subscriptions:
            subscription.merge(partition.number, stored)

    async def _read(self, partition: _Partition) -> tuple[bytes, int, list[Tick]]:
        """Epoch, version and last values of a partition, of one moment."""
        meta, last = self._key(partition.number, "meta"), self._key(partition.number, "last")
        head, flat = await self._redis.transaction([("HMGET", meta, "epoch", "version"), ("HGETALL", last)])
        stored = [parse_last(key, value) for key, value in zip(flat[::2], flat[1::2], strict=True)]
        return head[0] or b"", int(head[1] or 0), stored

    # --- names and tasks ---

    def _partition_of(self, key: str) -> _Partition:
        return self._partitions[zlib.crc32(key.encode()) % _PARTITIONS]

    def _key(self, number: int, what: str) -> str:
        return f"{self._name}:{{{self._name}:{number}}}:{what}"

    def _channel(self, number: int) -> str:
        return self._key(number, "frames")

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("broadcast %s: background work failed: %s", self._name, exc)

    async def _close(self) -> None:
        self._open = False
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._feed is not None:
            await self._feed.close()
        for subscription in list(self._subscriptions):
            subscription.end()
        self._subscriptions.clear()
