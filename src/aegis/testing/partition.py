"""
A cluster whose nodes can be cut off for real: from clients, from replicas and from the cluster bus, both ways.

Every node gets a `FaultProxy` before its port and one before its bus, announces those to everybody, and connects from a
loopback address of its own (127.0.0.2, ...), by which the proxies of the others know it. So a partition is what it is
in a network: silence on every connection to and from one node. Linux only: elsewhere the loopback has one address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from aegis.embedded import EmbeddedCluster, EmbeddedValkey
from aegis.testing.proxy import FaultProxy

_SETTLED_WITHIN_S = 30.0
_LOOK_EVERY_S = 0.1
_FIRST_HOST = 2


class ClusterPartition:
    """
    Proxies around every node of a running cluster; `url` leads through them.

    Entering and leaving take a second or two each: the nodes must hear of each other's addresses.

        async with ClusterPartition(cluster) as partition:
            partition.cut_off(cluster.primary_of(0))
            ...
            partition.heal()
    """

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self._cluster = cluster
        self._hosts = {node: f"127.0.0.{number}" for number, node in enumerate(cluster.nodes, _FIRST_HOST)}
        self._ports: dict[EmbeddedValkey, FaultProxy] = {}
        self._buses: dict[EmbeddedValkey, FaultProxy] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for node in self._cluster.nodes:
                bus = f"127.0.0.1:{node.options['cluster-port']}"
                self._ports[node] = await stack.enter_async_context(FaultProxy(f"127.0.0.1:{node.port}"))
                self._buses[node] = await stack.enter_async_context(FaultProxy(bus))
            stack.push_async_callback(self._go_direct)
            proxied = {node: (self._ports[node].port, self._buses[node].port) for node in self._cluster.nodes}
            await self._announce(proxied, proxied, self._hosts)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.heal()
        await self._stack.aclose()

    async def _go_direct(self) -> None:
        """Everybody is where he was before, and knows the others there."""
        running = [node for node in self._cluster.nodes if node.responsive]
        direct = {node: (node.port or 0, int(node.options["cluster-port"])) for node in running}
        await self._announce(direct, dict.fromkeys(running, (0, 0)), dict.fromkeys(running, ""))

    @property
    def url(self) -> str:
        """What REDIS_URL must be for clients whose connections a partition shall reach."""
        return f"redis+cluster://{','.join(proxy.address for proxy in self._ports.values())}"

    def port_of(self, node: EmbeddedValkey) -> int:
        """Where clients reach it now."""
        return self._ports[node].port

    def cut_off(self, node: EmbeddedValkey, *, clients: bool = True) -> None:
        """Silence everything to and from this node; without `clients` they still reach it, and it reaches nobody."""
        others = self._hosts.keys() - {node}
        for other in others:
            self._ports[other].freeze(self._hosts[node])
            self._buses[other].freeze(self._hosts[node])
        self._buses[node].freeze()
        self._ports[node].freeze(*(() if clients else (self._hosts[other] for other in others)))

    def heal(self) -> None:
        """The network is whole again; what was on its way arrives."""
        for proxy in (*self._ports.values(), *self._buses.values()):
            proxy.heal()

    async def _announce(
        self,
        known_at: Mapping[EmbeddedValkey, tuple[int, int]],
        announced: Mapping[EmbeddedValkey, tuple[int, int]],
        hosts: Mapping[EmbeddedValkey, str],
    ) -> None:
        """Tell every node its ports and where it comes from; returns when all others know it there."""

        def tell() -> None:
            for node, (port, bus_port) in announced.items():
                with self._cluster.asking(node) as ask:
                    ask("CONFIG", "SET", "bind-source-addr", hosts[node])
                    ask("CONFIG", "SET", "cluster-announce-port", port, "cluster-announce-bus-port", bus_port)

        await asyncio.to_thread(tell)
        places = [f":{port}@{bus_port}".encode() for port, bus_port in known_at.values()]
        async with asyncio.timeout(_SETTLED_WITHIN_S):
            while not await asyncio.to_thread(self._settled, list(known_at), places):  # noqa: ASYNC110 - gossip has no event
                await asyncio.sleep(_LOOK_EVERY_S)

    def _settled(self, nodes: Sequence[EmbeddedValkey], places: Sequence[bytes]) -> bool:
        """Whether each of them knows all of these places, is connected to them, and in step with its primary."""
        for node in nodes:
            with self._cluster.asking(node) as ask:
                view = ask("CLUSTER", "NODES")
                replication = ask("INFO", "replication")
            if any(place not in view for place in places) or b"disconnected" in view:
                return False
            if b"link_status:down" in replication:
                return False
        return True
