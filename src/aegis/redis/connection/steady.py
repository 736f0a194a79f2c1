"""
A link that comes back: keeps one link open, and what cannot be sent yet.

States: closed -> open() -> connected <-> reconnecting -> close() -> closed. Owner of each: `open` makes the first link
and fails at once when it cannot; after a loss one task of this object makes the next, with jittered back-off and
without end; `close` ends both. `ready` is the link while it takes commands at once, and None otherwise: then commands
stand in the backlog, in order, each until its own deadline.

Each change between connected and reconnecting is logged once, on the logger `aegis.redis`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from asyncio import Future
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from aegis.backoff import Backoff
from aegis.config import RedisConfig
from aegis.errors import ClosedError, RedisUnavailableError
from aegis.redis.connection.deadlines import Deadlines
from aegis.redis.connection.link import Link
from aegis.redis.connection.open import open_link
from aegis.redis.connection.stats import Counters
from aegis.redis.connection.waiters import LinkLostError, Patient, Pending, Reply, ReplyLateError, Waiter

log = logging.getLogger("aegis.redis")
log.addHandler(logging.NullHandler())  # a program that configures no logging sees nothing

_BACKOFF = Backoff(base_s=0.05, cap_s=1.0)
_RENEW_EVERY_S = 1.0


class NeverSentError(TimeoutError):
    """The command's time is over and it was never sent. Internal: the client translates it."""


class SteadyLink:
    """
    One connection to one server, through all its losses. Not for several event loops.

    `locate` says where the server is, before each connection; it must be a primary then. `on_change` is called when the
    state has changed.
    """

    def __init__(
        self,
        config: RedisConfig,
        counters: Counters,
        *,
        locate: Callable[[], Awaitable[RedisConfig]] | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._counters, self._locate, self._on_change = config, counters, locate, on_change
        self.ready: Link | None = None
        self._link: Link | None = None
        self._retired: Link | None = None  # answered to its end, then closed
        self._state = "closed"
        self._cause = ""  # why there is no link
        self._backlog: OrderedDict[Future[Reply], tuple[bytes, Waiter, int]] = OrderedDict()
        self._deadlines: Deadlines[Future[Reply] | Pending] | None = None
        self._task: asyncio.Task[None] | None = None  # reconnects, or renews
        self._renewed_at = 0.0
        self._server = ("", 0)  # the one that the Sentinels named last
        self._number = 0

    def __repr__(self) -> str:
        return f"<SteadyLink {self._config.address} {self._state} waiting={len(self._backlog)} {self._link}>"

    @property
    def state(self) -> str:
        """`closed`, `connected` or `reconnecting`."""
        return self._state

    @property
    def cause(self) -> str:
        """Why the last link was lost or the next could not be made."""
        return self._cause

    @property
    def connection(self) -> int:
        """The number of the present or last link, counted over all servers of the client; 0 before the first."""
        return self._number

    @property
    def draining(self) -> bool:
        """Whether it was retired, and something is still in flight."""
        return self._retired is not None and self._retired.in_flight > 0

    @property
    def in_flight(self) -> int:
        """Commands whose replies have not come."""
        return self._link.in_flight if self._link is not None else 0

    @property
    def waiting(self) -> int:
        """Commands that have not been sent."""
        return len(self._backlog)

    # --- opening and closing ---

    async def open(self) -> None:
        """
        Make the first link.

        Raises:
            RedisUnavailableError: it cannot be made now.
            RuntimeError: it is open already.
        """
        if self._state != "closed":
            raise RuntimeError("this Redis is open already; share it instead of entering it twice")
        self._deadlines = Deadlines(asyncio.get_running_loop(), self._expire)
        self._use(await self._new_link())
        log.debug("connected to Redis at %s", self._config.address)

    def start(self) -> None:
        """As `open`, in the background and without end: for a server that joins a group later."""
        self._deadlines = Deadlines(asyncio.get_running_loop(), self._expire)
        self._state, self._cause = "reconnecting", "not connected yet"
        self._task = asyncio.create_task(self._reconnect(), name="aegis redis connect")

    def retire(self) -> None:
        """Let what is in flight be answered and make no new link; what was not sent fails as such."""
        self._state, self._cause = "closed", "another server serves in its place"
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        link, self._link, self.ready = self._link, None, None
        self.evict()
        if link is not None:
            link.retire()
            self._retired = link

    def evict(self) -> None:
        """Fail what waits to be sent with LinkLostError (not sent): its owner knows another way."""
        while self._backlog:
            future, _ = self._backlog.popitem(last=False)
            if not future.done():
                future.set_exception(LinkLostError(self._cause, sent=False))

    async def close(self) -> None:
        """Drop the link. What was not sent fails with ClosedError; what is in flight is lost. Idempotent."""
        self._state, self._cause = "closed", "closed by this process"
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        links, self._link, self._retired, self.ready = (self._link, self._retired), None, None, None
        for link in links:
            if link is not None:
                link.abort(self._cause)
        while self._backlog:
            future, _ = self._backlog.popitem(last=False)
            if not future.done():
                future.set_exception(ClosedError("Redis"))
        if self._deadlines is not None:
            self._deadlines.close()
        for link in links:
            if link is not None:
                await link.wait_closed()

    # --- commands ---

    def submit(
        self, packed: bytes, future: Future[Reply], timeout_s: float, waiter: Waiter | None = None, count: int = 1
    ) -> None:
        """
        Send `count` packed commands as soon as there is a link with room.

        `future` fails when `timeout_s` pass before the reply.

        Raises:
            ClosedError: nobody would ever send it.
        """
        if self._state == "closed":
            raise ClosedError("Redis")
        if waiter is None:
            waiter = Patient(future) if self.is_patient(timeout_s) else future
        self._backlog[future] = (packed, waiter, count)
        self.watch(timeout_s, future)
        self._drain()

    def is_patient(self, timeout_s: float) -> bool:
        """Whether a command with this timeout may take longer than the configured time."""
        return timeout_s > self._config.command_timeout

    def watch(self, timeout_s: float, future: Future[Reply] | Pending) -> None:
        """Let `future` fail after `timeout_s`; a time above the default makes the link bear that long a silence."""
        assert self._deadlines is not None
        self._deadlines.add(timeout_s, future)

    def forget(self, future: Future[Reply]) -> None:
        """The caller has gone: do not send what was not sent yet."""
        self._backlog.pop(future, None)

    def _patient_until(self) -> float:
        assert self._deadlines is not None
        return self._deadlines.latest_above(self._config.command_timeout)

    def _expire(self, future: Future[Reply] | Pending) -> None:
        unsent = isinstance(future, Future) and self._backlog.pop(future, None) is not None
        future.set_exception(NeverSentError() if unsent else ReplyLateError())

    def _drain(self) -> None:
        """Move the backlog into the link, as far as it has room."""
        link, backlog = self._link, self._backlog
        if link is None or link.closed_because:
            return
        while backlog and not link.full:
            future, entry = backlog.popitem(last=False)
            if not future.done():
                link.enqueue(*entry)
        self.ready = None if backlog else link

    # --- links ---

    async def _new_link(self) -> Link:
        def lost(reason: str) -> None:
            self._lost(link, reason)

        link: Link
        try:
            if self._locate is None:
                link = await open_link(self._config, lost, on_room=self._drain, counters=self._counters, idle_ping=True)
            else:
                link = await self._new_link_to_primary(self._locate, lost)
        except RedisUnavailableError:
            self._counters.connect_failures += 1
            raise
        self._counters.connections += 1
        link.number = self._counters.connections
        return link

    async def _new_link_to_primary(
        self, locate: Callable[[], Awaitable[RedisConfig]], lost: Callable[[str], None]
    ) -> Link:
        """
        One that was the primary before the login and still is after it.

        Asked only before, one that is paused could be replaced while it keeps the login waiting, and answer it later.
        """
        config = await locate()
        link = await open_link(config, lost, on_room=self._drain, counters=self._counters, idle_ping=True, primary=True)
        try:
            now = await locate()
        except BaseException:
            link.abort("nobody confirms that it is the primary")
            raise
        if (now.host, now.port) != (config.host, config.port):
            link.abort("replaced meanwhile")
            raise RedisUnavailableError(config.address, f"replaced meanwhile by {now.address}")
        self._server = (now.host, now.port)
        return link

    async def _is_replaced(self) -> bool:
        if self._locate is None:
            return False
        now = await self._locate()
        return (now.host, now.port) != self._server

    def _use(self, link: Link) -> None:
        link.be_patient(self._patient_until)
        self._link, self._state, self._cause, self._number = link, "connected", "", link.number
        self._drain()
        self._on_change()

    def _lost(self, link: Link, reason: str) -> None:
        if link is not self._link:
            return  # replaced or closed
        self._link = self.ready = None
        self._state, self._cause = "reconnecting", reason
        log.warning("connection to Redis at %s lost: %s; reconnecting", self._config.address, reason)
        if self._task is not None:
            self._task.cancel()  # it was renewing
        self._task = asyncio.create_task(self._reconnect(), name="aegis redis reconnect")
        self._on_change()

    async def _reconnect(self) -> None:
        attempt, lost_at = 0, time.monotonic()
        while True:
            attempt += 1
            await asyncio.sleep(_BACKOFF.delay_s(attempt))
            try:
                link = await self._new_link()
                break
            except RedisUnavailableError as exc:
                self._cause = exc.cause
        took_s = time.monotonic() - lost_at
        log.info("connected to Redis at %s again after %.2f s, attempt %d", self._config.address, took_s, attempt)
        self._counters.reconnects += 1
        self._task = None
        self._use(link)

    def renew(self, reason: str, *, if_replaced: bool = False) -> None:
        """
        Replace the link by a new one without losing what is in flight.

        For a server that answers but is no longer the right one: a demoted primary says READONLY, and its name may
        lead to the new primary by now. At most once a second, because a replica says it to every write. `if_replaced`:
        only when the Sentinels name another server by now.
        """
        now = time.monotonic()
        if self._state == "connected" and self._task is None and now - self._renewed_at >= _RENEW_EVERY_S:
            self._renewed_at = now
            self._task = asyncio.create_task(self._renew(reason, if_replaced=if_replaced), name="aegis redis renew")

    async def _renew(self, reason: str, *, if_replaced: bool) -> None:
        try:
            with contextlib.suppress(RedisUnavailableError):  # then the old one must do
                if if_replaced and not await self._is_replaced():
                    return
                log.warning("Redis at %s: %s; connecting anew", self._config.address, reason)
                link, old = await self._new_link(), self._link
                self._counters.reconnects += 1
                self._use(link)
                if old is not None:
                    old.retire()
                    self._retired = old
        finally:
            if self._task is asyncio.current_task():  # else the link was lost meanwhile, and a reconnection took over
                self._task = None
