"""Values: whatever lies in Redis is either the right value or a miss."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import os
import random
import uuid
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.errors import CacheTypeError
from aegis.redis import TTL, Cache
from aegis.redis.caching import envelope
from aegis.redis.caching.envelope import _HEAD_BYTES, _ZLIB, COMPRESS_ABOVE_BYTES, codec_for, encode, pack, unpack
from aegis.redis.caching.schema import ANY


class Side(enum.Enum):
    BUY = "buy"
    SELL = "sell"


class Order(msgspec.Struct, frozen=True):
    code: str
    price: decimal.Decimal
    side: Side
    at: dt.datetime


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int


ORDER = Order("005930", decimal.Decimal("70000.5"), Side.BUY, dt.datetime(2026, 11, 24, 9, 0, tzinfo=dt.UTC))
VALUES = [
    (None, type(None)),
    (None, int | None),
    (True, bool),
    (0, int),
    (-(2**63), int),
    (2**64 - 1, int),
    (1.5, float),
    ("삼성전자", str),
    ("", str),
    (b"\x00\xff", bytes),
    ([], list),
    ([1, "a", None], list),
    ({"a": {"b": [1]}}, dict),
    ((1, "a"), tuple[int, str]),
    (frozenset({1, 2}), frozenset[int]),
    (ORDER, Order),
    (ORDER, Order | None),
    ([ORDER, ORDER], list[Order]),
    ({"x": ORDER}, dict[str, Order]),
    (Point(1, 2), Point),
    (uuid.UUID(int=5), uuid.UUID),
    (dt.date(2026, 1, 2), dt.date),
    (dt.timedelta(seconds=1.5), dt.timedelta),
    (Side.SELL, Side),
]


@pytest.mark.parametrize(("value", "type_"), VALUES, ids=lambda each: repr(each)[:40])
async def test_what_was_stored_is_what_is_read(redis, value, type_):
    """By set, by a load and by set_many; from Redis and from the process; every type that msgspec knows."""
    cache, nothing = Cache(redis), object()
    await cache.set("set", value)
    assert await cache.get_or_set("loaded", lambda: value, type_) == value
    await cache.set_many({"many": value})
    for _ in range(3):
        for key in ("set", "loaded", "many"):
            read = await cache.get(key, type_, default=nothing)
            assert read == value
            assert type(read) is type(value)
    assert await cache.get_many(["set", "loaded", "many"], type_) == dict.fromkeys(["set", "loaded", "many"], value)


async def test_none_is_a_value(redis):
    """A stored None is told apart from a miss by `default`, is loaded once, and is among the many."""
    cache, loads = Cache(redis), []

    def load() -> None:
        loads.append(1)

    for _ in range(3):
        assert await cache.get_or_set("k", load) is None
    assert len(loads) == 1
    assert await cache.get("k", default="miss") is None
    assert await cache.get("other", default="miss") == "miss"
    assert await cache.get_many(["k", "other"]) == {"k": None}
    assert await cache.get_or_set("record", lambda: None, V1 | None) is None
    assert await cache.get("record", V2 | None, default="miss") is None  # nothing is of every schema


class V1(msgspec.Struct):
    code: str
    price: int


class V1Moved(msgspec.Struct):
    """The same fields under another name: no change of schema."""

    code: str
    price: int = 5


class V2(msgspec.Struct):
    code: str
    price: int
    currency: str = "KRW"


class V3(msgspec.Struct):
    code: str


class Outer1(msgspec.Struct):
    inner: list[V1]


class Outer2(msgspec.Struct):
    inner: list[V2]


class Tree(msgspec.Struct):
    children: list[Tree]


async def test_another_schema_is_a_miss(redis):
    """A field added (even with a default), removed or retyped, also within: loaded anew. Moved or defaulted: not."""
    cache = Cache(redis, local_entries=0)
    await cache.set("k", V1("005930", 1))
    assert await cache.get("k", V1Moved) == V1Moved("005930", 1)
    for other in (V2, V3, int, list[V1]):
        assert await cache.get("k", other) is None
    assert await cache.get("k") == {"code": "005930", "price": 1}  # without a type: what is there
    await cache.get_or_set("o", lambda: Outer1([V1("a", 1)]), Outer1)
    assert await cache.get("o", Outer2) is None
    assert await cache.get_or_set("o", lambda: Outer2([V2("a", 1)]), Outer2) == Outer2([V2("a", 1)])
    await cache.set("t", Tree([Tree([])]))
    assert await cache.get("t", Tree) == Tree([Tree([])])


async def test_a_list_of_records_survives_no_change_of_their_fields(redis):
    """A typed container carries the fingerprint of what it holds."""
    cache = Cache(redis, local_entries=0)
    await cache.get_or_set("k", lambda: [V1("a", 1)], list[V1])
    assert await cache.get("k", list[V1]) == [V1("a", 1)]
    assert await cache.get("k", list[V2]) is None


@given(
    payload=st.binary(max_size=300),
    tags=st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=24)), max_size=5),
    cut=st.integers(0, 2000),
)
@settings(max_examples=200, deadline=None)
def test_a_cut_envelope_is_a_miss(payload, tags, cut):
    """Whatever was cut off or appended, it is not read as a value; whole, it is."""
    blob = pack(payload, b"abcd", hard_ms=5, soft_ms=4, delta_s=0.5, tags=tuple(tags))
    entry = unpack(blob)
    assert entry is not None
    assert (entry.payload, entry.tags, entry.fingerprint) == (payload, tuple(tags), b"abcd")
    assert (entry.hard_ms, entry.soft_ms, entry.delta_us) == (5, 4, 500_000)
    assert unpack(blob[: cut % len(blob)]) is None
    assert unpack(blob + b"\x00") is None


@given(st.binary(max_size=500))
@settings(max_examples=300, deadline=None)
def test_foreign_bytes_are_a_miss(raw):
    """No bytes make the reader raise."""
    for each in (raw, b"\xae\x01" + raw, b"\xae\x01\x01\x00" + raw, b"\xae\x01\x00\x03" + raw):
        entry = unpack(each)
        if entry is not None:
            for type_ in (Any, Order, dict):
                with contextlib.suppress(ValueError):
                    codec_for(type_).decode(entry)


async def test_every_flipped_byte_is_a_value_or_a_miss(redis):
    """Damage never raises, neither from get nor from get_or_set, which then repairs it."""
    cache, seed = Cache(redis, local_entries=0), random.Random(1)
    await cache.set("k", {"code": "005930", "price": [1, 2, 3]}, tags=("t",))
    blob = await redis.execute("GET", "aegis:cache:{k}")
    for at in range(len(blob)):
        damaged = bytearray(blob)
        damaged[at] ^= 1 << seed.randrange(8)
        await redis.execute("SET", "aegis:cache:{k}", bytes(damaged))
        await cache.get("k", dict)
        assert isinstance(await cache.get_or_set("k", lambda: {"code": "new"}, dict), dict)


@pytest.mark.parametrize("foreign", [b"", b"x", b"\x80\x04\x95", b'{"json": true}', b"\xae\x02" + bytes(60)])
async def test_a_foreign_value_is_replaced(redis, foreign):
    """Bytes of another program or version: a miss, loaded once, and then readable."""
    cache = Cache(redis)
    await redis.execute("SET", "aegis:cache:{k}", foreign)
    assert await cache.get("k") is None
    assert await cache.get_or_set("k", lambda: 1, int) == 1
    assert await cache.get("k", int) == 1
    assert cache.stats().loads == 1


async def test_a_key_of_another_kind_is_replaced(redis):
    """A list under our name is a miss, not a WRONGTYPE for the caller."""
    cache = Cache(redis)
    await redis.execute("LPUSH", "aegis:cache:{k}", "x")
    assert await cache.get("k") is None
    assert await cache.get_or_set("k", lambda: 1, int) == 1
    assert await cache.get("k", int) == 1


_ROWS = encode([{"code": f"{n:06}"} for n in range(2_000)])


def repacked(payload: bytes, flags: int = _ZLIB) -> bytes:
    """An envelope that says so of its payload, and of its length."""
    head = pack(b"", ANY, hard_ms=1, soft_ms=1)[:_HEAD_BYTES]
    return head[:2] + bytes([flags]) + head[3:-4] + len(payload).to_bytes(4, "big") + payload


def test_a_compressed_payload_is_whole_or_a_miss(monkeypatch):
    """Cut off, with something behind it, larger than anything that we write, or of a later version: never a value."""
    packed = zlib.compress(_ROWS)
    assert unpack(repacked(packed)).payload == _ROWS
    for damaged in (packed[:-1], packed[:-20], packed + b"x"):
        assert unpack(repacked(damaged)) is None
    assert unpack(repacked(packed, flags=_ZLIB | 2)) is None
    monkeypatch.setattr(envelope, "_INFLATED_BYTES_MAX", len(_ROWS) - 1)
    assert unpack(repacked(packed)) is None


def test_the_head_holds_any_time_of_a_load():
    """A load may take a day; more than an hour is as good as one."""
    assert unpack(pack(b"", ANY, hard_ms=1, soft_ms=1, delta_s=86_400.0)).delta_us == 0xFFFF_FFFF


async def test_large_values_are_compressed(redis):
    """Above some kilobytes, and only where it helps."""
    cache = Cache(redis, local_entries=0)
    rows = [{"code": f"{n:06}", "name": "삼성전자", "price": 70_000} for n in range(2_000)]
    noise = os.urandom(20_000)
    await cache.set("rows", rows)
    await cache.set("noise", noise)
    assert await redis.execute("STRLEN", "aegis:cache:{rows}") < len(encode(rows)) / 4
    assert await redis.execute("STRLEN", "aegis:cache:{noise}") == len(encode(noise)) + _HEAD_BYTES
    assert await cache.get("rows") == rows
    assert await cache.get("noise", bytes) == noise
    assert len(encode(rows)) > COMPRESS_ABOVE_BYTES


@pytest.mark.parametrize("ttl", [0.001, 0.5, TTL.SHORT, dt.timedelta(hours=1), 86400 * 365 * 20])
async def test_times_to_live_from_a_millisecond_to_decades(redis, ttl):
    """Kept to the millisecond, never rounded up to something else."""
    cache = Cache(redis)
    seconds = ttl.total_seconds() if isinstance(ttl, dt.timedelta) else ttl
    await cache.set("k", 1, ttl=ttl)
    left_ms = await redis.execute("PTTL", "aegis:cache:{k}")
    assert seconds * 1000 - 200 <= left_ms <= seconds * 1000 or left_ms == -2  # a millisecond may be over


@pytest.mark.parametrize("ttl", [0, -1, 0.0004, float("nan"), float("inf"), 1e15, dt.timedelta(0)])
async def test_a_time_to_live_that_is_none_is_refused(redis, ttl):
    """Zero, negative and absurd ones raise ValueError with the key's name, before anything is stored or loaded."""
    cache = Cache(redis)
    for call in (
        lambda: cache.set("k1", 1, ttl=ttl),
        lambda: cache.set_many({"k1": 1}, ttl=ttl),
        lambda: cache.get_or_set("k1", lambda: 1 // 0, ttl=ttl),
        lambda: cache.get_or_set_many(["k1"], lambda _: 1 // 0, ttl=ttl),
    ):
        with pytest.raises(ValueError, match=r"ttl=.*'k1'"):
            await call()
    with pytest.raises(ValueError, match=r"ttl=.*'k1'"):
        await cache.get_or_set("k1", lambda: 1, ttl=lambda _: ttl)
    assert await redis.execute("DBSIZE") <= 1  # at most the error that keeps others quiet


async def test_tags_outlive_what_carries_them(redis):
    """However a value was stored, its tags' generations are there as long as it is; a short one leaves them alone."""
    cache, month_s = Cache(redis), 86_400 * 30
    await cache.set("a", 1, ttl=month_s, tags=("set",))
    await cache.set_many({"b": 1, "c": 1}, ttl=month_s, tags=("many",))
    await cache.get_or_set("d", lambda: 1, ttl=1, stale_s=month_s, tags=("loaded", "both"))
    await cache.get_or_set_many(["e"], lambda _: {"e": 1}, ttl=month_s, tags=("batch", "both"))
    await cache.set("f", 1, ttl=1, tags=("short", "both"))
    for tag in ("set", "many", "loaded", "both", "batch"):
        assert await redis.execute("PTTL", f"aegis:tag:{tag}") > month_s * 1000
    assert await redis.execute("PTTL", "aegis:tag:short") < 86_400 * 1000


async def test_loaded_values_do_not_expire_together(redis):
    """A fixed ttl is shortened at random by at most `jitter`; that of `set` and of a function is exact."""
    cache = Cache(redis, jitter=0.1)
    await cache.get_or_set_many([f"k{n}" for n in range(50)], lambda keys: dict.fromkeys(keys, 1), ttl=1000)
    await cache.set_many({f"m{n}": 1 for n in range(50)}, ttl=1000)
    for prefix in "km":
        lefts = [await redis.execute("PTTL", f"aegis:cache:{{{prefix}{n}}}") for n in range(50)]
        assert min(lefts) >= 900_000 - 1000
        assert max(lefts) <= 1_000_000
        assert max(lefts) - min(lefts) > 40_000
    await cache.set("exact", 1, ttl=1000)
    await cache.get_or_set("function", lambda: 1, ttl=lambda _: 1000)
    for key in ("exact", "function"):
        assert await redis.execute("PTTL", f"aegis:cache:{{{key}}}") > 999_000


async def test_what_cannot_be_encoded_is_refused_by_name(redis):
    """An object that msgspec does not know: CacheTypeError with key and type; nothing is stored."""
    cache = Cache(redis)
    with pytest.raises(CacheTypeError, match=r"'k'.*object cannot be encoded"):
        await cache.set("k", object())
    with pytest.raises(CacheTypeError, match=r"'k'.*int"):
        await cache.set("k", 2**70)
    assert await redis.execute("DBSIZE") == 0


@pytest.mark.parametrize("key", ["", "}x"])
async def test_unusable_keys_are_refused(redis, key):
    """An empty key, and one that would break the hash tag."""
    cache = Cache(redis)
    for call in (lambda: cache.set(key, 1), lambda: cache.get_or_set(key, lambda: 1), lambda: cache.delete(key)):
        with pytest.raises(ValueError, match="key"):
            await call()


@pytest.mark.parametrize("key", ["a b", "한글", "a{b}c", "a}b", "x" * 1000, "\n", "*?[]\\"])
async def test_unusual_keys_work(redis, key):
    """Any other text is a key."""
    cache = Cache(redis)
    await cache.set(key, 1, tags=(key,))
    assert await cache.get(key, int) == 1
    assert await cache.keys() == [key]
    await cache.invalidate(key)
    assert await cache.get(key, int) is None
