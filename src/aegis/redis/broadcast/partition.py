"""
What one process knows of a partition that it listens to: which ticks have arrived, and which are missing.

States: idle -> reading -> live -> reading (a gap, a reconnection, another life of the data) -> live ... -> idle.
While it is being read, frames are kept; `reconcile` then says what was lost, what was read, and what had arrived.
Pure bookkeeping: the receiver reads, and passes on.
"""

from __future__ import annotations

import enum
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator

from aegis.redis.broadcast.records import Gap
from aegis.redis.broadcast.wire import Frame, Header

#: Most ticks kept while the partition is being read; older frames are then lost, and found missing.
KEPT_TICKS_MAX = 65_536


class State(enum.Enum):
    """What the receiver does with a partition."""

    IDLE = "idle"
    READING = "reading"
    LIVE = "live"


class Verdict(enum.Enum):
    """What is to be done with a frame."""

    NEXT = "next"
    KEPT = "kept"  # it is being read
    KNOWN = "known"  # it has been passed on before
    LOSS = "announcements were lost"
    ANEW = "the server lost its data"


class Partition:
    """The streams of one partition and how far each has arrived, without holes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.reset()

    def __repr__(self) -> str:
        return f"<Partition {self.number} {self.state.value} streams={len(self.streams)} kept={len(self._kept)}>"

    def reset(self) -> None:
        """Nobody listens any more."""
        self.state = State.IDLE
        self.life = ""
        self.version = 0  # newest that has arrived
        self.complete = 0  # version up to which everything is known to have arrived
        self.streams: dict[str, int] = {}  # stream -> seq up to which nothing is missing
        self._kept: deque[Frame] = deque()
        self._kept_ticks = 0

    def begin(self, header: Header) -> None:
        """Start from here: what was published before is nobody's loss."""
        self.life, self.streams = header.life, dict(header.streams)
        self.version = self.complete = header.version

    def judge(self, frame: Frame) -> Verdict:
        """A frame has arrived. With NEXT it counts as passed on; in all other cases but KNOWN it is kept."""
        if self.state is not State.LIVE:
            self._keep(frame)
            return Verdict.KEPT
        if frame.life != self.life:
            if self.life:
                self._keep(frame)
                return Verdict.ANEW
            self.life = frame.life
        arrived = self.streams.get(frame.stream, 0)
        if frame.seq == arrived + 1:
            self.streams[frame.stream] = frame.last_seq
            self.version = frame.version + len(frame.keys) - 1
            return Verdict.NEXT
        if frame.last_seq <= arrived:
            return Verdict.KNOWN
        self._keep(frame)
        return Verdict.LOSS

    def differs(self, header: Header) -> str:
        """Why the partition must be read again, by what the server says of it; empty when all has arrived."""
        if header.life != self.life and self.life:
            return Verdict.ANEW.value
        if any(seq > self.streams.get(stream, 0) for stream, seq in header.streams.items()):
            return "the last announcements were lost"
        return ""

    def confirm(self, header: Header) -> None:
        """Everything that the server had announced at `header` has arrived."""
        self.complete = max(self.complete, header.version)

    def unseen(self, frame: Frame) -> bool:
        """Whether a value that was read has never arrived as an announcement."""
        return frame.seq > self.streams.get(frame.stream, 0)

    def reconcile(
        self, header: Header, stored: Iterable[Frame], logged: Iterable[Frame] = ()
    ) -> tuple[list[Gap], list[Frame]]:
        """
        What was lost, and what is to be passed on, in the order of versions. The partition is live from now on.

        Everything that the server had announced before `header` was read has arrived here or is lost, and `stored` was
        read after it. What the topic's log has of the lost frames is as good as arrived. A stored value is passed on
        exactly if its announcement was lost for good.
        """
        gaps = self._new_life(header)
        frames_of = {(frame.stream, frame.seq): frame for frame in (*logged, *self._kept)}
        kept = [frame for frame in frames_of.values() if frame.last_seq > self.streams.get(frame.stream, 0)]
        arrived: dict[str, list[Frame]] = defaultdict(list)
        for frame in kept:
            arrived[frame.stream].append(frame)
        ends, holes = dict(self.streams), {}
        for stream in {*header.streams, *arrived}:
            start = self.streams.get(stream, 0)
            frames = arrived.get(stream, [])
            ends[stream] = max(start, header.streams.get(stream, 0), *(frame.last_seq for frame in frames))
            holes[stream] = list(_holes(start + 1, ends[stream], frames))
            gaps += [
                Gap(f"{self.number}/{stream}", first, last, last - first + 1, "announcements were lost")
                for first, last in holes[stream]
            ]
        lost = [frame for frame in stored if self._was_lost(frame, header, holes)]
        self.streams = ends
        self.version = max(self.version, header.version)
        self.confirm(header)
        self._kept.clear()
        self._kept_ticks = 0
        self.state = State.LIVE
        return gaps, sorted([*lost, *kept], key=lambda frame: frame.version)

    def _was_lost(self, frame: Frame, header: Header, holes: dict[str, list[tuple[int, int]]]) -> bool:
        if frame.stream not in header.streams and frame.stream not in holes:  # so old that the server forgot the stream
            return self.unseen(frame)
        return any(first <= frame.seq <= last for first, last in holes.get(frame.stream, ()))

    def _new_life(self, header: Header) -> list[Gap]:
        anew = bool(self.life) and header.life != self.life
        self.life = header.life
        reason = "the server lost its data; what it had taken and not announced is unknown"
        return [Gap(str(self.number), 0, 0, 0, reason)] if anew else []

    def _keep(self, frame: Frame) -> None:
        self._kept.append(frame)
        self._kept_ticks += len(frame.keys)
        while self._kept_ticks > KEPT_TICKS_MAX:
            self._kept_ticks -= len(self._kept.popleft().keys)


def _holes(first: int, last: int, frames: list[Frame]) -> Iterator[tuple[int, int]]:
    """The runs between `first` and `last` that no frame covers."""
    for frame in sorted(frames, key=lambda frame: frame.seq):
        if frame.seq > first:
            yield first, frame.seq - 1
        first = max(first, frame.last_seq + 1)
    if first <= last:
        yield first, last
