"""The prices of the last minutes, so that a page that is opened now has charts at once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from aegis.redis import PubSub, Update

_PRICES_MAX = 60  #: of one code; the small chart has no room for more
_CODES_MAX = 5_000  #: more than are listed


class History:
    """The newest prices of every key whose values have a `price`."""

    def __init__(self) -> None:
        self._prices: dict[str, deque[float]] = {}

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

    def as_data(self) -> dict[str, list[float]]:
        """Prices by key, oldest first."""
        return {key: list(prices) for key, prices in self._prices.items()}

    async def follow(self, bus: PubSub, ready: asyncio.Event) -> None:
        """Note what is published, until cancelled."""
        async with bus.subscribe() as updates:
            ready.set()
            async for event in updates:
                if isinstance(event, Update):
                    self.note(event.key, event.value)
