"""Which of several hosts to try, in which order, and how long: numbers only, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass

from aegis.config import DatabaseConfig, PostgresUrl

_ONE_WRITES = frozenset({"read-write", "primary"})


@dataclass(frozen=True, slots=True)
class Place:
    """One host and what it must be; no host: the driver's default."""

    host: str | None
    port: int | None
    attrs: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.host and not self.host.startswith("/") else str(self.host)


class Hosts:
    """
    The hosts of one URL.

    In the order given, as libpq does, except where only one host of all can fit (`read-write`, `primary`): then the one
    that did last time comes first, because after a failover the old primary may hang, or come back and not know.
    """

    def __init__(self, config: DatabaseConfig, wanted: PostgresUrl) -> None:
        self._wanted, self._attrs = wanted, config.target_session_attrs
        self._last: Place | None = None

    def plan(self) -> list[Place]:
        """What to try, the likeliest first; `prefer-standby` asks everybody for a standby first."""
        passes = ("standby", "any") if self._attrs == "prefer-standby" else (self._attrs,)
        hosts: list[tuple[str | None, int | None]] = list(self._wanted.hosts) or [(None, None)]
        if self._wanted.options.get("load_balance_hosts") == "random":
            random.shuffle(hosts)
        places = [Place(host, port, attrs) for attrs in passes for host, port in hosts]
        if self._last is not None:
            places.sort(key=lambda place: place != self._last)
        return places

    def fits(self, place: Place) -> None:
        """It was connected to."""
        if self._attrs in _ONE_WRITES:
            self._last = place
