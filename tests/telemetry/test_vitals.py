"""A process tells what it does: all rooms, twice a second, until it has ended; and never stands in anybody's way."""

from __future__ import annotations

import asyncio
import dataclasses

import msgspec
import pytest

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.redis import PubSub, Redis, Update
from aegis.telemetry import KEEP_S, VITALS_TOPIC, Vital, Vitals
from aegis.testing import until


@dataclasses.dataclass(frozen=True)
class Stats:
    asked: int


class Room:
    def __init__(self) -> None:
        self.asked = 0

    def stats(self) -> Stats:
        self.asked += 1
        return Stats(self.asked)


async def test_what_the_rooms_say_is_told_again_and_again(redis):
    """Name, process, interval; numbers move on; the last word is that it has ended."""
    room, told = Room(), []
    async with PubSub(redis, topic=VITALS_TOPIC) as bus, bus.subscribe(type=Vital, policy="all") as updates:

        async def listen() -> None:
            async for event in updates:
                if isinstance(event, Update):
                    assert event.key == "process:collector 1"
                    told.append(event.value)
                    if event.value.ended:
                        return

        listening = asyncio.create_task(listen())
        async with Vitals(redis, "aegis", "collector 1", {"room": room.stats}, every_s=0.02):
            await until(lambda: len(told) >= 3)
        async with asyncio.timeout(20):
            await listening
    assert [vital.ended for vital in told] == [False] * (len(told) - 1) + [True]
    asked = [vital.stats["room"]["asked"] for vital in told]
    assert asked == sorted(set(asked))
    assert {(vital.name, vital.every_s) for vital in told} == {("collector 1", 0.02)}


async def test_what_a_process_told_does_not_outlive_it_for_long(redis):
    """What is kept of it in Redis ends a minute after its last word, however it ends; every key has an end."""
    async with Vitals(redis, "aegis", "killed soon", {}, every_s=0.02):
        async with asyncio.timeout(20):  # also without an end in order
            while not (kept := await redis.execute("KEYS", "*vitals*")) or -1 in [
                await ttl(redis, key) for key in kept
            ]:
                await asyncio.sleep(0.02)
    books = await redis.execute("KEYS", "*vitals*:book")
    assert books
    assert all([0 < await ttl(redis, key) <= KEEP_S for key in books])


async def ttl(redis, key) -> int:
    return await redis.execute("TTL", key)


async def test_a_server_that_goes_away_neither_stops_nor_delays_the_process():
    """What would have been told is dropped; leaving takes bounded time."""
    with EmbeddedValkey() as server:
        async with Redis(RedisConfig(url=server.url, connect_timeout=0.3, command_timeout=0.5)) as redis:
            room = Room()
            async with (
                asyncio.timeout(30),
                Vitals(redis, "aegis", "collector 1", {"room": room.stats}, every_s=0.02),
            ):
                server.kill()
                before = room.asked
                while room.asked < before + 3:
                    await asyncio.sleep(0.01)


def test_a_vital_is_plain_json():
    """Records of every kind of room go over the wire."""
    vital = Vital("a", 1, 2.0, 0.5, {"room": Stats(3)})
    again = msgspec.json.decode(msgspec.json.encode(vital), type=Vital)
    assert again == msgspec.structs.replace(vital, stats={"room": {"asked": 3}})
    with pytest.raises(AttributeError):
        again.name = "b"
