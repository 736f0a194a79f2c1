"""The client on a real cluster: routing, redirections, slots on the move. What kills nodes is in test_failover.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio
from tls_front import Tls, tls_front

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedCluster, EmbeddedValkey
from aegis.errors import ClosedError, CommandNotAllowedError, RedisUnavailableError, ServerReplyError
from aegis.redis import Redis
from aegis.redis._script import load_script
from aegis.redis.connection.feeds import make_feed
from aegis.redis.connection.slots import slot_of_key


async def test_a_thousand_keys_are_spread_and_each_is_found(cluster: Redis) -> None:
    """Single commands and pipelines, in order; each of the three primaries has about a third."""
    keys = [f"k{i}" for i in range(1000)]
    assert await asyncio.gather(*(cluster.execute("SET", key, key) for key in keys)) == [b"OK"] * 1000
    expected = [key.encode() for key in keys]
    assert await asyncio.gather(*(cluster.execute("GET", key) for key in keys)) == expected
    assert await cluster.pipeline([("GET", key) for key in keys]) == expected
    assert await cluster.execute("DBSIZE") == 1000
    assert sorted(await cluster.execute("KEYS", "k*")) == sorted(expected)
    sizes = [await node.ask(("DBSIZE",), 5.0) for node in cluster.servers.nodes]
    assert all(250 < size < 420 for size in sizes)
    stats = cluster.stats()
    assert (stats.state, stats.connections, stats.reconnects, stats.errors) == ("connected", 3, 0, {})


async def test_a_pipeline_raises_the_first_refusal_and_keeps_every_place(cluster: Redis) -> None:
    """Refusals of different nodes stand where their commands stand."""
    await cluster.pipeline([("SET", "a", "x"), ("SET", "b", "x"), ("SET", "c", 1)])
    commands = [("INCR", "c"), ("LPUSH", "a", 1), ("GET", "b"), ("LPUSH", "b", 1), ("ECHO", "e")]
    with pytest.raises(ServerReplyError, match="LPUSH"):
        await cluster.pipeline(commands)
    replies = await cluster.pipeline(commands, return_errors=True)
    assert [getattr(reply, "code", reply) for reply in replies] == [3, "WRONGTYPE", b"x", "WRONGTYPE", b"e"]


async def test_a_transaction_is_of_one_slot(cluster: Redis) -> None:
    """All or nothing where the keys share a tag; several slots are refused before anything is sent."""
    assert await cluster.transaction([("SET", "{t}a", 1), ("INCR", "{t}b")]) == [b"OK", 1]
    with pytest.raises(ValueError, match="one slot"):
        await cluster.transaction([("SET", "a", 1), ("SET", "b", 1)])
    with pytest.raises(ServerReplyError, match="unknown command"):
        await cluster.transaction([("SET", "{t}a", 2), ("NOSUCHCOMMAND", "{t}a")])
    assert await cluster.execute("GET", "{t}a") == b"1"


async def test_scripts_are_loaded_on_each_node_that_lacks_them(cluster: Redis) -> None:
    """NOSCRIPT is a matter of one node; SCRIPT FLUSH reaches all of them."""
    script = load_script("cache_delete_if")
    for _ in range(2):
        await cluster.execute("SCRIPT", "FLUSH")
        for key in ("a", "b", "c", "d"):
            await cluster.run(script, [key], ["x"])


async def test_what_needs_one_node_or_all_of_them_says_so(cluster: Redis) -> None:
    """SCAN walks one node; keys of two slots in one command are the server's refusal."""
    with pytest.raises(ValueError, match="scan_iter"):
        await cluster.execute("SCAN", 0)
    with pytest.raises(ServerReplyError, match="CROSSSLOT"):
        await cluster.execute("MGET", "a", "b")
    with pytest.raises(CommandNotAllowedError):
        await cluster.execute("ASKING")
    assert isinstance(cluster.raw, redis.asyncio.RedisCluster)
    await cluster.raw.set("k", "v")
    assert await cluster.execute("GET", "k") == b"v"


@contextlib.asynccontextmanager
async def load(client: Redis, keys: list[str]) -> AsyncIterator[dict[str, int]]:
    """Tasks that count without a pause; gives how often each key was counted. Every error is the test's."""
    counted = dict.fromkeys(keys, 0)
    over = False

    async def count(key: str) -> None:
        while not over:
            counted[key] = await client.execute("INCR", key)

    tasks = [asyncio.create_task(count(key)) for key in keys]
    try:
        yield counted
    finally:
        over = True
        await asyncio.gather(*tasks)


async def test_a_slot_that_moves_under_load_loses_and_doubles_nothing(
    cluster: Redis, valkey_cluster: EmbeddedCluster
) -> None:
    """ASK while it migrates, MOVED afterwards; no caller notices, every INCR counted once, also in transactions."""
    tag = "{moving}"
    slot, keys = slot_of_key(tag), [f"{tag}{i}" for i in range(20)]
    await cluster.pipeline([("SET", f"{tag}filler{i}", "x" * 100) for i in range(2000)])
    source = valkey_cluster.primary_of(slot)
    others = [node for node in valkey_cluster.nodes[:3] if node is not source]
    async with load(cluster, keys) as counted:
        for target in (others[0], source):
            await asyncio.to_thread(valkey_cluster.move_slot, slot, target, batch=50)
            pair = await cluster.transaction([("INCR", f"{tag}t1"), ("INCR", f"{tag}t1")])
            assert pair[1] == pair[0] + 1
    values = await cluster.pipeline([("GET", key) for key in keys])
    assert [int(value) for value in values] == [counted[key] for key in keys]
    assert all(count > 10 for count in counted.values())
    assert cluster.stats().errors == {}


async def test_several_keys_of_a_slot_that_is_split_between_two_nodes_wait_for_its_end(
    cluster: Redis, valkey_cluster: EmbeddedCluster
) -> None:
    """TRYAGAIN: the command is executed when the slot is whole again, within its time; else it is said."""
    slot = slot_of_key("{split}")
    source = valkey_cluster.primary_of(slot)
    target = next(node for node in valkey_cluster.nodes[:3] if node is not source)
    await cluster.pipeline([("SET", "{split}1", 1), ("SET", "{split}2", 2)])
    with valkey_cluster.asking(source) as giver, valkey_cluster.asking(target) as taker:
        ids = giver("CLUSTER", "MYID"), taker("CLUSTER", "MYID")
        taker("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        giver("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        giver("MIGRATE", "127.0.0.1", target.port, "{split}1", 0, 5000)
        with pytest.raises(ServerReplyError, match="TRYAGAIN"):
            await cluster.execute("MGET", "{split}1", "{split}2", timeout=0.3)
        assert await cluster.execute("GET", "{split}1") == b"1"
        waiting = asyncio.create_task(cluster.execute("MGET", "{split}1", "{split}2"))
        giver("MIGRATE", "127.0.0.1", target.port, "{split}2", 0, 5000)
        taker("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        giver("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        assert await waiting == [b"1", b"2"]
    await asyncio.to_thread(valkey_cluster.move_slot, slot, source)


async def test_a_pipeline_follows_a_slot_in_pieces_and_in_order(valkey_cluster: EmbeddedCluster) -> None:
    """
    A client with an old map: 300 commands that are sent elsewhere cost a few reads of the servers, not one each.

    Half of the keys have moved (ASK), then all (MOVED); the next command goes to the right node at once.
    """
    tag = "{learned}"
    slot, keys = slot_of_key(tag), [f"{tag}{i}" for i in range(300)]
    source = valkey_cluster.primary_of(slot)
    target = next(node for node in valkey_cluster.nodes[:3] if node is not source)
    commands = [command for key in keys for command in (("INCR", key), ("GET", key))]

    def reads() -> int:
        total = 0
        for node in (source, target):
            with valkey_cluster.asking(node) as ask:
                total += int(ask("INFO", "stats").partition(b"total_reads_processed:")[2].split()[0])
        return total

    async with Redis(RedisConfig(url=valkey_cluster.url)) as client:
        await client.pipeline([("SET", key, 0) for key in keys])
        with valkey_cluster.asking(source) as giver, valkey_cluster.asking(target) as taker:
            ids = giver("CLUSTER", "MYID"), taker("CLUSTER", "MYID")
            taker("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            giver("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            giver("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys[::2])
            before = reads()
            assert await client.pipeline(commands) == [reply for _ in keys for reply in (1, b"1")]
            giver("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys[1::2])
            taker("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            giver("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            assert await client.pipeline(commands) == [reply for _ in keys for reply in (2, b"2")]
        assert reads() - before < 60
        assert client.servers.owner(slot).config.port == target.port
        assert client.stats().connections == 3
    await asyncio.to_thread(valkey_cluster.move_slot, slot, source)


async def test_a_channel_that_is_left_and_joined_at_once_is_heard(cluster: Redis) -> None:
    """The answer to the leaving comes after the joining; it is not taken for a slot that has moved away."""
    heard: list[bytes] = []
    feed = make_feed(cluster, lambda _, said: heard.append(said), lambda: None, lambda _: None, sharded=True)
    feed.start()
    try:
        async with asyncio.timeout(20):
            await feed.subscribe(b"{c}hannel")
            doubts = cluster.servers._doubts
            for _ in range(3):
                feed.unsubscribe(b"{c}hannel")
                feed.add(b"{c}hannel")
            await feed.barrier(b"{c}hannel")
            assert await cluster.execute("SPUBLISH", "{c}hannel", "said") == 1
            while not heard:
                await asyncio.sleep(0.001)
            assert cluster.servers._doubts == doubts
    finally:
        await feed.close()


async def test_opening_names_what_cannot_be_reached(valkey_cluster: EmbeddedCluster) -> None:
    """No seed answers, or the seed is no node of a cluster; one seed that answers is enough."""
    with pytest.raises(RedisUnavailableError, match=r"cluster 127\.0\.0\.1:1.*connection refused"):
        await Redis(RedisConfig(url="redis+cluster://127.0.0.1:1")).__aenter__()
    seeds = f"redis+cluster://127.0.0.1:1,127.0.0.1:{valkey_cluster.nodes[0].port}"
    async with Redis(RedisConfig(url=seeds)) as client:
        assert await client.ping() > 0
        with pytest.raises(RuntimeError, match="open already"):
            await client.__aenter__()
    assert client.stats().state == "closed"
    with pytest.raises(ClosedError):
        await client.execute("GET", "k")


async def test_a_single_server_is_not_taken_for_a_cluster(valkey_server: object) -> None:
    """The answer of the server is in the error."""
    with pytest.raises(RedisUnavailableError, match="cluster support disabled"):
        await Redis(RedisConfig(url=f"redis+cluster://127.0.0.1:{valkey_server.port}")).__aenter__()


async def test_tls_verifies_the_names_that_nodes_announce(valkey_cluster: EmbeddedCluster, tmp_path: Path) -> None:
    """A proxy speaks TLS before each node; also a redirection to an address leads to the name in the certificate."""
    tls = Tls(tmp_path)
    slot, context = slot_of_key("{tls}"), tls.server_context("localhost")
    primaries = valkey_cluster.nodes[:3]
    async with contextlib.AsyncExitStack() as fronts:
        ports = [await fronts.enter_async_context(tls_front(node, context)) for node in primaries]
        for node, port in zip(primaries, ports, strict=True):
            _announce(valkey_cluster, node, port, "localhost")
        try:
            await _gossiped(valkey_cluster, {f":{port}@".encode() for port in ports} | {b",localhost"})
            url = f"rediss+cluster://localhost:{ports[0]}"
            async with Redis(RedisConfig(url=url, tls_ca_file=tls.ca_file)) as client:
                await client.pipeline([("SET", f"k{i}", i) for i in range(100)])
                source = client.servers.owner(slot).config.port
                target = next(node for node, port in zip(primaries, ports, strict=True) if port != source)
                giver = primaries[ports.index(source)]
                await asyncio.to_thread(_hand_over, valkey_cluster, slot, giver, target)
                assert await client.execute("SET", "{tls}", 1) == b"OK"
                assert client.servers.owner(slot).config.address == f"localhost:{ports[primaries.index(target)]}"
                assert client.stats().connections == 3
                await asyncio.to_thread(_hand_over, valkey_cluster, slot, target, giver)
            with pytest.raises(RedisUnavailableError, match="TLS certificate not accepted"):
                await Redis(RedisConfig(url=url)).__aenter__()
        finally:
            for node in primaries:
                _announce(valkey_cluster, node, 0, "")
            await _gossiped(valkey_cluster, {f":{node.port}@".encode() for node in primaries})


def _announce(cluster: EmbeddedCluster, node: EmbeddedValkey, port: int, name: str) -> None:
    with cluster.asking(node) as ask:
        ask("CONFIG", "SET", "cluster-announce-port", port, "cluster-announce-hostname", name)


async def _gossiped(cluster: EmbeddedCluster, words: set[bytes]) -> None:
    """Every node knows what the others announce."""

    def known() -> bool:
        for node in cluster.nodes:
            with cluster.asking(node) as ask:
                view = ask("CLUSTER", "NODES")
            if not all(word in view for word in words):
                return False
        return True

    async with asyncio.timeout(30):
        while not await asyncio.to_thread(known):
            await asyncio.sleep(0.1)


def _hand_over(cluster: EmbeddedCluster, slot: int, giver: EmbeddedValkey, taker: EmbeddedValkey) -> None:
    """Give an empty slot to another node."""
    with cluster.asking(taker) as ask, cluster.asking(giver) as other:
        other("DEL", "{tls}")
        taker_id = ask("CLUSTER", "MYID")
        ask("CLUSTER", "SETSLOT", slot, "IMPORTING", other("CLUSTER", "MYID"))
        other("CLUSTER", "SETSLOT", slot, "MIGRATING", taker_id)
        for each in (ask, other):
            each("CLUSTER", "SETSLOT", slot, "NODE", taker_id)


async def test_an_acl_user_logs_in_at_every_node(
    valkey_cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """User and password of the URL; a wrong one is refused, and neither is ever shown."""
    rights = "~* &* +@read +@write +@scripting +@pubsub +@connection +info +time +client +cluster"  # docs/scaling.md
    for node in valkey_cluster.nodes:
        with valkey_cluster.asking(node) as ask:
            ask("ACL", "SETUSER", "collector", "on", ">c0llect", *rights.split())
    url = valkey_cluster.url.replace("//", "//collector:c0llect@")
    try:
        with caplog.at_level(logging.DEBUG, "aegis.redis"):
            async with Redis(RedisConfig(url=url, client_name="prices")) as client:
                await asyncio.gather(*(client.execute("SET", f"k{i}", i) for i in range(100)))
                assert all(
                    b"user=collector" in info and b"name=prices" in info
                    for info in [await node.ask(("CLIENT", "INFO"), 5.0) for node in client.servers.nodes]
                )
                assert await client.raw.get("k1") == b"1"
            with pytest.raises(RedisUnavailableError, match="WRONGPASS"):
                await Redis(RedisConfig(url=url.replace("c0llect@", "wr0ng@"))).__aenter__()
    finally:
        for node in valkey_cluster.nodes:
            with valkey_cluster.asking(node) as ask:
                ask("ACL", "DELUSER", "collector")
    assert "c0llect" not in caplog.text
    assert "wr0ng" not in caplog.text
