"""
The broadcast of quotes: the newest value always arrives, every loss is reported, a slow reader hurts only itself.

A topic has partitions: one, or on a cluster several. What is published waits a few milliseconds in the outbox of its
partition and leaves as one *frame*, stored and announced in one step. The room behind this file:

    broadcast/wire        names, frames, stored values: their form
    broadcast/outbox      what waits to be sent       lane      the way of one partition to the server
    broadcast/producer    all lanes of one producer   clock     the server's clock
    broadcast/partition   what has arrived, what is missing     audience  who wants which key
    broadcast/buffers     what waits for one consumer, by policy
    broadcast/subscription  one consumer's side       receiver  one connection, all partitions, repairs
    broadcast/forgetting  last values that end
    broadcast/pulse       the heartbeat that both sides compare with      replay    from a topic's log
    broadcast/agreement   how many partitions a topic has    turn  why a frame needs no look    parts  of records

Rejected: one message per tick (the cost is per message), versions by the producer's clock (two producers disagree),
`SET` and `PUBLISH` apart (stored but never announced), versions by a counter alone (they go back when the server loses
its data).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import msgspec

from aegis.errors import PayloadError, RedisError, UnsentTicksError
from aegis.redis.broadcast.agreement import agree
from aegis.redis.broadcast.buffers import RING
from aegis.redis.broadcast.clock import ServerClock
from aegis.redis.broadcast.forgetting import Forgetting
from aegis.redis.broadcast.producer import FLUSH_S, OUTBOX_MAX, Producer
from aegis.redis.broadcast.pulse import Pulse
from aegis.redis.broadcast.receiver import Receiver
from aegis.redis.broadcast.records import Gap, PubSubStats, Update
from aegis.redis.broadcast.subscription import Overflow, Policy, Subscription, Wanted, make_buffer
from aegis.redis.broadcast.wire import Names, parse_stored
from aegis.redis.client import Redis

__all__ = ["Gap", "PubSub", "PubSubStats", "Subscription", "Update"]

log = logging.getLogger("aegis.redis")


class PubSub:
    """
    One topic. `publish` returns when the tick is in the outbox; `flush` when the server has everything.

    A frame whose answer was lost is sent again and published once; while Redis is away, ticks wait in the outbox, and
    when that is full `publish` waits. What the server loses (a restart, a failover) is written again. Leaving the block
    sends what is pending, for at most `close_timeout` seconds.

    `producer` names this publisher in the `Gap`s of others (default: random); every object is a new epoch of it.
    `conflate` folds older quotes of a key in the outbox too: only for topics on which every consumer wants `latest` or
    `trade_safe`. `partial` says that values are parts of records, the fields that changed: Redis keeps the whole
    record, whoever publishes; consumers want `merge` (or `all`, to see the parts). `log_frames` keeps about so many
    frames per partition for replay. With `keep_s`, the last value of a key that nobody has published for so many
    seconds is forgotten, and in the end the topic: for keys that come and go.

    With Redis disabled, publishing does nothing and a subscription stays quiet until it is closed.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str = "aegis",
        topic: str = "quotes",
        *,
        producer: str = "",
        flush_ms: float = FLUSH_S * 1000,
        outbox_max: int = OUTBOX_MAX,
        conflate: bool = False,
        log_frames: int = 0,
        partial: bool = False,
        keep_s: float | None = None,
        close_timeout: float = 5.0,
    ) -> None:
        name = producer or uuid.uuid4().hex[:8]
        if any(letter.isspace() for letter in name):
            raise ValueError(f"producer={name!r} must not hold white space")
        if keep_s is not None and keep_s <= 0:
            raise ValueError(f"{keep_s=} must be above 0")
        if outbox_max < 1 or flush_ms < 0 or log_frames < 0:
            raise ValueError(f"{outbox_max=}, {flush_ms=} and {log_frames=} must be at least 1, 0 and 0")
        if partial and conflate:
            raise ValueError("partial=True needs every part, and conflate=True would drop some")
        self._redis, self._conflate, self.partial = redis, conflate, partial
        self._names = names = Names.of(redis, prefix, topic)
        self._close_timeout_s = close_timeout
        self._clock = clock = ServerClock()
        self._producer = Producer(
            redis,
            names,
            clock,
            name,
            flush_s=flush_ms / 1000,
            outbox_max=outbox_max,
            conflate=conflate,
            log_frames=log_frames,
            partial=partial,
        )
        self._receiver = Receiver(redis, names, clock)
        self._pulse = Pulse(redis, names, clock, self._producer, self._receiver)
        self._forgetting = Forgetting(redis, names, clock, self._producer, keep_s) if keep_s is not None else None
        self._open = self._used = False

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        listening = len(self._receiver.subscriptions)
        return f"<PubSub {self._names.topic} {state} pending={self._producer.pending} subscriptions={listening}>"

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._names.topic

    async def __aenter__(self) -> Self:
        if self._used:
            raise RuntimeError("a PubSub is opened once; make another")
        self._used = True
        if self._redis.enabled:
            with contextlib.suppress(RedisError):  # an outage; the pulse asks again
                await agree(self._redis, self._names)
            self._open = True
            self._producer.open()
            self._forget = self._redis.on_close(self._end)
            self._pulse.start()
            if self._forgetting is not None:
                self._forgetting.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._redis.enabled:
            self._forget()
        await self._end(silent=kind is not None)

    # --- publishing ---

    async def publish(
        self, key: str, value: Any, *, urgent: bool = False, trade: bool | None = None, timeout: float | None = None
    ) -> None:
        """
        Announce the newest value of `key`. Waits only while the outbox is full, at most `timeout` seconds.

        `urgent` does not wait for the next flush. `trade` marks what `trade_safe` must not fold; unless given, an
        urgent tick is one. Cancelled while it waits for room, nothing was published.

        Raises:
            PayloadError: the value cannot be encoded as JSON.
            OutboxFullError: no room within `timeout`; the tick was not published.
            ClosedError: the bus is not open.
        """
        producer = self._producer
        if producer.blocked:
            if not self._redis.enabled:
                return
            await producer.wait_for_room(timeout)
        if producer.put(key, value, urgent if trade is None else trade, urgent):
            await asyncio.sleep(0)  # who publishes in a tight loop lets the connection work

    async def flush(self, timeout: float | None = None) -> None:
        """
        Wait until the server has taken everything that was published before.

        Raises:
            UnsentTicksError: it has not within `timeout` seconds; the ticks still wait.
        """
        if self._redis.enabled:
            await self._producer.flush(timeout)

    # --- subscribing ---

    def subscribe(
        self,
        *keys: str,
        type: Any = Any,  # noqa: A002 - the contract's name
        policy: Policy = "latest",
        patterns: Iterable[str] = (),
        max_rate: float | None = None,
        ring: int = RING,
        overflow: Overflow = "gap",
        after: int | None = None,
        since: float | None = None,
    ) -> Subscription:
        """
        The last values of the keys, marked `snapshot`, then every change, decoded into `type`.

        Keys are those given and those that match the glob `patterns`; with neither, the whole topic. For a slow
        consumer, `latest` keeps the newest tick of every key, with `max_rate` at most so many per second and key;
        `merge` also merges the fields of objects; `trade_safe` keeps all trades and the newest quotes; `all` keeps
        everything. The last two keep at most `ring` updates: then the oldest are dropped and a `Gap` says so, or with
        `overflow="end"` the subscription ends with `SlowConsumerError`.

        On a topic with a log (`log_frames`), `after` (the version of an update) or `since` (seconds since epoch)
        replays what was published from there, in place of the last values. What the log has no longer is a `Gap`, and
        last values stand in for it. A replay of more than `ring` updates needs a larger ring.

        Entering the subscription raises `RedisUnavailableError` when the server cannot be reached; later it outlasts
        every outage.
        """
        if self._conflate and policy in {"merge", "all"}:
            raise ValueError(f"policy={policy!r} wants every tick, but this topic is published with conflate=True")
        if self.partial and policy in {"latest", "trade_safe"}:
            raise ValueError(f"policy={policy!r} would drop fields, because this topic is published with partial=True")
        if after is not None and since is not None:
            raise ValueError(f"a replay begins at one place: after={after} or since={since}")
        if since is not None:
            after = int(since * 1e6)  # a version is the time of publication in µs, unless that would go back
        buffer = make_buffer(policy, type, max_rate=max_rate, ring=ring, overflow=overflow)
        return Subscription(Wanted(keys, patterns), buffer, self._receiver, ring=ring, after=after)

    async def last(self, key: str, type: Any = Any) -> Any:  # noqa: A002 - the contract's name
        """
        The newest value of `key` that Redis holds, or None.

        Raises:
            PayloadError: it does not fit `type`.
        """
        partition = self._names.partition_of(key)
        stored = await self._redis.execute("HGET", self._names.book(partition), key) if key else None
        if stored is None:
            return None
        frame = parse_stored(partition, "", key, stored)
        try:
            return msgspec.json.decode(frame.payloads[0], type=type)
        except msgspec.DecodeError as exc:
            raise PayloadError(key, f"does not fit the type: {exc}") from exc

    async def subscribers(self, key: str | None = None) -> int:
        """How many processes listen to the topic, or to the partition of `key`. One process counts once."""
        if not self._redis.enabled:
            return 0
        channel = self._names.presence if key is None else self._names.channel(self._names.partition_of(key))
        counted: int = (await self._redis.execute("PUBSUB", self._names.count, channel))[1]
        return counted

    def stats(self) -> PubSubStats:
        """Totals since this object was made, and where it stands."""
        producer, receiver = self._producer, self._receiver
        lanes, subscriptions, lag = producer.lanes, receiver.subscriptions, receiver.lag
        return PubSubStats(
            published=producer.published,
            frames=sum(lane.frames for lane in lanes),
            pending=producer.pending,
            outbox_conflated=producer.conflated,
            restored=sum(lane.restored for lane in lanes),
            received=receiver.received,
            frames_received=receiver.frames,
            subscriptions=len(subscriptions),
            buffered=sum(subscription.pending for subscription in subscriptions),
            conflated=receiver.conflated_before + sum(subscription.conflated for subscription in subscriptions),
            evicted=receiver.evicted_before + sum(subscription.evicted for subscription in subscriptions),
            gaps=receiver.gaps,
            repairs=receiver.repairs,
            heartbeats=receiver.heartbeats,
            reconnects=receiver.reconnects,
            connected=receiver.connected,
            silent_s=receiver.silent_s,
            lag_p50_s=lag.quantile_s(0.5),
            lag_p99_s=lag.quantile_s(0.99),
        )

    async def _end(self, *, silent: bool = False) -> None:
        """Send what is pending, then end everything; also called by a `Redis` that is closed first."""
        try:
            if self._open:
                await self.flush(self._close_timeout_s)
        except UnsentTicksError as exc:
            if not silent:
                raise
            log.error("broadcast: %s", exc)  # noqa: TRY400 - another exception is on its way, and says more
        finally:
            self._open = False
            if self._forgetting is not None:
                await self._forgetting.close()
            await self._pulse.close()
            await self._receiver.close()
            await self._producer.close()
