"""
The listening side of one `PubSub`: one connection, the partitions that somebody wants, and who wants them.

The socket's callback parses and routes, and waits for nobody. Everything that has to be read is read by a task of the
partition, at most one at a time: opening it, and repairing it. Every repair takes the same steps: keep what arrives,
have the subscription confirmed, read the header, let what was announced before arrive (`barrier`), read the values,
compare, report what was lost, pass on what nobody had seen and then what was kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from aegis.backoff import Backoff
from aegis.errors import ClosedError, RedisError, RedisUnavailableError
from aegis.redis.broadcast.audience import Audience
from aegis.redis.broadcast.clock import ServerClock
from aegis.redis.broadcast.partition import Partition, State, Verdict
from aegis.redis.broadcast.reading import logged_up_to, read_header, read_log, read_values, read_wanted
from aegis.redis.broadcast.replay import replay
from aegis.redis.broadcast.subscription import Subscription
from aegis.redis.broadcast.wire import Frame, Header, Names, parse_frame, parse_header, parse_restored
from aegis.redis.client import Redis
from aegis.redis.connection.feed import Feed
from aegis.redis.connection.feeds import Feeds, make_feed
from aegis.redis.connection.stats import Latency

log = logging.getLogger("aegis.redis")

_RETRY = Backoff(base_s=0.05, cap_s=1.0)
#: The server counts as heard when it has said something within this time; heartbeats come more often.
SILENCE_MAX_S = 3.0
#: So many heartbeats in a row that are asked for and do not come back on a connection condemn it.
_UNHEARD_MAX = 3
_LAG_BUCKETS = 28


class Place:
    """A partition, its audience, and the task that reads it."""

    def __init__(self, number: int) -> None:
        self.partition, self.audience = Partition(number), Audience()
        self.opened = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.restored: list[tuple[Frame, str]] = []  # what was written again while the partition is read
        self.heard_at = 0.0  # the last heartbeat
        self.unheard = 0


class Receiver:
    """Owns the feed, the partitions' states and the list of subscriptions."""

    def __init__(self, redis: Redis, names: Names, clock: ServerClock) -> None:
        self._redis, self._names, self._clock = redis, names, clock
        self.topic = names.topic
        self._places = [Place(number) for number in range(names.partitions)]
        self._by_channel = {names.channel(place.partition.number).encode(): place for place in self._places}
        self.subscriptions: list[Subscription] = []
        self._feed: Feed | Feeds | None = None
        self._losses = 0  # how often the connection was lost
        self._heard_at = 0.0
        self._closed = False
        self.received = self.frames = self.gaps = self.repairs = self.heartbeats = 0
        self.conflated_before = self.evicted_before = 0  # of subscriptions that have ended
        self._lag_counts, self._lag_sum_s = [0] * _LAG_BUCKETS, 0.0

    # --- subscriptions come and go ---

    async def attach(self, subscription: Subscription) -> None:
        """Listen first, then read: nothing falls between. Returns when the last values wait to be taken."""
        if self._closed:
            raise ClosedError("PubSub")
        self.subscriptions.append(subscription)
        if not self._redis.enabled:
            return
        places = self._places_of(subscription)
        for place in places:
            subscription.hold(place.partition.number)
            place.audience.add(subscription)
        timeout_s = self._redis.config.command_timeout
        try:
            async with asyncio.timeout(timeout_s):
                for place in places:
                    self._open(place)
                await asyncio.gather(*(self._join(place, subscription) for place in places))
        except TimeoutError as exc:
            self.detach(subscription)
            cause = f"no subscription confirmed within {timeout_s:g} s"
            raise RedisUnavailableError(self._redis.config.address, cause) from exc
        except BaseException:
            self.detach(subscription)
            raise

    def detach(self, subscription: Subscription) -> None:
        """Give it no more; a partition that nobody wants is no longer listened to."""
        if subscription not in self.subscriptions:
            return
        self.subscriptions.remove(subscription)
        self.conflated_before += subscription.conflated
        self.evicted_before += subscription.evicted
        for place in self._places_of(subscription):
            place.audience.remove(subscription)
            if not place.audience:
                self._leave(place)

    async def close(self) -> None:
        """End every subscription and the connection."""
        self._closed = True
        for subscription in list(self.subscriptions):
            self.detach(subscription)
            subscription.end()
        tasks = [place.task for place in self._places if place.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        feed, self._feed = self._feed, None
        if feed is not None:
            await feed.close()

    # --- what others ask ---

    @property
    def connected(self) -> bool:
        """Whether the feed is up."""
        return self._feed is not None and self._feed.connected

    @property
    def reconnects(self) -> int:
        """How often the feed has come back."""
        return max(self._feed.connections - 1, 0) if self._feed is not None else 0

    @property
    def silent_s(self) -> float:
        """Since the server was last heard."""
        return time.monotonic() - self._heard_at if self._heard_at else 0.0

    @property
    def live(self) -> bool:
        """Whether the server is heard, and nothing waits to be read again."""
        if not self._redis.enabled or not self.connected or self.silent_s > SILENCE_MAX_S:
            return False
        return all(place.partition.state is not State.READING for place in self._places)

    @property
    def lag(self) -> Latency:
        """From `publish` to arrival here, counted per tick."""
        return Latency(tuple(self._lag_counts), self._lag_sum_s)

    # --- heartbeats ---

    def heard_since(self, partition: int, moment: float) -> bool:
        """Whether nobody needs to ask for a heartbeat: one came, or nobody listens."""
        place = self._places[partition]
        return not place.audience or place.heard_at >= moment

    def compare(self, partition: int, header: Header, asked_at: float) -> None:
        """What the server answered to a heartbeat that did not come back on the feed, or not yet."""
        place = self._places[partition]
        if not place.audience or place.heard_at >= asked_at or place.partition.state is not State.LIVE:
            return
        place.unheard += 1
        if place.unheard >= _UNHEARD_MAX and self._feed is not None:
            place.unheard = 0
            self._feed.renew("the connection answers, but delivers nothing")
        elif header.version > place.partition.version and (reason := place.partition.differs(header)):
            self._repair_soon(place, reason)  # an older header says nothing: frames have come since it was read

    # --- the socket's callbacks: never wait ---

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        place = self._by_channel.get(channel)
        if place is None or not place.audience:
            return
        self._heard_at = time.monotonic()
        first = payload[0]
        if first == _HEARTBEAT:
            self._on_heartbeat(place, parse_header(payload[1:]))
        elif first == _RESTORED:
            self._on_restored(place, *parse_restored(place.partition.number, payload))
        else:
            self._on_frame(place, parse_frame(place.partition.number, payload))

    def _on_frame(self, place: Place, frame: Frame) -> None:
        count = len(frame.keys)
        self.received += count
        self.frames += 1
        if self._clock.known:
            lag_s = max(self._clock.now_us() - frame.at_us, 0) / 1e6
            self._lag_sum_s += lag_s * count
            self._lag_counts[min(int(lag_s * 1e6).bit_length(), _LAG_BUCKETS - 1)] += count
        life, verdict = place.partition.life, place.partition.judge(frame)
        if verdict is Verdict.NEXT:
            if life != frame.life:
                place.audience.adopt(place.partition.number, frame.life)
            place.audience.pass_on(frame)
        elif verdict in {Verdict.LOSS, Verdict.ANEW}:
            self._repair_soon(place, verdict.value)

    def _on_heartbeat(self, place: Place, header: Header) -> None:
        self.heartbeats += 1
        place.heard_at, place.unheard = self._heard_at, 0
        if place.partition.state is not State.LIVE:
            return
        if reason := place.partition.differs(header):
            self._repair_soon(place, reason)
        else:
            place.partition.confirm(header)

    def _on_restored(self, place: Place, life: str, frames: list[Frame]) -> None:
        """A producer wrote its book again: news for those who have read this partition since the server lost it."""
        if place.partition.state is State.READING:
            place.restored += [(frame, life) for frame in frames]  # the values being read may hold them, too
        else:
            for frame in frames:
                place.audience.restore(frame, life)

    def _on_up(self) -> None:
        for place in self._places:
            if place.partition.state is State.LIVE:
                self._repair_soon(place, "the connection was lost")

    def _on_down(self, why: str) -> None:
        self._losses += 1
        log.warning("broadcast %s: connection lost, quotes are stale: %s", self.topic, why)

    # --- reading ---

    def _open(self, place: Place) -> None:
        """Begin to listen to a partition, unless that has begun."""
        if self._feed is None:
            self._feed = make_feed(self._redis, self._on_message, self._on_up, self._on_down, sharded=True)
            self._feed.start()
            self._heard_at = time.monotonic()
            self._feed.add(self._names.presence.encode())
        if place.partition.state is State.IDLE:
            place.partition.state = State.READING
            place.task = self._spawn(place, self._begin(place, self._feed))

    def _leave(self, place: Place) -> None:
        if place.task is not None:
            place.task.cancel()
        place.partition.reset()
        place.opened.clear()
        place.heard_at, place.unheard = 0.0, 0
        if self._feed is not None:
            self._feed.unsubscribe(self._channel(place))

    async def _begin(self, place: Place, feed: Feed | Feeds) -> None:
        """The baseline: what was published before is no loss."""
        partition = place.partition
        while True:
            losses, header = self._losses, await self._confirmed_header(place, feed)
            if losses == self._losses and header is not None:
                break
        partition.begin(header)
        _, frames = partition.reconcile(header, ())
        place.restored.clear()  # whoever joins now reads them
        place.opened.set()
        for frame in frames:
            place.audience.pass_on(frame)

    async def _join(self, place: Place, subscription: Subscription) -> None:
        await place.opened.wait()
        number, after = place.partition.number, subscription.after
        header, stored = await read_wanted(self._redis, self._names, number, subscription.wanted)
        if after is None:
            subscription.release(number, header, stored)
            return
        logged = await read_log(self._redis, self._names, number, after, header.version)
        reaches_back = await logged_up_to(self._redis, self._names, number, after)
        gaps, frames = replay(number, header, stored, logged, after, reaches_back=reaches_back)
        for gap in gaps:
            subscription.report(gap)
        subscription.release(number, header, frames)

    def _repair_soon(self, place: Place, reason: str) -> None:
        place.partition.state = State.READING
        assert self._feed is not None
        place.task = self._spawn(place, self._repair(place, self._feed, reason))

    async def _repair(self, place: Place, feed: Feed | Feeds, reason: str) -> None:
        """Bring everybody up to date, however often reading takes."""
        log.debug("broadcast %s: partition %d is read again: %s", self.topic, place.partition.number, reason)
        attempt = 0
        while True:
            losses = self._losses
            try:
                header = await self._confirmed_header(place, feed)
                if header is not None:
                    await feed.barrier(self._channel(place))
                    complete = place.partition.complete
                    logged = await read_log(self._redis, self._names, place.partition.number, complete, header.version)
                    stored = await read_values(self._redis, self._names, place.partition.number, place.audience.keys)
                    if losses == self._losses:
                        break
            except (RedisError, ConnectionError, TimeoutError):
                attempt += 1
                await asyncio.sleep(_RETRY.delay_s(attempt))
        gaps, frames = place.partition.reconcile(header, stored, logged)
        self.repairs += 1
        self.gaps += len(gaps)
        for gap in gaps:
            place.audience.report(gap)
        for frame in frames:
            place.audience.pass_on(frame)
        read = {(frame.keys[0], frame.version) for frame in frames if frame.snapshot}
        while place.restored:
            frame, life = place.restored.pop(0)
            if (frame.keys[0], frame.version) not in read:
                place.audience.restore(frame, life)

    async def _confirmed_header(self, place: Place, feed: Feed | Feeds) -> Header | None:
        """Have the channel confirmed, then read how far it has come; None when that failed."""
        await feed.subscribe(self._channel(place))
        try:
            return await read_header(self._redis, self._names, place.partition.number)
        except ClosedError:
            raise
        except RedisError:
            await asyncio.sleep(_RETRY.delay_s(3))
            return None

    # --- inside ---

    def _places_of(self, subscription: Subscription) -> list[Place]:
        wanted = subscription.wanted
        if not wanted.listed:
            return self._places
        return [self._places[number] for number in sorted({self._names.partition_of(key) for key in wanted.keys})]

    def _channel(self, place: Place) -> bytes:
        return self._names.channel(place.partition.number).encode()

    def _spawn(self, place: Place, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=f"aegis broadcast partition {place.partition.number}")
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None and not isinstance(exc, ClosedError):
            log.error("broadcast %s: %s failed: %s", self.topic, task.get_name(), exc, exc_info=exc)


_HEARTBEAT, _RESTORED = ord("h"), ord("r")
