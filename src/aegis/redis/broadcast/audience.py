"""Who listens to a partition: finds the subscriptions of a key without asking each of them."""

from __future__ import annotations

from collections import defaultdict

from aegis.redis.broadcast.records import Gap
from aegis.redis.broadcast.subscription import Subscription
from aegis.redis.broadcast.wire import Frame


class Audience:
    """The subscriptions of one partition."""

    def __init__(self) -> None:
        self._all: list[Subscription] = []
        self._everything: list[Subscription] = []
        self._patterned: list[Subscription] = []
        self._by_key: dict[str, list[Subscription]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, subscription: object) -> bool:
        return subscription in self._all

    def add(self, subscription: Subscription) -> None:
        """From now on it gets what it wants."""
        self._all.append(subscription)
        wanted = subscription.wanted
        if wanted.everything:
            self._everything.append(subscription)
        elif wanted.patterns:
            self._patterned.append(subscription)
        else:
            for key in wanted.keys:
                self._by_key.setdefault(key, []).append(subscription)

    def remove(self, subscription: Subscription) -> None:
        """From now on it gets nothing more."""
        for group in (self._all, self._everything, self._patterned):
            if subscription in group:
                group.remove(subscription)
        for key in subscription.wanted.keys:
            group = self._by_key.get(key, [])
            if subscription in group:
                group.remove(subscription)
            if not group:
                self._by_key.pop(key, None)

    def pass_on(self, frame: Frame) -> None:
        """Give everybody the ticks that they want; nobody is waited for."""
        if self._everything:
            every = range(len(frame.keys))
            for subscription in self._everything:
                subscription.offer(frame, every)
        if self._by_key:
            places: defaultdict[Subscription, list[int]] = defaultdict(list)
            for place, key in enumerate(frame.keys):
                for subscription in self._by_key.get(key, ()):
                    places[subscription].append(place)
            for subscription, chosen in places.items():
                subscription.offer(frame, chosen)
        for subscription in self._patterned:
            subscription.offer(frame, subscription.places(frame))

    def restore(self, frame: Frame, life: str) -> None:
        """Give a value that was written again to those who did not find it when they joined."""
        for subscription in self._all:
            if frame.keys[0] in subscription.wanted:
                subscription.restore(frame, life)

    def adopt(self, partition: int, life: str) -> None:
        """The partition was empty, and now it lives."""
        for subscription in self._all:
            subscription.adopt(partition, life)

    def report(self, gap: Gap) -> None:
        """Everybody is told: whose key was lost cannot be known."""
        for subscription in self._all:
            subscription.report(gap)

    @property
    def keys(self) -> frozenset[str] | None:
        """All keys that anybody wants; None where they cannot be listed."""
        return None if self._everything or self._patterned else frozenset(self._by_key)
