"""What travels on a channel, and what a consumer gets to see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

_Body = msgspec.msgpack.Decoder(list[str])


@dataclass(frozen=True, slots=True)
class Update:
    """
    The newest value of one key.

    `version` grows with every tick of the key's partition and never goes back for a key. `conflated` is how many older
    ticks of this key were folded into this one. `snapshot` marks a value that was read, not announced: the first
    values of a subscription, and those that repair a gap. `published_at` is the server's time, seconds since epoch.
    """

    key: str
    value: Any
    version: int
    conflated: int
    published_at: float
    snapshot: bool


@dataclass(frozen=True, slots=True)
class Gap:
    """
    Ticks of one stream (a partition of the topic) did not reach this subscription; newer data of it follow.

    `lost` counts them over the whole stream, keys that you did not ask for included; 0 where nobody can know.
    """

    stream: int
    from_version: int
    to_version: int
    lost: int
    reason: str


class Tick(NamedTuple):
    """One tick as it arrived: its payload is not decoded before somebody wants it."""

    key: str
    payload: str | bytes
    version: int
    at_us: int


class Frame(NamedTuple):
    """One message: consecutive ticks of one partition."""

    epoch: bytes
    first_version: int
    ticks: list[Tick]


def parse_frame(message: bytes) -> Frame:
    """A message of `quotes_publish.lua`, taken apart."""
    head, _, body = message.partition(b"\n")
    epoch, first, at = head.split(b" ")
    version, at_us, flat = int(first), int(at), _Body.decode(body)
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return Frame(epoch, version, [Tick(key, payload, version + i, at_us) for i, (key, payload) in enumerate(pairs)])


def parse_last(key: bytes, stored: bytes) -> Tick:
    """A field of the `last` hash, taken apart."""
    version, at, payload = stored.split(b" ", 2)
    return Tick(key.decode(), payload, int(version), int(at))
