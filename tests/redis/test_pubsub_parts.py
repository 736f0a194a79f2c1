"""Records that are published in parts: Redis holds the whole record, whoever published which field."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any

import msgspec
import pytest
from broadcast_events import collect, eventually
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.redis import Gap, PubSub
from aegis.redis.broadcast.parts import as_json, as_stored, merge

values = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)
records = st.dictionaries(st.text(max_size=4), values, max_size=4)


@settings(deadline=None)  # the machine may be busy
@given(parts=st.lists(records | st.integers(), min_size=1, max_size=5))
def test_merged_parts_are_the_union_of_their_fields(parts: list[Any]) -> None:
    """The later field stands; what is no record replaces everything, and is replaced."""
    expected = reduce(lambda old, new: old | new if isinstance(old, dict) and isinstance(new, dict) else new, parts)
    stored = reduce(merge, [as_stored(msgspec.json.encode(part)) for part in parts])
    assert json.loads(as_json(stored)) == expected


async def test_late_subscriber_sees_the_fields_of_all_producers(redis):
    """Each publishes what changed; the record is whole for `last`, for who comes late, and for who was there."""
    whole = {"bid": 69_900, "ask": 70_100, "price": 70_000, "id": 12_345_678_901_234_567_890, "이름": "삼성\x1e전자"}
    async with PubSub(redis, partial=True) as quotes, PubSub(redis, partial=True) as trades:
        async with quotes.subscribe(policy="merge") as updates:
            await trades.publish("a", {"price": 1, "id": whole["id"], "이름": whole["이름"]})
            await trades.flush()
            await quotes.publish("a", {"bid": 1, "ask": 1})
            await quotes.publish("a", {"bid": 69_900})
            await quotes.publish("a", {"ask": 70_100})
            await quotes.flush()
            await trades.publish("a", {"price": 70_000})
            await trades.flush()
            while (event := (await collect(updates, 1))[0]).value != whole:
                pass
        assert await quotes.last("a") == whole
        async with trades.subscribe("a", policy="merge") as updates:
            [late] = await collect(updates, 1)
            assert (late.value, late.snapshot, late.version) == (whole, True, event.version)
            await quotes.publish("a", {"bid": 69_800})
            assert (await collect(updates, 1))[0].value == whole | {"bid": 69_800}


async def test_a_new_epoch_keeps_the_fields_of_the_last_one(redis):
    """Its first part is not the whole record; what is no record replaces it."""
    for part in ({"a": 1, "b": 1}, {"b": 2}, {"c": 3}):
        async with PubSub(redis, partial=True) as bus:
            await bus.publish("k", part)
    async with PubSub(redis, partial=True) as bus:
        assert await bus.last("k") == {"a": 1, "b": 2, "c": 3}
        for value, then in ((7, 7), ({}, {}), ({"x": {"y": [1, 2]}}, {"x": {"y": [1, 2]}})):
            await bus.publish("k", value)
            await bus.flush()
            assert await bus.last("k") == then


async def test_lost_records_come_back_with_the_fields_of_all(redis):
    """After a loss of data each producer writes its own fields; none erases the other's, whoever is first."""
    async with PubSub(redis, partial=True) as one, PubSub(redis, partial=True) as two:
        for number in range(3):
            await one.publish("k", {"bid": number})
            await one.flush()
            await two.publish("k", {"ask": number, "both": "two"})
            await two.flush()
        await one.publish("k", {"both": "one"})
        await one.flush()
        await redis.execute("FLUSHALL")
        await eventually(lambda: one.stats().restored >= 1 and two.stats().restored >= 1)
        assert await one.last("k") == {"bid": 2, "ask": 2, "both": "one"}


async def test_gap_in_parts_is_repaired_with_the_whole_record(redis):
    """The announcement of a part is lost: what Redis holds stands in for it."""
    async with (
        PubSub(redis, partial=True) as bus,
        PubSub(redis, partial=True) as feed,
        bus.subscribe("k", policy="merge") as updates,
    ):
        await feed.publish("k", {"a": 1})
        assert (await collect(updates, 1))[0].value == {"a": 1}
        receiver = bus._receiver
        real, receiver._on_frame = receiver._on_frame, lambda place, frame: setattr(receiver, "_on_frame", real)
        await feed.publish("k", {"b": 2})
        await feed.flush()
        await eventually(lambda: receiver._on_frame is real)
        gap, update = await collect(updates, 2)
    assert isinstance(gap, Gap)
    assert (update.value, update.snapshot) == ({"a": 1, "b": 2}, True)


def test_what_would_drop_fields_is_refused(redis):
    """Folding a part away is not folding a record."""
    with pytest.raises(ValueError, match="conflate=True would drop some"):
        PubSub(redis, partial=True, conflate=True)
    for policy in ("latest", "trade_safe"):
        with pytest.raises(ValueError, match=f"policy='{policy}' would drop fields"):
            PubSub(redis, partial=True).subscribe(policy=policy)
