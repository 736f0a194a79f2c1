"""What the charts showed in the last minutes, so that a page that is opened now has them at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from aegis.redis import PubSub, Update

_PRICES_MAX = 60  #: of one code; the small chart has no room for more
_CODES_MAX = 5_000  #: more than are listed
_LIMITS_FOR_S = 60.0
_LIMIT_CHANGES_MAX = 300  #: a look every 200 ms for a minute


class History:
    """The newest prices of every key whose values have a `price`, and how full each limit's window was."""

    def __init__(self) -> None:
        self._prices: dict[str, deque[float]] = {}
        self._shares: dict[str, deque[tuple[float, float]]] = {}

    def note(self, key: str, value: Any) -> None:
        """One more price, if it is one and differs from the last."""
        price = value.get("price") if isinstance(value, dict) else None
        if not isinstance(price, int | float):
            return
        prices = self._prices.get(key)
        if prices is None:
            if len(self._prices) >= _CODES_MAX:
                return
            prices = self._prices[key] = deque(maxlen=_PRICES_MAX)
        if not prices or prices[-1] != price:
            prices.append(price)

    def note_limits(self, windows: Iterable[Mapping[str, Any]], now: float) -> None:
        """How full each window is; kept where it differs from before."""
        for window in windows:
            shares = self._shares.setdefault(window["name"], deque(maxlen=_LIMIT_CHANGES_MAX))
            share = window["used"] / window["limit"]
            if not shares or shares[-1][1] != share:
                shares.append((now, share))

    def as_data(self, now: float) -> dict[str, Any]:
        """`prices` by key, oldest first; `limits` by name: seconds ago, and the share of the window used from then."""
        return {
            "prices": {key: list(prices) for key, prices in self._prices.items()},
            "limits": {name: _last_minute(shares, now) for name, shares in self._shares.items()},
        }

    async def follow(self, bus: PubSub, ready: asyncio.Event) -> None:
        """Note what is published, until cancelled."""
        async with bus.subscribe() as updates:
            ready.set()
            async for event in updates:
                if isinstance(event, Update):
                    self.note(event.key, event.value)


def _last_minute(shares: Iterable[tuple[float, float]], now: float) -> list[tuple[float, float]]:
    """With the last one before it, which holds until the first within."""
    aged = [(round(now - at, 2), share) for at, share in shares]
    old = [each for each in aged if each[0] > _LIMITS_FOR_S]
    return [*old[-1:], *(each for each in aged if each[0] <= _LIMITS_FOR_S)]
