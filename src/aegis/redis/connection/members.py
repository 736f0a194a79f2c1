"""
Who serves which slot of a cluster: one link per primary, and the survey that finds out who they are.

States of a slot: owned and confirmed; owned, but its owner's connection was lost, or has come back and no survey has
confirmed yet that it was not replaced meanwhile (its commands wait); without an owner (the same). One
task of this object, the survey, begins whenever something contradicts what is known (a redirection, a lost link,
CLUSTERDOWN) and asks the nodes until every slot has an owner that is connected. Whoever waits, waits for `_changed`,
each until its own deadline: a failover is bounded by the caller's time, and what is not sent by then is said to be so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from hiredis import ReplyError

from aegis.backoff import Backoff
from aegis.config import RedisConfig
from aegis.errors import ClosedError, RedisError, RedisUnavailableError
from aegis.redis.connection.link import pack
from aegis.redis.connection.node import Node
from aegis.redis.connection.open import open_link
from aegis.redis.connection.pieces import gather_all
from aegis.redis.connection.shared import Command
from aegis.redis.connection.slots import slot_of_key
from aegis.redis.connection.stats import Counters
from aegis.redis.connection.topology import Place, Topology, View, parse_view
from aegis.redis.connection.waiters import Reply

log = logging.getLogger("aegis.redis")

_SURVEY_BACKOFF = Backoff(base_s=0.05, cap_s=1.0)
_LOOK_TIMEOUT_S = 1.0  #: for one node to tell its view


class Members:
    """All primaries of one cluster, through resharding and failover. Not for several event loops."""

    def __init__(self, config: RedisConfig, counters: Counters) -> None:
        self.config, self._counters = config, counters
        self.topology = Topology()
        self._nodes: dict[Place, Node] = {}
        self._retired: list[Node] = []
        self._unconfirmed: set[Place] = set()  # lost since; who comes back may have been replaced meanwhile
        self._open = False
        self._survey: asyncio.Task[None] | None = None
        self._doubts = 0  # how often the map has been contradicted
        self._waiting = 0
        self._changed: asyncio.Future[None] | None = None
        self._cause = ""
        self._followers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state} nodes={len(self._nodes)}>"

    @property
    def state(self) -> str:
        """`closed`, `connected` (to the owner of every slot) or `reconnecting`."""
        return "closed" if not self._open else "connected" if self._whole else "reconnecting"

    @property
    def in_flight(self) -> int:
        """Commands whose replies have not come."""
        return sum(node.in_flight for node in self._nodes.values())

    @property
    def waiting(self) -> int:
        """Commands that have not been sent."""
        return self._waiting + sum(node.waiting for node in self._nodes.values())

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The primaries that own slots, in the order of their places."""
        return tuple(node for _, node in sorted(self._nodes.items()))

    def owner(self, slot: int) -> Node | None:
        """The primary of one slot, connected or not."""
        place = self.topology.owners[slot]
        return self._nodes.get(place) if place is not None else None

    # --- opening and closing ---

    async def open(self) -> None:
        """
        Learn the map from the first seed that answers, and connect to every primary.

        Raises:
            RedisUnavailableError: no seed answers, a slot has no owner, or a primary cannot be reached.
            RuntimeError: it is open already.
        """
        if self._open:
            raise RuntimeError("this Redis is open already; share it instead of entering it twice")
        self._changed = asyncio.get_running_loop().create_future()
        self.topology = Topology()
        try:
            await self._look_around([Place(*seed) for seed in self.config.seeds])
            if not self.topology.primaries:
                raise RedisUnavailableError(self.config.address, self._cause or "no node answers")
            if not self.topology.complete:
                raise RedisUnavailableError(self.config.address, "some slots are served by nobody")
            self._nodes = {place: self._new_node(place) for place in self.topology.primaries}
            await gather_all(node.open() for node in self._nodes.values())
        except BaseException:
            await self._drop_all()
            raise
        self._open = True
        log.debug("connected to %d primaries of Redis %s", len(self._nodes), self.config.address)

    async def close(self) -> None:
        """Drop every link. What was not sent fails with ClosedError; what is in flight is lost. Idempotent."""
        self._open = False
        survey, self._survey = self._survey, None
        if survey is not None:
            survey.cancel()
            await asyncio.gather(survey, return_exceptions=True)
        self._notify()
        await self._drop_all()

    async def _drop_all(self) -> None:
        nodes, self._nodes, self._retired = [*self._nodes.values(), *self._retired], {}, []
        await asyncio.gather(*(node.close() for node in nodes))

    # --- who serves ---

    def connection_for(self, key: str) -> int:
        """The number of the connection to the owner of the key's slot; 0 while there is none."""
        node = self.owner(slot_of_key(key))
        return node.steady.connection if node is not None else 0

    async def serving(self, slot: int | None, deadline: float, timeout_s: float) -> Node:
        """The connected owner of the slot; waits for there to be one."""
        while True:
            if not self._open:
                raise ClosedError("Redis")
            node = self.serving_now(slot)
            if node is not None:
                return node
            node = self._any() if slot is None else self.owner(slot)
            self.doubt(node.steady.cause if node is not None else f"nobody serves slot {slot}")
            assert self._changed is not None
            self._waiting += 1
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(self._changed)
            except TimeoutError as exc:
                self._counters.errors["unavailable"] += 1
                address = node.config.address if node is not None else self.config.address
                raise RedisUnavailableError(address, f"not sent within {timeout_s:.3g} s: {self._cause}") from exc
            finally:
                self._waiting -= 1

    def serving_now(self, slot: int | None) -> Node | None:
        """The connected owner of the slot; any node where no slot is asked for."""
        node = self._any() if slot is None else self.owner(slot)
        return node if node is not None and self._serves(node) else None

    def _any(self) -> Node | None:
        nodes = self.nodes
        return next((node for node in nodes if self._serves(node)), nodes[0] if nodes else None)

    def _serves(self, node: Node) -> bool:
        return node.state == "connected" and node.place not in self._unconfirmed

    def moved(self, slot: int | None, rest: str, by: Node) -> None:
        """One node says that another owns the slot: believe it at once, and look whether more has changed."""
        node = self.node_at(rest, by)
        if slot is not None:
            self.topology.owners[slot] = node.place
        self.doubt(f"slot {slot} has moved")

    def node_at(self, rest: str, by: Node) -> Node:
        """The node that a redirection `slot host:port` names; one that we did not know joins."""
        host, _, port = rest.rpartition(" ")[2].rpartition(":")
        told = Place(host or by.config.host, int(port))
        place = self.topology.names.get(told, told)
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = self._new_node(place)
            node.steady.start()
        return node

    def _new_node(self, place: Place) -> Node:
        def changed() -> None:
            if node.state == "reconnecting":
                self._unconfirmed.add(place)
                node.steady.evict()
                self.doubt(node.steady.cause)
            self._notify()

        node = Node(self.config.at(*place), self._counters, on_change=changed, one_of_several=True)
        return node

    def _notify(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
            self._changed = self._changed.get_loop().create_future()

    # --- the survey ---

    @property
    def _whole(self) -> bool:
        return self.topology.complete and all(
            (node := self._nodes.get(place)) is not None and self._serves(node) for place in self.topology.primaries
        )

    def doubt(self, cause: str) -> None:
        """What we know is contradicted: look again, unless we are looking."""
        self._cause = cause
        self._doubts += 1
        if self._open and self._survey is None:
            self._survey = asyncio.create_task(self._look_until_whole(), name="aegis redis survey")

    async def _look_until_whole(self) -> None:
        try:
            attempt, doubts = 0, -1
            while doubts != self._doubts or not self._whole:
                doubts = self._doubts
                if attempt:
                    await asyncio.sleep(_SURVEY_BACKOFF.delay_s(attempt))
                attempt += 1
                connected = [place for place, node in self._nodes.items() if node.state == "connected"]
                everybody = {*self.topology.places, *connected, *(Place(*seed) for seed in self.config.seeds)}
                if await self._look_around(connected if self._whole else everybody):
                    self._unconfirmed.difference_update(connected)  # they were connected before the others were asked
                self._follow()
        finally:
            if self._survey is asyncio.current_task():
                self._survey = None

    async def _look_around(self, places: Sequence[Place] | set[Place]) -> bool:
        """Whether at least half of those asked have told their view: a majority of the cluster, or nearly."""
        answers = await asyncio.gather(*(self._view_of(place) for place in places))
        views = [view for view in answers if view is not None]
        self.topology.learn(views)
        return 2 * len(views) >= len(places)

    async def _view_of(self, place: Place) -> View | None:
        node = self._nodes.get(place)
        try:
            if node is not None and node.state == "connected":
                reply = await node.ask(("CLUSTER", "NODES"), _LOOK_TIMEOUT_S)
            else:
                reply = await _ask_once(self.config.at(*place), ("CLUSTER", "NODES"))
        except (RedisError, ConnectionError, TimeoutError) as exc:
            self._cause = str(exc)
            return None
        if isinstance(reply, ReplyError):
            self._cause = f"{place.host}:{place.port} is no node of a cluster: {reply}"
            return None
        return parse_view(reply.decode(), place, by_name=self.config.tls)

    def _follow(self) -> None:
        """Connect to new primaries and let those go that own nothing any more."""
        primaries = self.topology.primaries
        for place in primaries - self._nodes.keys():
            log.info("Redis %s: %s:%d serves slots now", self.config.address, *place)
            node = self._nodes[place] = self._new_node(place)
            node.steady.start()
        for place in self._nodes.keys() - primaries:
            node = self._nodes.pop(place)
            self._unconfirmed.discard(place)
            node.steady.retire()
            self._retired = [*(old for old in self._retired if old.steady.draining), node]
        self._notify()
        for follow in tuple(self._followers):
            follow()

    def on_topology(self, follow: Callable[[], None]) -> Callable[[], None]:
        """Call `follow()` after each look at the map. Returns a function that ends it."""
        self._followers.append(follow)

        def forget() -> None:
            if follow in self._followers:
                self._followers.remove(follow)

        return forget


async def _ask_once(config: RedisConfig, command: Command) -> Reply:
    """One command over a connection of its own."""
    async with asyncio.timeout(_LOOK_TIMEOUT_S):
        link = await open_link(config, lambda _: None)
        try:
            return await link.send(pack(tuple(command)))
        finally:
            link.abort("has been asked")
