"""What the tests of the broadcast share: taking events, and waiting for conditions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aegis.redis import Gap, Subscription, Update


async def collect(updates: Subscription, count: int) -> list[Update | Gap]:
    """The next `count` events."""
    return [await asyncio.wait_for(anext(updates), 20) for _ in range(count)]


async def until(updates: Subscription, value: object) -> list[Update | Gap]:
    """All events up to the update with this value."""
    events: list[Update | Gap] = []
    async with asyncio.timeout(20):
        async for event in updates:
            events.append(event)
            if isinstance(event, Update) and event.value == value:
                return events
    raise AssertionError("the subscription ended")


async def eventually(condition: Callable[[], bool]) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
