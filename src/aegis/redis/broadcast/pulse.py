"""
The heartbeat: about twice a second every partition in use says how far it has come.

Whoever listens hears it on the same way as the frames, so a lost tail shows within a second, on a quiet key, too, and
after its producer has died. The answer comes on the other connection: it tells a producer whether the server still has
what it had acknowledged, and a listener whether its own connection delivers anything at all. Several processes do not
multiply it: who has just heard a partition's heartbeat does not ask for one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Coroutine
from typing import Any

from aegis.errors import ClosedError, RedisError, TopicPartitionsError
from aegis.redis._script import load_script
from aegis.redis.broadcast.agreement import agree
from aegis.redis.broadcast.clock import ServerClock
from aegis.redis.broadcast.producer import Producer
from aegis.redis.broadcast.receiver import Receiver
from aegis.redis.broadcast.wire import Names, parse_header
from aegis.redis.client import Redis

log = logging.getLogger("aegis.redis")

_HEARTBEAT = load_script("quotes_header", "quotes_heartbeat")
#: Asked for so often, answered and compared within the rest of a second: the contract's bound for a lost tail.
EVERY_S = 0.5
_AUDIT_EVERY_S = 1.0
_AGREE_EVERY_S = 5.0
#: How long after the answer a heartbeat may still be on its way on the feed.
_GRACE_S = 0.25


class Pulse:
    """The one periodic task of a `PubSub`; runs while somebody listens or has published."""

    def __init__(self, redis: Redis, names: Names, clock: ServerClock, producer: Producer, receiver: Receiver) -> None:
        self._redis, self._names, self._clock = redis, names, clock
        self._producer, self._receiver = producer, receiver
        self._audited_at: dict[int, float] = {}
        self._agreed_at = 0.0
        self._agree = True  # what was found last
        self._asking: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="aegis broadcast pulse")

    async def close(self) -> None:
        """Stop."""
        tasks = [*self._asking, *([self._task] if self._task is not None else [])]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            now = time.monotonic()
            for partition in self._due(now):
                self._spawn(self._ask(partition))
            if now - self._agreed_at >= _AGREE_EVERY_S:
                self._agreed_at = now
                self._spawn(self._compare_partitions())
            await asyncio.sleep(EVERY_S * random.uniform(0.8, 1.0))  # so that processes do not ask in the same moment

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _compare_partitions(self) -> None:
        """The server may have lost the number since the bus was opened, and another process have set its own."""
        try:
            await agree(self._redis, self._names)
        except TopicPartitionsError as exc:
            if self._agree:
                log.error("broadcast %s: %s", self._names.topic, exc)  # noqa: TRY400 - it says everything
            self._agree = False
        except (ClosedError, RedisError):
            return  # if we are still here, it is asked again
        else:
            self._agree = True

    def _due(self, now: float) -> list[int]:
        """The partitions that were not heard, or whose lanes have not been audited, for long enough."""
        due = []
        for partition in range(self._names.partitions):
            lane = self._producer.lane(partition)
            audit = lane is not None and now - self._audited_at.get(partition, 0.0) >= _AUDIT_EVERY_S
            if audit or not self._receiver.heard_since(partition, now - EVERY_S / 2):
                due.append(partition)
        return due

    async def _ask(self, partition: int) -> None:
        keys = [self._names.book(partition), self._names.channel(partition)]
        asked_at = time.monotonic()
        try:
            now_us, packed = await self._redis.run(_HEARTBEAT, keys, [self._names.publish, -1], idempotent=True)
        except ClosedError:
            return
        except RedisError as exc:
            log.debug("broadcast %s: no heartbeat of partition %d: %s", self._names.topic, partition, exc)
            return
        answered_at = time.monotonic()
        self._clock.heard(asked_at, answered_at, int(now_us))
        header = parse_header(packed)
        self._audited_at[partition] = answered_at
        self._producer.audit(partition, header)
        if not self._receiver.heard_since(partition, asked_at):
            await asyncio.sleep(_GRACE_S)
            self._receiver.compare(partition, header, asked_at)
