"""
The turn of a lane: while it alone publishes into its partition, the server need not look anything up for its frames.

The server keeps the turn as a field of the partition's book, and ends it when another producer publishes. A frame that
is sent again, or over another connection, is always looked up, under the name of another turn: should its first sending
still arrive somewhere, it finds that its turn is over, and changes nothing. Pure bookkeeping; the rule itself is in
`quotes_publish.lua`.
"""

from __future__ import annotations


class Turn:
    """States: none -> asked for -> ours -> asked for (whenever an answer is outstanding) -> ..."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._name = ""  # while it is ours
        self._connection = 0  # over which it was confirmed
        self._asked = 0  # how many names have been used
        self._possible = True  # older servers have none

    def ask(self, connection: int, *, known: bool) -> tuple[str, bool]:
        """
        The name to send with a frame, and whether the frame may go without a look. Until the answer, the turn is lost.

        `known`: the frame's time is known, and all its keys have been published before. Others are looked up.
        """
        name, self._name = self._name, ""
        if not self._possible or not known:
            return "", False
        if name and connection == self._connection:
            return name, True
        self._asked += 1
        return f"\0{self._stream}.{self._asked}", False

    def answered(self, name: str, connection: int, verdict: int) -> None:
        """What `quotes_publish.lua` says of it: 1 ours, 0 not, -1 there are none on this server."""
        if verdict == 1:
            self._name, self._connection = name, connection
        elif verdict == -1:
            self._possible = False

    def end(self) -> None:
        """The next frame is looked up."""
        self._name = ""
