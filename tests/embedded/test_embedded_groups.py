"""Groups of real servers: a cluster forms, is changed, and leaves nothing behind; what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from aegis.embedded import EmbeddedCluster, EmbeddedSentinel
from aegis.errors import ServerStartError


def test_a_cluster_forms_moves_a_slot_with_its_keys_and_is_gone() -> None:
    """Every slot has a primary and a replica; options reach every node. That replicas take over: tests/redis."""
    with EmbeddedCluster(2, 1, options={"requirepass": "s3cret", "primaryauth": "s3cret"}) as cluster:
        pids = [node.pid for node in cluster.nodes]
        directories = [Path(node.socket).parent for node in cluster.nodes]
        owners = {cluster.primary_of(slot).port for slot in range(0, 16_384, 819)}
        assert owners == {node.port for node in cluster.nodes[:2]}
        source, target, replica, _ = cluster.nodes
        assert cluster.replicas_of(0) == [replica]
        with cluster.asking(source) as ask:
            for number in range(250):
                ask("SET", f"{{bar}}{number}", number)
        cluster.move_slot(5061, target)  # the slot of {bar}
        assert cluster.primary_of(5061) is target
        with cluster.asking(target) as ask:
            assert ask("CLUSTER", "COUNTKEYSINSLOT", 5061) == 250
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not any(directory.exists() for directory in directories)


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
