"""The load under which primaries are killed, paused and cut off, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

from aegis.embedded import EmbeddedValkey
from aegis.errors import RedisUnavailableError, ServerLostError
from aegis.redis import Cache, Redis

#: The group replaces a silent primary after 1.5 s; our clients let go of it before that.
FAST = {"hang_timeout": 0.8, "connect_timeout": 0.8}
DOWN_AFTER_MS = 1500


async def until(condition: Callable[[], object], timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


class Load:
    """Tasks that count without a pause, each its own key; what they were told, and the longest time without answer."""

    def __init__(self, client: Redis, keys: list[str]) -> None:
        self.client, self.keys = client, keys
        self.last: dict[str, int] = dict.fromkeys(keys, 0)
        self.answered: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.unsent = 0
        self.longest_gap_s = 0.0
        self.over = False

    async def count(self, key: str) -> None:
        answered_at = time.monotonic()
        while not self.over:
            try:
                self.last[key] = await self.client.execute("INCR", key, timeout=3.0)
                self.answered[key] += 1
                now = time.monotonic()
                self.longest_gap_s, answered_at = max(self.longest_gap_s, now - answered_at), now
            except ServerLostError:
                self.unknown[key] += 1
            except RedisUnavailableError:
                self.unsent += 1
            await asyncio.sleep(0.002)

    async def agrees(self) -> None:
        """Nothing acknowledged is lost, nothing executed twice: answered <= value <= answered + unknown."""
        for key in self.keys:
            value = int(await self.client.execute("GET", key, timeout=20, idempotent=True) or 0)
            assert self.answered[key] <= value <= self.answered[key] + self.unknown[key], key


class Token:
    """A value that expires all the time and is wanted by several clients: how many loads of it run at the same time."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.loads = self.most = self.most_of_one = 0

    async def want(self, name: str, client: Redis) -> None:
        """Five callers who come back as soon as they have it, until cancelled."""
        cache = Cache(client, patience_s=0.5)

        async def fetch() -> str:
            self.running[name] += 1
            self.loads += 1
            self.most = max(self.most, self.running.total())
            self.most_of_one = max(self.most_of_one, self.running[name])
            await asyncio.sleep(0.1)
            self.running[name] -= 1
            return "token"

        async def ask() -> None:
            while True:
                assert await cache.get_or_set("token", fetch, str, ttl=0.5) == "token"
                await asyncio.sleep(0.02)

        await asyncio.gather(*(ask() for _ in range(5)))


@contextlib.asynccontextmanager
async def load(client: Redis, keys: list[str]) -> AsyncIterator[Load]:
    running = Load(client, keys)
    tasks = [asyncio.create_task(running.count(key)) for key in keys]
    try:
        await until(lambda: all(running.answered[key] > 3 for key in keys))
        yield running
        seen = running.answered.copy()
        await until(lambda: all(running.answered[key] > seen[key] + 3 for key in keys))
    finally:
        running.over = True
        async with asyncio.timeout(30):  # nobody hangs
            await asyncio.gather(*tasks)
    await running.agrees()


async def replaced(find: Callable[[], EmbeddedValkey], old: EmbeddedValkey) -> EmbeddedValkey:
    await until(lambda: find() is not old)
    return find()


KEYS = [f"n{i}" for i in range(12)]
