"""The limiter on a real cluster: every key of one limit is in one slot, and its own server is the one that counts."""

from __future__ import annotations

import asyncio

from aegis.redis import Lane, Rate, RateLimit, RateLimiter, Redis
from aegis.redis.connection.slots import slot_of_key
from aegis.redis.limiting.gate import key_name


async def test_every_call_works_and_all_keys_share_a_slot(cluster: Redis) -> None:
    """Allow, wait, hold, peek, reset, cancel, over many limits and accounts; several limits use several nodes."""
    limiter, other = RateLimiter(cluster), RateLimiter(cluster)
    limits = [RateLimit(f"limit {number}", Rate(3, per=20), pad=0) for number in range(8)]
    for limit in limits:
        decisions = await asyncio.gather(*(limiter.allow(limit, key="account") for _ in range(2)))
        assert [decision.allowed for decision in decisions] == [True, True]
        assert await other.wait(limit, key="account") < 10
        assert not (await other.allow(limit, key="account")).allowed
        assert (await limiter.peek(limit, key="account")).used == 3
    slots: dict[bytes, set[int]] = {}
    for name in await cluster.execute("KEYS", "*"):
        slots.setdefault(name.rpartition(b":")[0], set()).add(slot_of_key(name))
    assert len(slots) == 8
    assert all(len(of_one) == 1 for of_one in slots.values())
    assert len(set.union(*slots.values())) > 1
    task = asyncio.create_task(limiter.wait(limits[0], key="account", lane=Lane.URGENT))
    while not limiter.stats().limits[limits[0].name].reserved:
        await asyncio.sleep(0.01)
    task.cancel()
    while not limiter.stats().limits[limits[0].name].returned:
        await asyncio.sleep(0.01)
    await limiter.hold(limits[1], 30, key="account")
    assert 20 < (await other.peek(limits[1], key="account")).held_for <= 30
    await limiter.reset(limits[1], key="account")
    assert (await other.allow(limits[1], key="account")).allowed


async def test_another_owner_of_the_slot_means_a_pause(cluster: Redis) -> None:
    """The state came over with the slot or by a failover, written under another server's name."""
    limit = RateLimit("moved", Rate(5, per=20), pad=0)
    elsewhere = RateLimiter(cluster)
    elsewhere._server_names[cluster.connection_for(key_name("aegis", limit, ""))] = "somebody else"
    assert (await elsewhere.allow(limit)).allowed
    assert (await elsewhere.allow(limit)).allowed
    assert (await RateLimiter(cluster).allow(limit)).retry_after > 35


async def test_the_bell_rings_on_the_node_that_keeps_the_limit(cluster: Redis) -> None:
    """A reset wakes whoever waits, over a sharded channel in the limit's slot; the other nodes hear nothing of it."""
    limit = RateLimit("rung", Rate(1, per=60))
    one, other = RateLimiter(cluster), RateLimiter(cluster)
    assert (await one.allow(limit)).allowed
    waiting = asyncio.create_task(one.wait(limit))
    bell = f"{key_name('aegis', limit, '')}:bell".encode()
    owner = cluster.servers.owner(slot_of_key(bell))
    async with asyncio.timeout(20):
        while bell not in await owner.ask(("PUBSUB", "SHARDCHANNELS"), 5.0):
            await asyncio.sleep(0.01)
        await other.reset(limit)
        await waiting
    for node in cluster.servers.nodes:
        assert bell not in await node.ask(("PUBSUB", "CHANNELS"), 5.0)
