"""Slots and maps of a cluster: against a real server where it knows the answer, and by hand where it would lie."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.redis import Redis
from aegis.redis.connection.slots import is_everywhere, one_slot, slot_of, slot_of_key
from aegis.redis.connection.topology import Place, Topology, parse_view

KEYS = st.one_of(st.binary(max_size=40), st.text(max_size=20), st.text("{}ab", max_size=8), st.integers())


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.lists(KEYS, min_size=30, max_size=60))
async def test_a_key_has_the_slot_that_the_server_says(one_node: Redis, keys: list[bytes | str | int]) -> None:
    """With and without hash tags, empty and unclosed ones included."""
    answers = await one_node.pipeline([("CLUSTER", "KEYSLOT", key) for key in keys])
    assert answers == [slot_of_key(key) for key in keys]


@pytest.mark.parametrize(
    "command",
    [
        "GET k", "set k v", "MGET k j", "EVALSHA 0 1 k v", "EVAL x 1 k", "FCALL f 1 k", "BITOP AND k j", "ZUNION 1 k",
        "LMPOP 1 k LEFT", "OBJECT ENCODING k", "MEMORY USAGE k", "XINFO STREAM k", "XGROUP CREATE k g 0",
        "XREAD COUNT 1 STREAMS k 0", "xreadgroup GROUP streams2 c STREAMS k >", "SPUBLISH k m", "XADD k * f v",
        "ZDIFFSTORE k 1 j", "GEORADIUS k 1 1 1 m", "SORT k", "SINTERCARD 1 k", "RESTORE k 0 x",
    ],
)  # fmt: skip
def test_the_first_key_of_a_command_is_found(command: str) -> None:
    """As text and as bytes."""
    words = command.split()
    assert slot_of(words) == slot_of_key("k")
    assert slot_of([word.encode() for word in words]) == slot_of_key("k")


@pytest.mark.parametrize("command", ["PING", "EVAL x 0", "EVALSHA x 0 arg", "PUBLISH c m", "SCRIPT EXISTS x", "TIME"])
def test_a_command_without_a_key_has_no_slot(command: str) -> None:
    """Any node will do."""
    assert slot_of(command.split()) is None


def test_what_concerns_every_node_goes_to_every_node() -> None:
    """Flushing, counting, settings; but not their harmless relatives."""
    assert all(is_everywhere(c.split()) for c in ("FLUSHALL", "dbsize", "KEYS *", "SCRIPT FLUSH", "config set a b"))
    assert not any(is_everywhere(c.split()) for c in ("CONFIG GET a", "SCRIPT EXISTS a", "GET k", "CONFIG"))


def test_a_transaction_of_several_slots_is_refused() -> None:
    """The error counts them and gives the remedy."""
    assert one_slot([("SET", "{a}1", 1), ("PING",), ("INCR", "{a}2")]) == slot_of_key("a")
    assert one_slot([("PING",)]) is None
    with pytest.raises(ValueError, match=r"one slot, not of 2.*\{tag\}"):
        one_slot([("SET", "a", 1), ("SET", "b", 1)])


# --- views ---


def line(port: int, flags: str, epoch: int, slots: str = "", host: str = "10.0.0.1", names: str = "") -> str:
    return f"{port:040d} {host}:{port}@1{port}{names} {flags} - 0 0 {epoch} connected {slots}".rstrip()


def view(*lines: str, asked: str = "10.0.0.9", by_name: bool = False) -> object:
    return parse_view("\n".join(lines), Place(asked, 1), by_name=by_name)


def test_a_view_is_read_with_addresses_names_ranges_and_migrations() -> None:
    """Single slots, ranges, slots on the move; IPv6; nodes without address or still shaking hands are left out."""
    seen = parse_view(
        "\n".join(
            [
                line(1, "myself,master", 5, "0-100 102 [7->-x]", host="", names=",one.example"),
                line(2, "slave", 5),
                line(3, "master,fail", 4, "103-16383", host="::1"),
                line(4, "master,noaddr", 4, "101"),
                line(5, "handshake", 0),
            ]
        ),
        Place("asked.example", 1),
    )
    assert seen.places == {Place("asked.example", 1), Place("10.0.0.1", 2), Place("::1", 3)}
    assert [(claim.place.port, claim.epoch, claim.ranges) for claim in seen.claims] == [
        (1, 5, ((0, 100), (102, 102))),
        (3, 4, ((103, 16383),)),
    ]
    named = parse_view(line(1, "myself,master", 5, "0", names=",one.example"), Place("h", 1), by_name=True)
    assert named.claims[0].place == Place("one.example", 1)


def test_a_primary_that_was_paused_does_not_get_its_slots_back() -> None:
    """Its own claim has an older epoch, whoever is asked first, and also when it alone answers afterwards."""
    old = view(line(1, "myself,master", 1, "0-16383"), line(2, "slave", 1))
    new = view(line(1, "master,fail", 1), line(2, "myself,master", 9, "0-16383"))
    for order in ((old, new), (new, old)):
        topology = Topology()
        topology.learn(order)
        assert topology.complete
        assert topology.primaries == {Place("10.0.0.1", 2)}
        topology.learn([old])
        assert topology.primaries == {Place("10.0.0.1", 2)}


def test_a_slot_nobody_claims_keeps_the_map_incomplete() -> None:
    """And a claim to it completes the map."""
    topology = Topology()
    topology.learn([view(line(1, "myself,master", 1, "1-16383"))])
    assert not topology.complete
    topology.learn([view(line(2, "myself,master", 2, "0"))])
    assert topology.complete
    assert topology.owners[0] == Place("10.0.0.1", 2)
