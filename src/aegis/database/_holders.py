"""Who has which connection, since when, and the reports about those who keep one for too long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from aegis.database._lease import Counters, Lease
from aegis.database._session import Trace
from aegis.database._site import line_of, lines_of

_log = logging.getLogger("aegis.database")


class Holders:
    """Leases that are handed out, in the order of their hand-out: the first has been held longest."""

    def __init__(self, clock: Callable[[], float], leak_after_s: float, count: Counters) -> None:
        self._leases: dict[Lease, None] = {}
        self._clock, self._leak_after_s, self._count = clock, leak_after_s, count

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases)

    def __contains__(self, lease: Lease) -> bool:
        return lease in self._leases

    def add(self, lease: Lease, now: float) -> None:
        """Handed out, with nothing on record against it."""
        lease.held_since, lease.trace, lease.broken, lease.readonly = now, Trace.NONE, False, False
        self._leases[lease] = None

    def remove(self, lease: Lease, now: float) -> None:
        """It came back; who was reported is reported again."""
        del self._leases[lease]
        if lease.reported:
            lease.reported = False
            _log.warning("a connection came back after %.1f s: %s", now - lease.held_since, line_of(lease.site))

    def report_leaks(self, now: float) -> None:
        """One line, with the borrower's stack, for each that is held for longer than the threshold."""
        for lease in self._leases:
            if not self._leak_after_s or now - lease.held_since < self._leak_after_s:
                return  # they are in the order of their hand-out
            if not lease.reported:
                lease.reported = True
                self._count.leaks += 1
                _log.warning("a connection is held for %.1f s by\n%s", now - lease.held_since, lines_of(lease.site))

    def described(self, lease: Lease) -> str:
        """File, line and function of its borrower, and for how long."""
        return f"{line_of(lease.site)}, {self._clock() - lease.held_since:.1f} s"

    def longest(self) -> str:
        """The same of who has held longest."""
        first = next(iter(self._leases), None)
        return self.described(first) if first else "nobody"
