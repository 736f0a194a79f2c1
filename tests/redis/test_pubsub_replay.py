"""Replay from the log of a topic: from a version or a time, whole or with a report of what is missing."""

from __future__ import annotations

import asyncio

import pytest
from broadcast_events import collect

from aegis.redis import Gap, PubSub
from aegis.redis.broadcast.replay import replay
from aegis.redis.broadcast.wire import Frame, Header


async def published(bus: PubSub, key: str, numbers: range) -> None:
    """Each in a frame of its own."""
    for number in numbers:
        await bus.publish(key, number)
        await bus.flush()


async def test_replay_after_a_version_then_live(redis):
    """Everything after the update that was seen last, once, in order, and then what comes."""
    async with PubSub(redis, log_frames=1000) as bus:
        async with bus.subscribe("a", type=int, policy="all") as updates:
            await published(bus, "a", range(10))
            seen = await collect(updates, 4)
        async with bus.subscribe("a", type=int, policy="all", after=seen[-1].version) as updates:
            await published(bus, "a", range(10, 15))
            again = await collect(updates, 11)
    assert [event.value for event in again] == list(range(4, 15))
    assert not any(event.snapshot for event in again)


async def test_replay_begins_within_a_frame(redis):
    """Several ticks of one frame have versions of their own: those already seen do not come again."""
    async with PubSub(redis, log_frames=1000) as bus, bus.subscribe("a", type=int, policy="all") as live:
        for number in range(10):
            await bus.publish("a", number)
        await bus.flush()
        seen = await collect(live, 10)
        assert bus.stats().frames == 1
        async with bus.subscribe("a", type=int, policy="all", after=seen[3].version) as updates:
            assert [event.value for event in await collect(updates, 6)] == list(range(4, 10))


async def test_replay_since_a_time(redis):
    """The time of an update is a place, too."""
    async with PubSub(redis, log_frames=1000) as bus, bus.subscribe("a", type=int, policy="all") as live:
        await published(bus, "a", range(3))
        moment = (await collect(live, 3))[-1].version / 1e6 + 0.001
        while bus._clock.now_us() < moment * 1e6:
            await asyncio.sleep(0.001)
        await published(bus, "a", range(3, 6))
        async with bus.subscribe(type=int, policy="all", since=moment) as updates:
            assert [event.value for event in await collect(updates, 3)] == [3, 4, 5]
    with pytest.raises(ValueError, match="one place"):
        bus.subscribe(after=1, since=1.0)


async def test_trimmed_log_is_a_gap_never_a_silent_part(redis):
    """What was asked for is no longer there: first the report, then what there is."""
    async with PubSub(redis, log_frames=1000) as bus, bus.subscribe("a", type=int, policy="all") as live:
        await published(bus, "a", range(10))
        seen = await collect(live, 10)
        log = bus._names.log(bus._names.partition_of("a"))
        await redis.execute("XTRIM", log, "MAXLEN", 4)
        async with bus.subscribe("a", type=int, policy="all", after=seen[1].version) as updates:
            gap, *rest = await collect(updates, 5)
        assert isinstance(gap, Gap)
        assert [event.value for event in rest] == [6, 7, 8, 9]
        await redis.execute("DEL", log)
        async with bus.subscribe("a", type=int, policy="all", after=seen[1].version) as updates:
            gap, newest = await collect(updates, 2)
        assert isinstance(gap, Gap)
        assert (newest.value, newest.snapshot) == (9, True)


async def test_topic_without_a_log_says_so_by_a_gap(redis):
    """Nothing was logged: the last value stands in, after a report."""
    async with PubSub(redis) as bus:
        await published(bus, "a", range(3))
        async with bus.subscribe("a", type=int, policy="all", after=0) as updates:
            gap, newest = await collect(updates, 2)
    assert isinstance(gap, Gap)
    assert (newest.value, newest.snapshot) == (2, True)


async def test_lost_announcements_come_from_the_log_without_a_gap(redis):
    """With a log a repair loses nothing: every tick comes, none is folded, and there is nothing to report."""
    async with PubSub(redis, log_frames=1000) as bus, bus.subscribe("a", type=int, policy="all") as updates:
        await published(bus, "a", range(3))
        events = await collect(updates, 3)
        real, bus._receiver._on_frame = bus._receiver._on_frame, lambda place, frame: None
        await published(bus, "a", range(3, 6))
        async with asyncio.timeout(20):
            while bus.stats().repairs == 0:
                await asyncio.sleep(0.01)
        bus._receiver._on_frame = real
        await published(bus, "a", range(6, 9))
        events += await collect(updates, 6)
        assert bus.stats().gaps == 0
    assert [event.value for event in events] == list(range(9))


async def test_log_is_bounded(redis):
    """About as many frames as asked for, whatever is published."""
    async with PubSub(redis, log_frames=50) as bus:
        for number in range(2000):
            await bus.publish("a", number, urgent=True)
            if number % 20 == 0:
                await bus.flush()
        await bus.flush()
        assert bus.stats().frames > 90
        assert await redis.execute("XLEN", bus._names.log(bus._names.partition_of("a"))) <= 50 + 100  # whole nodes go


def frame(stream: str, seq: int, version: int, count: int = 1) -> Frame:
    return Frame(0, "life", stream, seq, version, 0, [f"{stream}{seq + at}" for at in range(count)], [b"1"] * count)


def test_decision():
    """Pure: whole from the first, whole because older is there, holes, a missing end."""
    stored = [Frame(0, "", "x", 3, 30, 0, ("k",), (b"1",), snapshot=True)]
    header = Header("life", 30, {"x": 3})
    whole = [frame("x", 1, 10), frame("x", 2, 20), frame("x", 3, 30)]
    assert replay(0, header, stored, whole, 0, reaches_back=False) == ([], whole)
    assert replay(0, header, stored, whole[1:], 10, reaches_back=True) == ([], whole[1:])
    assert replay(0, header, stored, [], 30, reaches_back=False) == ([], [])
    gaps, frames = replay(0, header, stored, whole[1:], 5, reaches_back=False)
    assert [gap.lost for gap in gaps] == [0]
    assert frames == [*whole[1:], *stored]
    gaps, _ = replay(0, header, stored, [whole[0], whole[2]], 0, reaches_back=False)
    assert [(gap.from_seq, gap.to_seq, gap.lost) for gap in gaps] == [(2, 2, 1)]
    gaps, _ = replay(0, header, stored, whole[:2], 0, reaches_back=False)
    assert [(gap.from_seq, gap.to_seq, gap.lost) for gap in gaps] == [(3, 3, 1)]
