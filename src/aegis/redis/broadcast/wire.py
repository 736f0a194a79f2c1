"""
What travels and what is stored: names, frames, stored values, headers. Nothing else knows their form.

The scripts `quotes_*.lua` are the other side of it; `quotes_publish.lua` explains the fields.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Self

import msgspec

from aegis.redis.broadcast.parts import as_json
from aegis.redis.client import Redis
from aegis.redis.connection.slots import SLOTS, slot_of_key

#: On a cluster, so that its nodes share the work. On one server each partition only makes frames smaller, of which the
#: cost is per frame.
CLUSTER_PARTITIONS, SERVER_PARTITIONS = 16, 1


@dataclass(frozen=True, slots=True)
class Names:
    """
    Keys and channels of one topic. All names of a partition share a hash tag, so a cluster keeps them together; the
    tags lie in equal parts of its slots, so that partitions are balanced over nodes whatever their number.

    `sharded` is for a cluster: the scripts take SPUBLISH there, and subscribers SSUBSCRIBE.
    """

    prefix: str
    topic: str
    partitions: int = CLUSTER_PARTITIONS
    sharded: bool = False

    @classmethod
    def of(cls, redis: Redis, prefix: str, topic: str) -> Self:
        """As configured, or as suits the server: all processes of a topic must come to the same."""
        default = CLUSTER_PARTITIONS if redis.sharded else SERVER_PARTITIONS
        return cls(prefix, topic, redis.config.topic_partitions or default, redis.sharded)

    @property
    def publish(self) -> str:
        """The verb of the scripts."""
        return "SPUBLISH" if self.sharded else "PUBLISH"

    @property
    def count(self) -> str:
        """What PUBSUB is asked for how many listen."""
        return "SHARDNUMSUB" if self.sharded else "NUMSUB"

    def partition_of(self, key: str) -> int:
        """The partition that a key lives in; every process must agree, so it depends on nothing but the key."""
        return zlib.crc32(key.encode()) % self.partitions

    def book(self, partition: int) -> str:
        """The hash of last values."""
        return self._name(partition, "book")

    def channel(self, partition: int) -> str:
        """Where frames are announced."""
        return self._name(partition, "frames")

    def log(self, partition: int) -> str:
        """The stream that keeps frames for replay."""
        return self._name(partition, "log")

    @property
    def agreed(self) -> str:
        """Where the number of partitions is kept, so that who disagrees finds out."""
        return f"{self.prefix}:{self.topic}:partitions"

    @property
    def presence(self) -> str:
        """A channel on which nothing is ever said: those who listen to it are the subscribing processes."""
        return f"{self.prefix}:{self.topic}:subscribers"

    def _name(self, partition: int, what: str) -> str:
        tag = _balanced_tag(f"{self.prefix}:{self.topic}", partition, self.partitions)
        return f"{self.prefix}:{self.topic}:{{{tag}}}:{what}"


@lru_cache(maxsize=4096)
def _balanced_tag(name: str, partition: int, partitions: int) -> str:
    """
    The first of `name:partition/partitions`, with `.1`, `.2`, ... behind, whose slot is in the middle of the
    partition's part. Another number of partitions has other names: nothing old is found under them.
    """
    part = SLOTS / partitions
    candidates = (f"{name}:{partition}/{partitions}{f'.{number}' if number else ''}" for number in count())
    return next(tag for tag in candidates if abs(slot_of_key(tag) - (partition + 0.5) * part) <= part / 8)


class Tick(msgspec.Struct, frozen=True, gc=False):
    """One tick by itself: what waits long holds on to no frame."""

    key: str
    payload: bytes
    version: int
    at_us: int
    folded: int  #: how many older ticks the producer folded into it
    snapshot: bool
    partition: int
    stream: str
    seq: int


class Frame:
    """
    Consecutive ticks of one stream, stored and announced as one step. Payloads are JSON, decoded only when wanted.

    A value that was read is a frame of one tick with `snapshot` set. Of a frame that holds only what somebody wants of
    another, `places` says where its ticks stood there.
    """

    __slots__ = (
        "at_us", "folded", "keys", "kinds", "life", "partition", "payloads", "places", "seq", "snapshot", "stream",
        "version",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917 - once per message on the hot path
        self,
        partition: int,
        life: str,
        stream: str,
        seq: int,
        version: int,
        at_us: int,
        keys: Sequence[str],
        payloads: Sequence[bytes],
        kinds: str = "",
        folded: Sequence[int] = (),
        snapshot: bool = False,
        places: Sequence[int] | None = None,
    ) -> None:
        self.partition, self.life, self.stream, self.seq, self.version = partition, life, stream, seq, version
        self.at_us, self.keys, self.payloads, self.kinds, self.folded = at_us, keys, payloads, kinds, folded
        self.snapshot, self.places = snapshot, range(len(keys)) if places is None else places

    @property
    def last_seq(self) -> int:
        """Number of the last tick in its stream."""
        return self.seq + len(self.keys) - 1

    def only(self, places: Sequence[int]) -> Frame:
        """These ticks of a whole frame; the others can be forgotten."""
        return Frame(
            self.partition,
            self.life,
            self.stream,
            self.seq,
            self.version,
            self.at_us,
            [self.keys[place] for place in places],
            [self.payloads[place] for place in places],
            "".join([self.kinds[place] for place in places]) if self.kinds else "",
            [self.folded[place] for place in places] if self.folded else (),
            self.snapshot,
            places,
        )

    def tick(self, at: int) -> Tick:
        """One of its ticks."""
        place, folded = self.places[at], self.folded[at] if self.folded else 0
        return Tick(
            self.keys[at],
            self.payloads[at],
            self.version + place,
            self.at_us,
            folded,
            self.snapshot,
            self.partition,
            self.stream,
            self.seq + place,
        )

    def __repr__(self) -> str:
        return f"<Frame {self.partition}/{self.stream} seq={self.seq}-{self.last_seq} version={self.version}>"


class Body(msgspec.Struct, array_like=True):
    """What the producer says of a frame; the script puts life, version and time before it, and does not look inside."""

    stream: str
    seq: int
    kinds: str  #: one letter per tick, "q"uote or "t"rade; empty: all are quotes
    folded: list[int]  #: how many older ticks the producer folded into each; empty: none
    keys: list[str]
    payloads: list[bytes]


pack_body = msgspec.msgpack.Encoder().encode
_Body = msgspec.msgpack.Decoder(Body)
_Flat = msgspec.msgpack.Decoder(list[str])


def parse_frame(partition: int, message: bytes) -> Frame:
    """A message of `quotes_publish.lua`, taken apart."""
    head, _, packed = message.partition(b"\n")
    life, version, at = head[1:].decode().split(" ")
    body = _Body.decode(packed)
    seq, keys, payloads = body.seq, body.keys, body.payloads
    return Frame(partition, life, body.stream, seq, int(version), int(at), keys, payloads, body.kinds, body.folded)


def stored_prefix(version: int, seq: int, at_us: int, stream: str) -> bytes:
    """What stands before the payload in a field of the book: of the last tick of its frame."""
    return b"%d %d %d %s " % (version, seq, at_us, stream.encode())


def stored_at_us(stored: bytes) -> int:
    """When the value was published."""
    return int(stored.split(b" ", 3)[2])


def stored_payload(stored: bytes) -> bytes:
    """What stands behind that."""
    return stored.split(b" ", 4)[4]


def is_key(field: bytes) -> bool:
    """Whether a field of the book is a key with its value; the others belong to the header."""
    return bool(field) and not field.startswith(b"\0")


def parse_stored(partition: int, life: str, key: str, stored: bytes) -> Frame:
    """A field of the book, as a frame of one tick."""
    version, seq, at, stream, payload = stored.split(b" ", 4)
    name = stream.decode()
    return Frame(partition, life, name, int(seq), int(version), int(at), (key,), (as_json(payload),), snapshot=True)


def parse_restored(partition: int, message: bytes) -> tuple[str, list[Frame]]:
    """A message of `quotes_restore.lua`: the life that the values were written into, and the values."""
    life, _, packed = message[1:].partition(b"\n")
    flat = _Flat.decode(packed)
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return life.decode(), [parse_stored(partition, life.decode(), key, stored.encode()) for key, stored in pairs]


@dataclass(frozen=True, slots=True)
class Header:
    """How far a partition has come: its life, its newest version, and the newest seq of each of its streams."""

    life: str = ""
    version: int = 0
    streams: dict[str, int] = field(default_factory=dict)


_Header = msgspec.msgpack.Decoder(tuple[str, int, dict[str, tuple[int, int, int]]])


def parse_header(packed: bytes | None) -> Header:
    """What `quotes_look.lua` and heartbeats say; nothing is the header of an empty partition."""
    if not packed:
        return Header(streams={})
    life, version, streams = _Header.decode(packed)
    return Header(life, version, {stream: entry[0] for stream, entry in streams.items()})
