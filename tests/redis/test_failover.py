"""
Groups of real servers that lose a primary while commands run: killed, paused and resumed, cut off by a proxy.

For each: nobody hangs, what was acknowledged is there (in these runs: replication is asynchronous), nothing is executed
twice, and a primary that comes back after its replacement is not written to. Long form: benchmarks/redis_failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedCluster, EmbeddedSentinel, EmbeddedValkey
from aegis.errors import RedisError, RedisUnavailableError, ServerLostError
from aegis.redis import Redis
from aegis.redis._slots import slot_of_key
from aegis.testing import FaultProxy

#: The group replaces a silent primary after 1.5 s; our clients let go of it before that.
FAST = {"hang_timeout": 0.8, "connect_timeout": 0.8}
DOWN_AFTER_MS = 1500


@pytest.fixture
def group() -> Iterator[EmbeddedSentinel]:
    with EmbeddedSentinel(down_after_ms=DOWN_AFTER_MS) as group:
        yield group


@pytest.fixture
def fragile() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(node_timeout_ms=DOWN_AFTER_MS) as cluster:
        yield cluster


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


async def test_a_sentinel_primary_that_is_killed_is_replaced_without_a_word_to_callers_that_wait(
    group: EmbeddedSentinel,
) -> None:
    """The client finds the new primary by itself; the pause is the group's own time plus a second or two."""
    async with Redis(RedisConfig(url=group.url, **FAST)) as client:
        assert await client.raw.ping()
        async with load(client, KEYS) as running:
            old = group.primary
            old.kill()
            await replaced(lambda: group.primary, old)
        assert running.longest_gap_s < 20
        stats = client.stats()
        assert stats.state == "connected"
        assert stats.reconnects >= 1


async def test_a_sentinel_primary_that_was_paused_and_replaced_is_not_written_to_when_it_comes_back(
    group: EmbeddedSentinel,
) -> None:
    """What it executes after its return was in its socket: everybody has left it before its replacement."""
    async with Redis(RedisConfig(url=group.url, **FAST)) as client:
        async with load(client, KEYS):
            old = group.primary
            old.pause()
            new = await replaced(lambda: group.primary, old)
            old.resume()
        assert client._steady._link._transport.get_extra_info("peername")[1] == new.port


async def test_a_sentinel_that_is_cut_off_is_not_believed(group: EmbeddedSentinel) -> None:
    """One of three is dead, one hangs: the third is asked within the time for a connection."""
    group.sentinels[0].kill()
    group.sentinels[1].pause()
    try:
        async with Redis(RedisConfig(url=group.url, connect_timeout=3.0)) as client:
            assert await client.execute("SET", "k", 1) == b"OK"
    finally:
        group.sentinels[1].resume()


async def test_no_sentinel_and_no_primary_are_told_apart(group: EmbeddedSentinel) -> None:
    """The error names the group, and what the Sentinels did not know."""
    with pytest.raises(RedisUnavailableError, match=r"other of Sentinels.*no healthy primary"):
        await Redis(RedisConfig(url=group.url.replace("/aegis", "/other"), **FAST)).__aenter__()
    with pytest.raises(RedisUnavailableError, match="no healthy primary"):
        await Redis(RedisConfig(url="redis+sentinel://127.0.0.1:1/aegis", **FAST)).__aenter__()


async def test_a_cluster_primary_that_is_killed_is_replaced_and_the_others_go_on(fragile: EmbeddedCluster) -> None:
    """Keys of the other primaries are answered all the time; those of the dead one as soon as there is a new one."""
    async with Redis(RedisConfig(url=fragile.url, **FAST)) as client:
        old = fragile.primary_of(slot_of_key(KEYS[0]))
        spared = [key for key in KEYS if fragile.primary_of(slot_of_key(key)) is not old]
        async with load(client, KEYS) as running:
            before = running.answered.copy()
            old.kill()
            await until(lambda: all(running.answered[key] > before[key] + 20 for key in spared), 10)
            new = await replaced(lambda: fragile.primary_of(slot_of_key(KEYS[0])), old)
        assert client.servers.owner(slot_of_key(KEYS[0])).config.port == new.port
        old.start()
        await asyncio.to_thread(fragile.wait_until_whole)
        assert client.stats().state == "connected"


async def test_a_cluster_primary_that_was_paused_and_replaced_does_not_get_its_slots_back(
    fragile: EmbeddedCluster,
) -> None:
    """When it resumes it still believes in itself; its claim is older, and it is not asked again."""
    async with Redis(RedisConfig(url=fragile.url, **FAST)) as client:
        slot = slot_of_key(KEYS[0])
        async with load(client, KEYS):
            old = fragile.primary_of(slot)
            old.pause()
            new = await replaced(lambda: fragile.primary_of(slot), old)
            await until(lambda: client.stats().state == "connected")
            old.resume()
        assert client.servers.owner(slot).config.port == new.port


async def test_a_node_that_is_cut_off_costs_only_its_own_keys_and_is_used_again(fragile: EmbeddedCluster) -> None:
    """A proxy swallows everything to one primary: its keys are unavailable in time, the others are not."""
    node = fragile.nodes[0]
    async with FaultProxy(f"127.0.0.1:{node.port}") as proxy:
        with fragile.asking(node) as ask:
            ask("CONFIG", "SET", "cluster-announce-port", proxy.port)
        seeds = ",".join(f"127.0.0.1:{other.port}" for other in fragile.nodes[1:3])
        await until(lambda: _announced(fragile, proxy.port))
        async with Redis(RedisConfig(url=f"redis+cluster://{seeds}", **FAST)) as client:
            here = next(f"k{i}" for i in range(99) if _port(client, f"k{i}") == proxy.port)
            there = next(f"k{i}" for i in range(99) if _port(client, f"k{i}") != proxy.port)
            await client.pipeline([("SET", here, 1), ("SET", there, 1)])
            proxy.freeze()
            with pytest.raises(RedisError):
                await client.execute("GET", here, timeout=2.0)
            for _ in range(50):
                assert await client.execute("GET", there) == b"1"
            with pytest.raises(RedisError):
                await client.execute("GET", here, timeout=1.0)
            proxy.reset()
            proxy.heal()
            assert await client.execute("GET", here, timeout=10.0) == b"1"
        with fragile.asking(node) as ask:
            ask("CONFIG", "SET", "cluster-announce-port", "0")


def _announced(cluster: EmbeddedCluster, port: int) -> bool:
    for node in cluster.nodes[1:3]:
        with cluster.asking(node) as ask:
            if f":{port}@".encode() not in ask("CLUSTER", "NODES"):
                return False
    return True


def _port(client: Redis, key: str) -> int:
    return client.servers.owner(slot_of_key(key)).config.port
