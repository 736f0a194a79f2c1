"""Groups of real servers: a cluster and a Sentinel group form, lose a member, heal, and leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from aegis.embedded import EmbeddedCluster, EmbeddedSentinel
from aegis.errors import ServerStartError


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


def test_a_cluster_forms_replaces_a_killed_primary_and_takes_it_back() -> None:
    """Every slot has a primary and a replica; the replica takes over; the killed node comes back as a replica."""
    with EmbeddedCluster(node_timeout_ms=1500) as cluster:
        pids = [node.pid for node in cluster.nodes]
        directories = [Path(node.socket).parent for node in cluster.nodes]
        owners = {cluster.primary_of(slot).port for slot in range(0, 16_384, 819)}
        assert owners == {node.port for node in cluster.nodes[:3]}
        primary, (replica,) = cluster.primary_of(0), cluster.replicas_of(0)
        primary.kill()
        assert not primary.running
        eventually(lambda: cluster.primary_of(0) is replica)
        primary.start()
        cluster.wait_until_whole()
        assert cluster.replicas_of(0) == [primary]
        cluster.move_slot(0, cluster.primary_of(16_383))
        assert cluster.primary_of(0) is cluster.primary_of(16_383)
        pids += [node.pid for node in cluster.nodes]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not any(directory.exists() for directory in directories)


def test_a_cluster_moves_a_slot_with_its_keys_and_with_a_password() -> None:
    """Options reach every node; a slot moves with all its keys."""
    with EmbeddedCluster(2, 0, options={"requirepass": "s3cret", "primaryauth": "s3cret"}) as cluster:
        source, target = cluster.nodes
        with cluster.asking(source) as ask:
            for number in range(250):
                ask("SET", f"{{bar}}{number}", number)
        cluster.move_slot(5061, target)  # the slot of {bar}
        assert cluster.primary_of(5061) is target
        with cluster.asking(target) as ask:
            assert ask("CLUSTER", "COUNTKEYSINSLOT", 5061) == 250


def test_a_sentinel_group_forms_with_its_primary_where_it_was_put(valkey_sentinel: EmbeddedSentinel) -> None:
    """The URL names the Sentinels; they see every replica in step. That one takes over: tests/redis/test_failover_*."""
    assert valkey_sentinel.primary is valkey_sentinel.servers[0]
    assert valkey_sentinel.url.startswith("redis+sentinel://127.0.0.1:")
    assert valkey_sentinel.url.endswith("/aegis")
    valkey_sentinel.wait_until_whole()


def test_what_cannot_be_is_refused_before_anything_starts() -> None:
    """No primaries, no replicas to promote, and an option that no server knows."""
    with pytest.raises(ValueError, match="0 primaries"):
        EmbeddedCluster(0)
    with pytest.raises(ValueError, match="cannot replace anybody"):
        EmbeddedSentinel(replicas=0)
    with (
        pytest.raises(ServerStartError, match="no-such-option"),
        EmbeddedCluster(1, 0, options={"no-such-option": "1"}),
    ):
        pytest.fail("it started")
