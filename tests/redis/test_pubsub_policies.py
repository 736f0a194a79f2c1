"""What waits for one consumer, by policy: against an oracle, without I/O and without a clock of its own."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.config import RedisConfig
from aegis.errors import PayloadError
from aegis.redis import Gap, PubSub, Redis, Update
from aegis.redis.broadcast.conflating import Latest, Merge
from aegis.redis.broadcast.outbox import PARCEL_BYTES_MAX, PARCEL_TICKS_MAX, ConflatingOutbox, Outbox
from aegis.redis.broadcast.partition import Partition, State, Verdict
from aegis.redis.broadcast.rings import All, TradeSafe
from aegis.redis.broadcast.subscription import Subscription, Wanted, make_buffer
from aegis.redis.broadcast.wire import Frame, Header

KEYS = "abc"
#: A tick: its key, and whether it is a trade. Steps: frames of ticks, and takes in between.
ticks = st.tuples(st.sampled_from(KEYS), st.booleans())
steps = st.lists(st.one_of(st.lists(ticks, min_size=1, max_size=5), st.integers(1, 6)), max_size=40)


class Feed:
    """Makes frames whose values are numbers: 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.seq = 0

    def frame(self, some: list[tuple[str, bool]], *, folded: list[int] | None = None) -> Frame:
        first = self.seq + 1
        self.seq += len(some)
        keys = [key for key, _ in some]
        kinds = "".join("t" if trade else "q" for _, trade in some)
        payloads = [str(first + at).encode() for at in range(len(some))]
        return Frame(0, "life", "p.1", first, first, 1_000_000, keys, payloads, kinds, folded or [])


def drain(buffer) -> list[Update | Gap]:
    taken = []
    while (event := buffer.take()) is not None:
        taken.append(event)
    return taken


def offer(buffer, frame: Frame) -> None:
    buffer.offer(frame)


@settings(deadline=None)  # the machine may be busy
@given(steps)
def test_latest_is_the_newest_of_each_key_and_counts_what_it_folded(steps):
    """Whatever is offered and taken in between: newest per key, nothing folded uncounted, first come first served."""
    feed, buffer, oracle = Feed(), Latest(int), {}
    for step in steps:
        if isinstance(step, int):
            for _ in range(step):
                expected = None
                if oracle:
                    key = next(iter(oracle))
                    expected = (key, *oracle.pop(key))
                update = buffer.take()
                assert (update and (update.key, update.value, update.conflated)) == expected
        else:
            frame = feed.frame(step)
            for at, (key, _) in enumerate(step):
                folded = oracle[key][1] + 1 if key in oracle else 0
                if key in oracle:
                    oracle[key] = (frame.seq + at, folded)
                else:
                    oracle[key] = (frame.seq + at, 0)
            offer(buffer, frame)
    rest = [(update.key, update.value, update.conflated) for update in drain(buffer)]
    assert rest == [(key, *value) for key, value in oracle.items()]
    assert len(buffer) == 0


@settings(deadline=None)  # the machine may be busy
@given(steps, st.integers(1, 8))
def test_all_gives_everything_or_reports_exactly_what_it_dropped(steps, ring):
    """Ticks come in order; every number that does not come lies in a gap that came before anything newer."""
    feed, buffer, events = Feed(), All(int, ring), []
    for step in steps:
        if isinstance(step, int):
            events += [event for _ in range(step) if (event := buffer.take()) is not None]
        else:
            offer(buffer, feed.frame(step))
            assert len(buffer) <= ring + 1  # and one report
    events += drain(buffer)
    expected = 1
    for event in events:
        if isinstance(event, Gap):
            assert (event.from_seq, event.stream) == (expected, "0/p.1")
            assert event.lost == event.to_seq - event.from_seq + 1
            expected = event.to_seq + 1
        else:
            assert event.value == expected
            expected += 1
    assert expected == feed.seq + 1
    assert buffer.evicted == sum(event.lost for event in events if isinstance(event, Gap))


@settings(deadline=None)  # the machine may be busy
@given(steps)
def test_trade_safe_keeps_every_trade_and_the_quote_before_it(steps):
    """Per key the order is the publisher's; all trades come; of quotes between trades the newest."""
    feed, buffer, events, offered = Feed(), TradeSafe(int), [], []
    for step in steps:
        if isinstance(step, int):
            events += [event for _ in range(step) if (event := buffer.take()) is not None]
        else:
            frame = feed.frame(step)
            offered += [(key, frame.seq + at, trade) for at, (key, trade) in enumerate(step)]
            offer(buffer, frame)
    events += drain(buffer)
    taken = [(event.key, event.value) for event in events]
    for key in KEYS:
        mine = [(value, trade) for k, value, trade in offered if k == key]
        got = [value for k, value in taken if k == key]
        assert got == sorted(got)
        assert {value for value, trade in mine if trade} <= set(got)
        for (value, _), (after, is_trade) in itertools.pairwise(mine):
            if is_trade:
                assert value in got, f"what stood before trade {after} is missing"
        if mine:
            assert mine[-1][0] in got
    assert sum(event.conflated for event in events) + len(events) == feed.seq


def test_trade_safe_ring_is_bounded_and_reports():
    """A consumer that never reads: the oldest trades go, and are reported before what is newer."""
    feed, buffer = Feed(), TradeSafe(int, 10)
    for _ in range(100):
        offer(buffer, feed.frame([("a", True), ("a", False)]))
    assert len(buffer) <= 12
    gap, *updates = drain(buffer)
    assert isinstance(gap, Gap)
    assert gap.lost == buffer.evicted
    assert len(updates) == 11
    assert updates[-1].value == 200


@pytest.mark.parametrize("make", [All, TradeSafe])
def test_overflow_may_end_the_subscription(make):
    """What the ring holds can still be taken; nothing more comes."""
    feed, buffer = Feed(), make(int, 5, end_on_overflow=True)
    for _ in range(7):
        offer(buffer, feed.frame([("a", True)]))
    assert [update.value for update in drain(buffer)] == [1, 2, 3, 4, 5]
    assert buffer.overflowed


def test_merge_keeps_fields_that_a_tick_lacks():
    """The record grows; a field of null is null; numbers keep every digit; what is no object replaces the record."""
    buffer, number = Merge(dict | int), 0

    def tick(payload: bytes) -> None:
        nonlocal number
        number += 1
        offer(buffer, Frame(0, "life", "p.1", number, number, 0, ["a"], [payload]))

    tick(b'{"bid":1,"id":12345678901234567890}')
    tick(b'{"ask":2}')
    [update] = drain(buffer)
    assert (update.value, update.conflated) == ({"bid": 1, "id": 12345678901234567890, "ask": 2}, 1)
    tick(b'{"bid":null}')
    assert drain(buffer)[0].value == {"bid": None, "id": 12345678901234567890, "ask": 2}
    tick(b"7")
    tick(b'{"bid":3}')
    assert drain(buffer)[0].value == {"bid": 3}
    tick(b"8")
    assert drain(buffer)[0].value == 8


def test_max_rate_has_a_leading_and_a_trailing_edge_and_is_fair():
    """At most one update per key and second: the first at once, the newest when the second is over."""
    now = 0.0
    feed, buffer = Feed(), Latest(int, 1.0, clock=lambda: now)
    now = 100.0
    offer(buffer, feed.frame([("a", False)]))
    assert [update.value for update in drain(buffer)] == [1]
    for _ in range(30):
        offer(buffer, feed.frame([("a", False)]))
    offer(buffer, feed.frame([("b", False)]))
    assert [(update.key, update.value) for update in drain(buffer)] == [("b", 32)]  # the busy key waits, the quiet not
    assert buffer.due_in_s() == 1.0
    now = 100.5
    assert drain(buffer) == []
    now = 101.0
    [update] = drain(buffer)
    assert (update.key, update.value, update.conflated) == ("a", 31, 29)
    assert buffer.due_in_s() is None
    now = 103.0
    offer(buffer, feed.frame([("a", False)]))
    assert [update.value for update in drain(buffer)] == [33]


def test_counts_of_the_producer_are_added():
    """What the outbox folded counts as conflated here."""
    feed, buffer = Feed(), Latest(int)
    offer(buffer, feed.frame([("a", False), ("b", False)], folded=[3, 0]))
    offer(buffer, feed.frame([("a", False)], folded=[2]))
    assert {update.key: update.conflated for update in drain(buffer)} == {"a": 6, "b": 0}


@pytest.mark.parametrize("policy", [Latest, Merge, TradeSafe, All])
def test_value_that_does_not_fit_is_an_error_in_its_place(policy):
    """The error names the key; what stands before and after it is delivered."""
    buffer = policy(int)
    frame = Frame(0, "life", "p.1", 1, 1, 0, ["a", "b", "c"], [b"1", b'"x"', b"3"])
    offer(buffer, frame)
    assert buffer.take().value == 1
    with pytest.raises(PayloadError, match="broadcast key 'b': does not fit the subscription's type"):
        buffer.take()
    assert buffer.take().value == 3
    assert buffer.take() is None
    assert len(buffer) == 0


@pytest.mark.parametrize("policy", [Latest, Merge, TradeSafe, All])
def test_reports_are_bounded_and_come_first(policy):
    """Ten thousand losses of one stream that nobody reads are one report, or as many as a ring holds."""
    buffer = policy(int) if policy in {Latest, Merge} else policy(int, 10)
    for number in range(10_000):
        buffer.report(Gap("0/p.1", number, number, 1, "lost"))
    assert len(buffer) <= 11
    offer(buffer, Feed().frame([("a", False)]))
    events = drain(buffer)
    assert sum(event.lost for event in events[:-1]) == 10_000
    assert events[-1].value == 1


@pytest.mark.parametrize("policy", [Latest, Merge])
def test_memory_is_one_entry_per_key(policy):
    """A hundred thousand ticks of three keys, never read."""
    feed, buffer = Feed(), policy(int)
    for _ in range(1000):
        offer(buffer, feed.frame([(key, False) for key in KEYS] * 33))
    assert len(buffer) == 3
    assert buffer.conflated == 1000 * 99 - 3


# --- the publisher's side ---


@settings(deadline=None)  # the machine may be busy
@given(st.lists(ticks, max_size=200), st.integers(1, 50))
def test_conflating_outbox_keeps_all_trades_and_the_newest_quotes(some, every):
    """Taken now and then: trades in order, the quote before a trade before it, counts complete."""
    folds, now, sent = 0, 0.0, []

    def count() -> None:
        nonlocal folds
        folds += 1

    outbox = ConflatingOutbox(count, clock=lambda: now)

    def leave() -> None:
        outbox.close_parcel()
        while (parcel := outbox.take()) is not None:
            kinds = parcel.kinds or "q" * len(parcel)
            sent.extend(zip(parcel.keys, map(int, parcel.payloads), kinds, parcel.folded, strict=True))

    for number, (key, trade) in enumerate(some):
        now += 0.01
        outbox.add(key, str(number).encode(), trade)
        if number % every == 0:
            leave()
    leave()
    assert len(sent) + folds == len(some)
    assert sum(folded for *_, folded in sent) == folds
    assert [number for _, number, kind, _ in sent if kind == "t"] == [n for n, (_, trade) in enumerate(some) if trade]
    for key in KEYS:
        got = [number for k, number, *_ in sent if k == key]
        mine = [number for number, (k, _) in enumerate(some) if k == key]
        assert got == sorted(got)
        assert got[-1:] == mine[-1:]
        for before, number in itertools.pairwise(mine):
            assert not some[number][1] or before in got


@pytest.mark.parametrize("policy", ["latest", "merge", "trade_safe", "all"])
def test_what_waits_holds_on_to_no_frame(policy):
    """A consumer of one key in a thousand does not keep the thousand: memory is O(keys), whatever a frame holds."""
    buffer = make_buffer(policy, Any, max_rate=None, ring=10, overflow="gap")
    updates = Subscription(Wanted(["b"]), buffer, PubSub(Redis(RedisConfig(enabled=False)))._receiver)
    frame = Frame(0, "life", "p.1", 1, 1, 0, ["a", "b", "a"], [b"1", b'{"b": 2}', b"3"], "tqt", [0, 5, 0])
    before = sys.getrefcount(frame)
    updates.offer(frame, updates.places(frame))
    assert (sys.getrefcount(frame), len(buffer)) == (before, 1)
    update = buffer.take()
    assert (update.key, update.value, update.version, update.conflated) == ("b", {"b": 2}, 2, 5)


def test_outbox_keeps_everything_in_parcels():
    """Order, sizes, and a parcel that is full leaves by itself."""
    outbox = Outbox()
    full = [outbox.add("a", b"%d" % number, False) for number in range(2 * PARCEL_TICKS_MAX + 1)]
    assert sum(full) == 2
    assert len(outbox) == 2 * PARCEL_TICKS_MAX + 1
    outbox.close_parcel()
    seen = []
    while (parcel := outbox.take()) is not None:
        seen += [int(payload) for payload in parcel.payloads]
    assert seen == list(range(2 * PARCEL_TICKS_MAX + 1))
    assert outbox.add("a", b"x" * PARCEL_BYTES_MAX, True) is True
    assert outbox.take().kinds == "t"


# --- what has arrived and what is missing ---


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.booleans()), min_size=1, max_size=30),
    st.integers(0, 30),
)
def test_reconcile_passes_on_everything_once_and_reports_exactly_the_holes(published, read_at):
    """
    Frames of three streams, some lost on the way, a repair at any time: each tick arrives, is read, or lies in a gap.

    The stored value of a key is that of its newest frame; the server has everything that was published.
    """
    partition = Partition(0)
    partition.state = State.LIVE
    partition.life = "life"
    version, seqs, stored = 0, dict.fromkeys("xyz", 0), {}
    passed: list[Frame] = []
    gaps: list[Gap] = []
    total: dict[str, int] = dict.fromkeys("xyz", 0)

    def repair() -> None:
        new_gaps, frames = partition.reconcile(Header("life", version, dict(seqs)), list(stored.values()))
        gaps.extend(new_gaps)
        passed.extend(frames)

    for number, (which, count, lost) in enumerate(published):
        stream = "xyz"[which]
        keys = [f"{stream}{at}" for at in range(count)]
        frame = Frame(0, "life", stream, seqs[stream] + 1, version + 1, 0, keys, [b"0"] * count)
        seqs[stream] += count
        version += count
        total[stream] += count
        for key in keys:
            stored[key] = Frame(0, "life", stream, seqs[stream], version, 0, (key,), (b"0",), snapshot=True)
        if number == read_at:
            partition.state = State.READING
        if not lost:
            verdict = partition.judge(frame)
            if verdict is Verdict.NEXT:
                passed.append(frame)
            elif verdict is Verdict.LOSS:
                partition.state = State.READING
        if number == read_at + 3 and partition.state is State.READING:
            repair()
    partition.state = State.READING
    repair()
    assert partition.differs(Header("life", version, dict(seqs))) == ""
    for stream in "xyz":
        numbers: list[int] = []
        for frame in passed:
            if frame.stream == stream and not frame.snapshot:
                numbers += range(frame.seq, frame.last_seq + 1)
        lost_numbers = [n for gap in gaps if gap.stream == f"0/{stream}" for n in range(gap.from_seq, gap.to_seq + 1)]
        assert sorted(numbers + lost_numbers) == list(range(1, total[stream] + 1))
    newest: dict[str, int] = {}
    for frame in passed:
        for at, key in enumerate(frame.keys):
            newest[key] = max(newest.get(key, 0), frame.version + at)
    for key, frame in stored.items():  # the newest value of every key has arrived, one way or the other
        assert newest[key] >= frame.version - 2


def test_options_that_do_not_fit_are_refused(redis):
    """Each error names the option, its value and what there is."""
    bus = PubSub(redis)
    for options, message in (
        ({"policy": "newest"}, "policy='newest' is none of latest, merge, trade_safe, all"),
        ({"overflow": "drop"}, "overflow='drop' is none of gap, end"),
        ({"ring": 0}, "ring=0 must be at least 1"),
        ({"policy": "all", "max_rate": 3}, "max_rate=3 would drop ticks, which policy='all' must not"),
        ({"max_rate": 0}, "max_rate=0 must be above 0"),
    ):
        with pytest.raises(ValueError, match=message.replace("(", r"\(")):
            bus.subscribe("a", **options)
    with pytest.raises(ValueError, match="wants every tick, but this topic is published with conflate=True"):
        PubSub(redis, conflate=True).subscribe("a", policy="all")
    with pytest.raises(ValueError, match="must not be empty"):
        bus.subscribe("")
    with pytest.raises(TypeError, match="must be text: 5930"):
        bus.subscribe(5930)
    with pytest.raises(ValueError, match="white space"):
        PubSub(redis, producer="my feed")


def test_update_and_gap_are_frozen():
    """Shared between consumers, so nobody may change them."""
    with pytest.raises(AttributeError):
        Update("a", 1, 1).value = 2
    assert msgspec.json.decode(msgspec.json.encode(Gap("0/p.1", 1, 2, 2, "lost")), type=Gap).lost == 2
