"""
Who serves which slot, from what the nodes say. Pure: no I/O.

Each node tells its own view (CLUSTER NODES), and views differ while a failover or a migration is on: a primary that was
paused still believes in itself. Every claim carries the configuration epoch at which it was made, and the cluster
guarantees that of two claims to a slot the one with the higher epoch is the later one (valkey.io/topics/cluster-spec,
read 2026-11-24). So views are merged by epoch, and an older claim never displaces a newer one. Rejected: redis-py's
NodesManager for the hot path, because it believes the first node that answers CLUSTER SLOTS, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from aegis.redis.connection.slots import SLOTS


class Place(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Claim:
    """One primary, the epoch of its claim, and the slots that it claims."""

    place: Place
    epoch: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class View:
    """What one node says: the claims of all primaries, every place it knows, and addresses of places known by name."""

    claims: tuple[Claim, ...]
    places: frozenset[Place]
    names: Mapping[Place, Place] = field(default_factory=dict)


def parse_view(text: str, asked: Place, *, by_name: bool = False) -> View:
    """
    Read the reply to CLUSTER NODES of the node at `asked`.

    `by_name` prefers announced host names to addresses, as TLS needs them. A node that does not know its own address
    is where it was asked.
    """
    claims, places, by_address = [], set(), {}
    for line in text.splitlines():
        _, where, flags, _, _, _, epoch, _, *slots = line.split()
        kinds = flags.split(",")
        if "noaddr" in kinds or "handshake" in kinds:
            continue
        address, _, names = where.partition(",")
        host, _, port = address.partition("@")[0].rpartition(":")
        name = names.partition(",")[0]
        own = "myself" in kinds and not host
        place = Place(name if by_name and name else asked.host if own else host, int(port))
        places.add(place)
        by_address[Place(host, int(port))] = place
        if "master" in kinds and slots:
            ends = [part.partition("-")[::2] for part in slots if not part.startswith("[")]
            ranges = tuple((int(first), int(last or first)) for first, last in ends)
            claims.append(Claim(place, int(epoch), ranges))
    return View(tuple(claims), frozenset(places), by_address)


@dataclass(slots=True)
class Topology:
    """The newest claim to every slot that has been seen."""

    owners: list[Place | None] = field(default_factory=lambda: [None] * SLOTS)
    places: frozenset[Place] = frozenset()
    names: dict[Place, Place] = field(default_factory=dict)  #: by the address that a redirection tells
    _epochs: list[int] = field(default_factory=lambda: [-1] * SLOTS)
    _known: frozenset[Claim] = frozenset()

    def learn(self, views: Iterable[View]) -> None:
        """Take over what is newer than what is known."""
        views = list(views)
        if not views:
            return
        self.places = frozenset().union(*(view.places for view in views))
        for view in views:
            self.names.update(view.names)
        claims = frozenset(claim for view in views for claim in view.claims)
        for claim in claims - self._known:  # nodes that agree make the same claims: each is taken over once
            for first, last in claim.ranges:
                for slot in range(first, last + 1):
                    if claim.epoch >= self._epochs[slot]:
                        self.owners[slot], self._epochs[slot] = claim.place, claim.epoch
        self._known = claims

    @property
    def complete(self) -> bool:
        """Whether every slot has an owner."""
        return None not in self.owners

    @property
    def primaries(self) -> frozenset[Place]:
        """Those that own slots."""
        return frozenset(place for place in self.owners if place is not None)
