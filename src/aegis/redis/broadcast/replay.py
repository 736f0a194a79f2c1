"""
Replay from a topic's log: what a subscription that starts in the past is given, and what it is told to be missing.

Never partial without a `Gap`: the log is bounded, so it may begin later than asked, and it may be trimmed while it is
read. Pure: the receiver reads, this decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegis.redis.broadcast.records import Gap
from aegis.redis.broadcast.wire import Frame, Header


def replay(
    partition: int, header: Header, stored: Sequence[Frame], logged: Sequence[Frame], after: int, *, reaches_back: bool
) -> tuple[list[Gap], list[Frame]]:
    """
    The gaps to report, and the frames to give, for everything of a partition after version `after`.

    `logged` are the log's frames from there up to `header`; `reaches_back` says that the log also has an older one, so
    nothing between was trimmed. Where something is missing, the last values that the replay does not reach stand in.
    """
    whole = reaches_back or header.version <= after or _from_the_first(header, logged)
    gaps = [] if whole else [Gap(str(partition), 0, 0, 0, "the log begins later than the replay was asked from")]
    gaps += _holes(partition, header, logged, whole=whole)
    frames = list(logged)
    if gaps:
        replayed = {key for frame in logged for key in frame.keys}
        frames += [value for value in stored if value.version > after and value.keys[0] not in replayed]
    return gaps, frames


def _from_the_first(header: Header, logged: Sequence[Frame]) -> bool:
    """Whether the log has every stream from its first tick: then nothing was ever published that it lacks."""
    first = {frame.stream: frame.seq for frame in reversed(logged)}
    return all(first.get(stream) == 1 for stream in header.streams)


def _holes(partition: int, header: Header, logged: Sequence[Frame], *, whole: bool) -> list[Gap]:
    """What is missing between frames of a stream, or at its end."""
    gaps: list[Gap] = []
    reached: dict[str, int] = {}

    def missing(stream: str, first: int, last: int) -> None:
        gaps.append(Gap(f"{partition}/{stream}", first, last, last - first + 1, "it is no longer in the log"))

    for frame in logged:
        if frame.stream in reached and frame.seq > reached[frame.stream] + 1:
            missing(frame.stream, reached[frame.stream] + 1, frame.seq - 1)
        reached[frame.stream] = frame.last_seq
    for stream, seq in header.streams.items():
        if whole and stream in reached and reached[stream] < seq:
            missing(stream, reached[stream] + 1, seq)
    return gaps
