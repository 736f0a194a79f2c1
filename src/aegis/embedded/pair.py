"""A real PostgreSQL primary with a synchronous standby: `with EmbeddedPostgresPair() as pair: pair.url`."""

from __future__ import annotations

from collections.abc import Mapping

from aegis.embedded._block import Block
from aegis.embedded.postgres import EmbeddedPostgres

#: A COMMIT is answered when the standby has it on disk, too. `fsync` stays off: both outlive their processes' deaths.
_SYNCHRONOUS = {"synchronous_standby_names": "*", "synchronous_commit": "on", "max_wal_senders": "4"}


class EmbeddedPostgresPair(Block):
    """
    A primary and a standby that follows it by streaming, on unix sockets.

    While both live, a COMMIT is answered when both have it. Kill or pause `primary` and call `fail_over`; nobody does
    that by himself, as in a real pair without a supervisor. `options` are settings of both servers.
    """

    def __init__(self, *, options: Mapping[str, str] | None = None) -> None:
        self.primary = EmbeddedPostgres(options={**_SYNCHRONOUS, **(options or {})})
        self.standby = EmbeddedPostgres(
            options={"synchronous_commit": "on", **(options or {})}, standby_of=self.primary
        )
        self._first = (self.primary, self.standby)

    def __repr__(self) -> str:
        return f"<EmbeddedPostgresPair primary={self.primary!r} standby={self.standby!r}>"

    @property
    def url(self) -> str:
        """What DATABASE_URL must be: both hosts, always in the same order, and the wish for the one that writes."""
        hosts = ",".join(str(server.directory) for server in self._first)
        return f"postgresql://postgres@/postgres?host={hosts}&target_session_attrs=read-write"

    def start(self) -> None:
        """Start both; some four seconds. The first COMMIT waits until the standby follows."""
        try:
            self.primary.start()
            self.standby.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both and remove their directories. Idempotent."""
        for server in (self.standby, self.primary):
            server.stop()

    def fail_over(self) -> None:
        """Make the standby the primary, whatever became of the old one, which is `standby` from now on."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
