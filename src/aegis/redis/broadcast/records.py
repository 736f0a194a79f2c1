"""What a consumer gets to see, and what a `PubSub` counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec


class Update(msgspec.Struct, frozen=True, gc=False):
    """
    One value of one key.

    `version` grows with every tick of the key's partition, whoever publishes, and never goes back for a key; unless
    it would, it is the time of publication in µs since epoch on the server's clock. `conflated` says how many older
    ticks of the key were folded into this one. `published_at` is when `publish` was called, in seconds since epoch on
    the server's clock (ticks of one frame share the time of the oldest). `snapshot` marks a value that was read, not
    announced: the first values of a subscription, and those that repair a gap; it has the version of its frame's last
    tick.
    """

    key: str
    value: Any
    version: int
    conflated: int = 0
    published_at: float = 0.0
    snapshot: bool = False


class Gap(msgspec.Struct, frozen=True, gc=False):
    """
    Ticks `from_seq` to `to_seq` of one stream did not reach this subscription; newer data of it follow.

    A stream is what one producer, in one life (epoch), publishes into one partition: `partition/producer.epoch`. `lost`
    counts its ticks, keys that you did not ask for included. It is 0 where nobody can know: `reason` says why.
    """

    stream: str
    from_seq: int
    to_seq: int
    lost: int
    reason: str


@dataclass(frozen=True, slots=True)
class PubSubStats:
    """Totals of one `PubSub`, and where it stands now. Times are seconds."""

    published: int  #: ticks that the server has taken
    frames: int  #: in which they travelled, one command each
    pending: int  #: ticks in the outbox
    outbox_conflated: int  #: ticks that a conflating outbox folded into newer ones
    restored: int  #: values written again because the server had lost them
    received: int  #: ticks that arrived here
    frames_received: int
    subscriptions: int
    buffered: int  #: updates that wait for a consumer
    conflated: int  #: ticks folded into newer ones for slow consumers
    evicted: int  #: updates that a full ring dropped, each reported by a `Gap`
    gaps: int  #: reported by the feed, once per stream
    repairs: int  #: how often a partition was read again
    heartbeats: int  #: heard
    reconnects: int  #: of the connection that listens
    connected: bool  #: whether that connection is up
    silent_s: float  #: since the server was last heard on it; 0.0 where nobody listens
    lag_p50_s: float  #: from `publish` to arrival here: an upper bound for the median, at most twice the true one
    lag_p99_s: float
