"""A real Valkey Cluster on the loopback: `with EmbeddedCluster() as cluster: cluster.url`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aegis.embedded._group import Ask, EmbeddedGroup, asking, places, redis_error, until
from aegis.embedded.valkey import EmbeddedValkey, free_port

SLOTS = 16_384
_FORMED_WITHIN_S = 30.0


class EmbeddedCluster(EmbeddedGroup):
    """
    `primaries` nodes that share the 16,384 slots, each with `replicas` replicas.

    Forming takes a second or two. `node_timeout_ms` is the server's `cluster-node-timeout`: a primary that is silent
    for so long is replaced. The first `primaries` of `nodes` are the primaries of the beginning; `primary_of` and
    `replicas_of` ask the cluster. `start` returns when every slot is served and every replica in step.
    """

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 1,
        *,
        node_timeout_ms: int = 3000,
        options: Mapping[str, str] | None = None,
    ) -> None:
        if primaries < 1 or replicas < 0:
            raise ValueError(f"a cluster of {primaries} primaries with {replicas} replicas each cannot be")
        self.primaries, self.replicas = primaries, replicas
        self._options = {"cluster-node-timeout": str(node_timeout_ms), **(options or {})}
        self.nodes: list[EmbeddedValkey] = []
        self._by_id: dict[str, EmbeddedValkey] = {}

    @property
    def url(self) -> str:
        """What REDIS_URL must be to use this cluster; a password of the options is yours to add."""
        return f"redis+cluster://{places(self.nodes)}"

    # --- beginning and end ---

    def _members(self) -> Iterable[EmbeddedValkey]:
        return self.nodes

    def _start(self) -> None:
        self.nodes = [self._new_node() for _ in range(self.primaries * (1 + self.replicas))]
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            list(threads.map(EmbeddedValkey.start, self.nodes))
        self._form()

    def _new_node(self) -> EmbeddedValkey:
        options = {"cluster-enabled": "yes", "cluster-config-file": "nodes.conf", "cluster-port": str(free_port())}
        options["cluster-announce-ip"] = "127.0.0.1"  # wherever a node's connections come from
        # A replica of an idle cluster may have no fresh data link; without this it would not stand for election.
        options["cluster-replica-validity-factor"] = "0"
        options["repl-diskless-sync-delay"] = "0"  # else each first copy waits 5 s for others to join
        return EmbeddedValkey(port=0, options={**options, **self._options})

    def _form(self) -> None:
        with self._asking_all(self.nodes) as asks:
            ids = [ask("CLUSTER", "MYID").decode() for ask in asks]
            self._by_id = dict(zip(ids, self.nodes, strict=True))
            for number, ask in enumerate(asks):
                ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number < self.primaries:
                    first, end = (SLOTS * at // self.primaries for at in (number, number + 1))
                    ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
                for other in self.nodes[:number]:
                    ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.options["cluster-port"])
            until(
                lambda: all(_known(ask) == set(ids) for ask in asks), "its nodes to know each other", _FORMED_WITHIN_S
            )
            for number in range(self.primaries, len(asks)):
                asks[number]("CLUSTER", "REPLICATE", ids[number % self.primaries])
        self.wait_until_whole()

    @contextlib.contextmanager
    def _asking_all(self, nodes: Sequence[EmbeddedValkey]) -> Iterator[list[Ask]]:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.asking(node)) for node in nodes]

    # --- looking and changing ---

    def asking(self, node: EmbeddedValkey) -> contextlib.AbstractContextManager[Ask]:
        """A function that sends one command to `node` and returns its raw reply; for changing and inspecting it."""
        return asking(node, self._options.get("requirepass"))

    def primary_of(self, slot: int) -> EmbeddedValkey:
        """The node that serves `slot`, by the newest claim that any node knows; waits for the end of an election."""
        return self._shard_of(slot)[0]

    def replicas_of(self, slot: int) -> list[EmbeddedValkey]:
        """The replicas of the node that serves `slot`."""
        return self._shard_of(slot)[1:]

    def wait_until_whole(self, timeout_s: float = _FORMED_WITHIN_S) -> None:
        """Return when every responsive node sees all of them, every slot served, and itself in step."""
        with self._asking_all([node for node in self.nodes if node.responsive]) as asks:
            until(lambda: all(_whole(ask, len(asks)) for ask in asks), "the cluster to be whole", timeout_s)

    def move_slot(self, slot: int, target: EmbeddedValkey, *, batch: int = 100) -> None:
        """Move one slot with its keys to another primary while it is served, as resharding does."""
        with self._asking_all([self.primary_of(slot), target]) as (giver, taker):
            giver_id, taker_id = giver("CLUSTER", "MYID"), taker("CLUSTER", "MYID")
            taker("CLUSTER", "SETSLOT", slot, "IMPORTING", giver_id)
            giver("CLUSTER", "SETSLOT", slot, "MIGRATING", taker_id)
            password = self._options.get("requirepass")
            login = ("AUTH", password) if password else ()
            while keys := giver("CLUSTER", "GETKEYSINSLOT", slot, batch):
                giver("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *login, "KEYS", *keys)
            for ask in (taker, giver):
                ask("CLUSTER", "SETSLOT", slot, "NODE", taker_id)

    def _shard_of(self, slot: int) -> list[EmbeddedValkey]:
        """The owner and its replicas, by the newest claim that any node knows; while an election is on, waits."""
        found: list[EmbeddedValkey] = []

        def look() -> bool:
            views = [self._shard_seen_by(node, slot) for node in self.nodes if node.responsive]
            found[:] = max(views, key=lambda view: view[0])[1]
            return bool(found)

        until(look, f"somebody to serve slot {slot}", _FORMED_WITHIN_S)
        return found

    def _shard_seen_by(self, node: EmbeddedValkey, slot: int) -> tuple[int, list[EmbeddedValkey]]:
        """The epoch of the claim, the owner and its replicas; nobody while the owner is known to have failed."""
        with self.asking(node) as ask, contextlib.suppress(OSError, redis_error()):
            lines = _nodes(ask)
            owner = next((line for line in lines if slot in line and "fail" not in line.flags.split(",")), None)
            if owner is not None:
                followers = [line for line in lines if line.primary_id == owner.id]
                return owner.epoch, [self._by_id[line.id] for line in (owner, *followers)]
        return -1, []


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of CLUSTER NODES (valkey.io/commands/cluster-nodes, read 2026-11-24)."""

    id: str
    flags: str
    primary_id: str
    epoch: int
    connected: bool
    slots: tuple[tuple[int, int], ...]

    def __contains__(self, slot: int) -> bool:
        return any(first <= slot <= last for first, last in self.slots)


def _nodes(ask: Ask) -> list[_Line]:
    lines = []
    for text in ask("CLUSTER", "NODES").decode().splitlines():
        node_id, _, flags, primary_id, _, _, epoch, link, *slots = text.split()
        ranges = [part.partition("-")[::2] for part in slots if not part.startswith("[")]
        served = tuple((int(first), int(last or first)) for first, last in ranges)
        lines.append(_Line(node_id, flags, primary_id, int(epoch), link == "connected", served))
    return lines


def _known(ask: Ask) -> set[str]:
    return {line.id for line in _nodes(ask) if line.connected and "handshake" not in line.flags}


def _whole(ask: Ask, running: int) -> bool:
    """Whether this node serves, is in step, and knows of every running node what it is for."""
    if b"cluster_state:ok" not in ask("CLUSTER", "INFO"):
        return False
    replication = ask("INFO", "replication")
    if b"role:slave" in replication and b"master_link_status:up" not in replication:
        return False
    serving = [line for line in _nodes(ask) if line.connected and "fail" not in line.flags]
    return len([line for line in serving if line.slots or "slave" in line.flags]) == running
