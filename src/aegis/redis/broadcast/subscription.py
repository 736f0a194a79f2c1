"""
One consumer's side of a topic: what it wants, how it waits, when it ends.

States: new -> joining (its partitions are being read; what arrives meanwhile is set aside) -> live -> ended. The
receiver moves it on and gives it frames; the buffer of its policy keeps them; only the consumer takes.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import Iterable, Sequence
from operator import length_hint
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias

from aegis.errors import SlowConsumerError
from aegis.redis.broadcast.buffers import RING, Buffer
from aegis.redis.broadcast.conflating import Latest, Merge
from aegis.redis.broadcast.records import Gap, Update
from aegis.redis.broadcast.rings import All, TradeSafe
from aegis.redis.broadcast.wire import Frame, Header

Policy: TypeAlias = Literal["latest", "merge", "trade_safe", "all"]
POLICIES: tuple[Policy, ...] = ("latest", "merge", "trade_safe", "all")
Overflow: TypeAlias = Literal["gap", "end"]
#: A consumer that always finds something gives way to the others after so many updates.
_YIELD_EVERY = 256


def make_buffer(policy: Policy, type_: Any, *, max_rate: float | None, ring: int, overflow: Overflow) -> Buffer:
    """
    The buffer of a policy.

    Raises:
        ValueError: an option that does not exist, or that this policy does not have.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r} is none of {', '.join(POLICIES)}")
    if overflow not in {"gap", "end"}:
        raise ValueError(f"overflow={overflow!r} is none of gap, end")
    if ring < 1:
        raise ValueError(f"ring={ring} must be at least 1")
    if max_rate is not None and policy not in {"latest", "merge"}:
        raise ValueError(f"max_rate={max_rate} would drop ticks, which policy={policy!r} must not")
    if max_rate is not None and max_rate <= 0:
        raise ValueError(f"max_rate={max_rate} must be above 0 updates per second and key")
    per_key_s = 0.0 if max_rate is None else 1 / max_rate
    if policy == "latest":
        return Latest(type_, per_key_s)
    if policy == "merge":
        return Merge(type_, per_key_s)
    return (TradeSafe if policy == "trade_safe" else All)(type_, ring, end_on_overflow=overflow == "end")


class Wanted:
    """Which keys: these, those that match these glob patterns, or (neither given) all."""

    def __init__(self, keys: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        self.keys, self.patterns = frozenset(keys), frozenset(patterns)
        for key in self.keys | self.patterns:
            if not isinstance(key, str):
                raise TypeError(f"a key or pattern must be text: {key!r}")
        self.everything = not self.keys and not self.patterns
        self._match = re.compile("|".join(map(fnmatch.translate, sorted(self.patterns)))).match if patterns else None
        if "" in self.keys:
            raise ValueError("a key must not be empty")

    def __repr__(self) -> str:
        if self.everything:
            return "all keys"
        parts = [f"{len(self.keys)} keys"] if self.keys else []
        return " and ".join(parts + [repr(pattern) for pattern in sorted(self.patterns)])

    def __contains__(self, key: str) -> bool:
        return self.everything or key in self.keys or (self._match is not None and self._match(key) is not None)

    @property
    def listed(self) -> bool:
        """Whether `keys` is the whole list."""
        return bool(self.keys) and not self.patterns


class Home(Protocol):
    """Who moves a subscription through its states."""

    topic: str

    async def attach(self, subscription: Subscription) -> None:
        """Make it live, or raise and leave nothing behind."""

    def detach(self, subscription: Subscription) -> None:
        """Give it no more frames."""

    @property
    def live(self) -> bool:
        """Whether the server is heard."""


class Subscription:
    """
    `async with bus.subscribe(...) as updates: async for event in updates: ...` gives `Update` and `Gap`.

    Cancelling a waiting `anext` loses nothing and ends nothing. After the block or the bus is left, what had arrived
    can still be taken; then the iteration ends. A value that does not fit `type` raises `PayloadError` in its place,
    and the next `anext` goes on after it.
    """

    def __init__(
        self, wanted: Wanted, buffer: Buffer, home: Home, *, ring: int = RING, after: int | None = None
    ) -> None:
        self.after = after  # where a replay begins: a version
        self.wanted, self._home, self._buffer, self._ring = wanted, home, buffer, ring
        self._aside: dict[int, list[Frame]] = {}  # by partition, while it is being read
        self._after: dict[int, int] = {}  # by partition: newest version that the snapshot holds
        self._lives: dict[int, str] = {}  # by partition: the life of the server's data when it joined
        self._something = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._turn_left = _YIELD_EVERY

    def __repr__(self) -> str:
        state = "ended" if self._ended else "joining" if self._aside else "live" if self._after else "new"
        return f"<Subscription {self.wanted} {type(self._buffer).__name__} {state} pending={len(self._buffer)}>"

    async def __aenter__(self) -> Self:
        await self._home.attach(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._home.detach(self)
        self.end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Update | Gap:
        for event in self._buffer.ready:
            return event
        return await self._next()

    async def _next(self) -> Update | Gap:
        """As `__anext__`, where nothing lies ready."""
        if self._turn_left <= 0:
            self._turn_left = _YIELD_EVERY
            await asyncio.sleep(0)  # before taking: a cancellation here loses nothing
        while (event := self._buffer.take()) is None:
            if self._buffer.overflowed:
                raise SlowConsumerError(self._home.topic, self._ring)
            if self._ended:
                raise StopAsyncIteration
            await self._wait()
        self._turn_left -= 1 + length_hint(self._buffer.ready)
        return event

    @property
    def live(self) -> bool:
        """Whether values can be trusted to be the newest: the server has been heard within the last 3 s."""
        return not self._ended and self._home.live

    @property
    def pending(self) -> int:
        """How many events wait to be taken."""
        return len(self._buffer)

    @property
    def conflated(self) -> int:
        """Ticks that were folded into newer ones, because this consumer was slower or has a `max_rate`."""
        return self._buffer.conflated

    @property
    def evicted(self) -> int:
        """Updates that the full ring dropped; each was reported by a `Gap`."""
        return self._buffer.evicted

    def end(self) -> None:
        """No more will come; what is pending can still be taken."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._something.set()

    # --- the receiver's side: never waits ---

    def hold(self, partition: int) -> None:
        """From now on keep the partition's frames apart: it is being read."""
        self._aside[partition] = []

    def release(self, partition: int, header: Header, stored: Iterable[Frame]) -> None:
        """What was read of the partition, last values or a replay, as of `header`; then what arrived meanwhile."""
        aside = self._aside.pop(partition, ())
        for frame in sorted(stored, key=lambda frame: frame.version):
            self.offer(frame, [place for place in self.places(frame) if frame.version + place > (self.after or 0)])
        self._after[partition], self._lives[partition] = header.version, header.life
        for frame in aside:
            self.offer(frame, self.places(frame))

    def places(self, frame: Frame) -> Sequence[int]:
        """Which ticks of a frame this consumer wants."""
        if self.wanted.everything:
            return range(len(frame.keys))
        return [place for place, key in enumerate(frame.keys) if key in self.wanted]

    def offer(self, frame: Frame, places: Sequence[int]) -> None:
        """Ticks as they arrived."""
        aside = self._aside.get(frame.partition)
        if aside is not None:
            aside.append(frame)
        elif places and frame.version > self._after.get(frame.partition, 0):
            self._buffer.offer(frame if len(places) == len(frame.keys) else frame.only(places))
            self._something.set()

    def restore(self, frame: Frame, life: str) -> None:
        """A value that a producer wrote again in this life of the server's data: news for those who joined in it."""
        if frame.partition in self._aside:
            self._aside[frame.partition].append(frame)
        elif self._lives.get(frame.partition) in {"", life}:
            self._buffer.offer(frame)
            self._something.set()

    def adopt(self, partition: int, life: str) -> None:
        """What was empty when it joined has come to life."""
        if self._lives.get(partition) == "":
            self._lives[partition] = life

    def report(self, gap: Gap) -> None:
        """A loss, before anything newer of its stream."""
        self._buffer.report(gap)
        self._something.set()

    # --- the consumer's side ---

    async def _wait(self) -> None:
        """Return when something may be there."""
        self._something.clear()
        due_in_s = self._buffer.due_in_s()
        if due_in_s is not None:
            self._timer = asyncio.get_running_loop().call_later(due_in_s, self._something.set)
        try:
            await self._something.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
