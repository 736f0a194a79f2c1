"""
The newest value of every key, encoded once, in the order of change: at the same time every client's buffer.

A client is a number: how far it has come. What it gets next is whatever has changed since; so a slow one costs no
memory, skips what is outdated by itself, and one that comes back after a break goes on where it was. Clients at the
same place, which is nearly all of them, share the same bytes.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterable

_GAPS_KEPT = 100


class Board:
    """
    Pure bookkeeping. `seq` counts changes in this board's life, which `epoch` names; together they are the id of an
    event, `epoch:seq`.
    """

    def __init__(self) -> None:
        self.epoch = uuid.uuid4().hex[:12]
        self.seq = 1  # 0 is the place of a client that has nothing yet
        self.live = True
        self._live_changed_at = 0
        self._entries: dict[str, tuple[int, bytes]] = {}  # in the order of change
        self._gaps: deque[tuple[int, bytes]] = deque(maxlen=_GAPS_KEPT)
        self._memo: dict[int, bytes] = {}  # by the place a client is at

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, encoded: bytes) -> None:
        """The newest update of a key, as JSON."""
        self._advance()
        self._entries.pop(key, None)
        self._entries[key] = (self.seq, encoded)

    def put_gap(self, encoded: bytes) -> None:
        """A loss, as JSON; its repair has come or will."""
        self._advance()
        self._gaps.append((self.seq, encoded))

    def set_live(self, live: bool) -> None:
        """Whether values can be trusted to be the newest."""
        if live != self.live:
            self._advance()
            self.live, self._live_changed_at = live, self.seq

    def place_of(self, event_id: str | None) -> int:
        """Where a client is that has seen the event; 0, the beginning, if it is none of this life."""
        epoch, _, seq = (event_id or "").rpartition(":")
        if epoch != self.epoch or not seq.isascii() or not seq.isdigit():
            return 0
        place = int(seq)
        return place if place <= self.seq else 0

    def event_after(self, place: int, keys: Iterable[str] | None = None) -> bytes | None:
        """
        What has changed since `place`, as one JSON object, or None: `id`, `live`, `snapshot`, `updates`, `gaps`.

        With `snapshot` the client knows nothing yet, so it gets everything: also when that is nothing.
        """
        if place == self.seq:
            return None
        if keys is None:
            event = self._memo.get(place)
            if event is None:
                event = self._memo[place] = self._event(place, self._changed(place))
            return event
        changed = [entry for key in keys if (entry := self._entries.get(key)) is not None and entry[0] > place]
        if place and not changed and self._live_changed_at <= place and not self._gaps_after(place):
            return None
        return self._event(place, [encoded for _, encoded in sorted(changed)])

    @property
    def id(self) -> str:
        """Of the newest event."""
        return f"{self.epoch}:{self.seq}"

    def _advance(self) -> None:
        self.seq += 1
        self._memo.clear()

    def _changed(self, place: int) -> list[bytes]:
        changed = []
        for seq, encoded in reversed(self._entries.values()):
            if seq <= place:
                break
            changed.append(encoded)
        changed.reverse()
        return changed

    def _gaps_after(self, place: int) -> list[bytes]:
        return [encoded for seq, encoded in self._gaps if seq > place > 0]

    def _event(self, place: int, updates: list[bytes]) -> bytes:
        return b'{"id":"%s","live":%s,"snapshot":%s,"updates":[%s],"gaps":[%s]}' % (
            self.id.encode(),
            b"true" if self.live else b"false",
            b"false" if place else b"true",
            b",".join(updates),
            b",".join(self._gaps_after(place)),
        )
