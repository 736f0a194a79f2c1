"""
One consumer's view of a topic: its buffer, its versions, its way to wait.

The socket's reader calls `offer` and never waits; the consumer takes what is there. Memory is O(keys) with `latest` and
bounded by the ring with `all`. While a partition is being read (at the start, after a gap) its ticks are set aside and
merged by version afterwards.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import msgspec

from aegis.redis._frame import Gap, Tick, Update

Policy: TypeAlias = Literal["latest", "all"]
POLICIES: tuple[Policy, ...] = ("latest", "all")
#: How many updates a consumer with `all` may be behind before it loses the oldest and is told so.
RING = 65_536

_Pending: TypeAlias = "tuple[Tick, bool, int]"  # tick, from a snapshot?, how many were folded into it


class Subscription:
    """
    `async with bus.subscribe(...) as updates: async for event in updates: ...` gives `Update` and `Gap`.

    Cancelling a waiting `anext` loses nothing. Ends when the block or the bus is left.
    """

    def __init__(
        self,
        keys: frozenset[str] | None,
        decoder: msgspec.json.Decoder[Any],
        policy: Policy,
        *,
        ring: int,
        attach: Callable[[Subscription], Awaitable[None]],
        detach: Callable[[Subscription], None],
    ) -> None:
        self.keys, self.policy = keys, policy
        self._decoder, self._ring, self._attach, self._detach = decoder, ring, attach, detach
        self._events: deque[_Pending | Gap] = deque()
        self._latest: dict[str, _Pending] = {}
        self._versions: dict[str, int] = {}
        self._aside: dict[int, list[Tick]] = {}  # by partition, while it is being read
        self._something = asyncio.Event()
        self._closed = False
        self.delivered = self.conflated = self.gaps = 0

    def __repr__(self) -> str:
        wanted = "all keys" if self.keys is None else f"{len(self.keys)} keys"
        return f"<Subscription {wanted} {self.policy} pending={len(self._events) + len(self._latest)}>"

    async def __aenter__(self) -> Self:
        await self._attach(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._detach(self)
        self.end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Update | Gap:
        while True:
            event = self._take()
            if event is not None:
                return event
            if self._closed:
                raise StopAsyncIteration
            self._something.clear()
            await self._something.wait()

    def end(self) -> None:
        """No more will come; what is pending can still be taken."""
        self._closed = True
        self._something.set()

    # --- the reader's side: never waits ---

    def wants(self, key: str) -> bool:
        """Whether this consumer asked for the key."""
        return self.keys is None or key in self.keys

    def set_aside(self, partition: int) -> None:
        """From now on keep the partition's ticks apart: it is being read."""
        self._aside.setdefault(partition, [])

    def offer(self, partition: int, ticks: Iterable[Tick]) -> None:
        """Ticks as they arrived, in the server's order."""
        aside = self._aside.get(partition)
        wanted = (tick for tick in ticks if self.wants(tick.key))
        if aside is not None:
            aside.extend(wanted)
            return
        for tick in wanted:
            self._add(tick, snapshot=False)

    def merge(self, partition: int, stored: Iterable[Tick]) -> None:
        """What was read of the partition, then what arrived meanwhile."""
        for tick in sorted((tick for tick in stored if self.wants(tick.key)), key=lambda tick: tick.version):
            self._add(tick, snapshot=True)
        for tick in self._aside.pop(partition, ()):
            self._add(tick, snapshot=False)

    def report(self, gap: Gap) -> None:
        """A loss, before anything newer of its stream."""
        self.gaps += 1
        self._events.append(gap)
        self._something.set()

    def forget_versions(self, of: Callable[[str], bool]) -> None:
        """A stream began anew: the versions of its keys count from the start again."""
        self._versions = {key: version for key, version in self._versions.items() if not of(key)}

    def _add(self, tick: Tick, *, snapshot: bool) -> None:
        if tick.version <= self._versions.get(tick.key, 0):
            return
        self._versions[tick.key] = tick.version
        if self.policy == "latest":
            waiting = self._latest.get(tick.key)
            folded = 0 if waiting is None else waiting[2] + 1
            self.conflated += folded > 0
            self._latest[tick.key] = (tick, snapshot, folded)
        else:
            if len(self._events) >= self._ring:
                self._overflow()
            self._events.append((tick, snapshot, 0))
        self._something.set()

    def _overflow(self) -> None:
        """Drop the oldest half of the ring and say so: one report for many, not one each."""
        dropped = [self._events.popleft() for _ in range(len(self._events) // 2)]
        reported = [event for event in dropped if isinstance(event, Gap)]  # their losses go on in the new report
        versions = [event[0].version for event in dropped if not isinstance(event, Gap)]
        versions += [version for gap in reported for version in (gap.from_version, gap.to_version)]
        lost = len(dropped) - len(reported) + sum(gap.lost for gap in reported)
        self.gaps += 1
        self._events.appendleft(Gap(-1, min(versions), max(versions), lost, "the consumer is too slow for its ring"))

    # --- the consumer's side ---

    def _take(self) -> Update | Gap | None:
        if self._events:
            event = self._events.popleft()
            return event if isinstance(event, Gap) else self._update(*event)
        if self._latest:
            return self._update(*self._latest.pop(next(iter(self._latest))))
        return None

    def _update(self, tick: Tick, snapshot: bool, folded: int) -> Update:
        self.delivered += 1
        value = self._decoder.decode(tick.payload)
        return Update(tick.key, value, tick.version, folded, tick.at_us / 1e6, snapshot)
