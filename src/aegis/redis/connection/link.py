"""
One multiplexed connection: commands of all tasks leave in one write per loop turn, replies resolve futures in order.

States: new -> open -> closing -> closed; a link is never reopened, its owner makes another. The protocol object owns
the socket and the queue of futures. Only a reply, the end of the link, or the watch (time over) resolves a future; one
that its caller has cancelled keeps its place in the queue, and its reply is thrown away when it comes.

What a command costs: one future, one `pack`, three appends. Everything else is paid per write (a *batch*: when it left,
where it ends, its bytes) or per tick of the watch: there is no timer and no record per command.

Rejected: a pool (a checkout and a write per command), a lock around write and read (serialises the tasks),
`data_received` (allocates 256 KiB per read, where a `BufferedProtocol` reads into one buffer that it keeps).
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import hiredis

from aegis.redis.connection.stats import Counters
from aegis.redis.connection.unsent import unacknowledged_bytes
from aegis.redis.connection.waiters import NOBODY, LinkLostError, Pending, Reply, ReplyLateError, Waiter

#: hiredis types its argument as a tuple of one element; it takes any length.
pack: Callable[[tuple[Any, ...]], bytes] = cast("Any", hiredis.pack_command)

_BUFFER_BYTES = 128 * 1024
_ONE_TOO_MANY = "malformed reply: one more than there were commands"
_MORE: Any = object()  #: what hiredis returns while a reply is incomplete; `False` would be a RESP3 value
#: First words of what arrives unasked on a RESP2 connection that subscribes.
_PUSHES = frozenset(
    {b"message", b"pmessage", b"smessage", b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe",
     b"ssubscribe", b"sunsubscribe"}
)  # fmt: skip


_ELSEWHERE = ("MOVED ", "CLUSTERDOWN ")


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one link, in seconds and bytes."""

    command_timeout_s: float = 5.0
    hang_timeout_s: float = 2.0
    in_flight_max: int = 65_536
    in_flight_bytes_max: int = 64 * 1024 * 1024
    reply_bytes_max: int = 512 * 1024 * 1024
    idle_ping: bool = False

    @property
    def tick_s(self) -> float:
        """How often the watch looks: often enough that its lateness stays below an eighth of the shortest bound."""
        return max(min(0.25, self.hang_timeout_s / 8, self.command_timeout_s / 8), 0.005)


class Link(asyncio.BufferedProtocol):
    """
    One open connection. `send` never blocks; futures get the raw reply, a `hiredis.ReplyError` included.

    `full` says that a bound is reached; the link still takes what it is given, so owners look first. `on_room` is
    called when it is no longer full, `on_lost(reason)` once at its end.
    """

    def __init__(
        self,
        on_lost: Callable[[str], None],
        on_push: Callable[[list[Any]], None] | None = None,
        *,
        on_room: Callable[[], None] | None = None,
        limits: Limits = Limits(),
        counters: Counters | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._on_lost, self._on_push, self._on_room = on_lost, on_push, on_room
        self.limits, self._counters = limits, counters or Counters()
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Waiter] = deque()
        self._out: list[bytes] = []
        self._flushing = False  # a flush will come without being asked for
        self._before_flush: list[Callable[[], None]] = []
        self._in_flight_max, self._in_flight_bytes_max = limits.in_flight_max, limits.in_flight_bytes_max
        self._batches: deque[tuple[int, float, int]] = deque()  # (sequence number of its end, loop time, bytes)
        self._replied = 0  # sequence number of the last reply
        self._timed = 0  # sequence number of the last command of the last write that was answered whole
        self._written = 0  # sequence number of the last command that was written
        self._expired = 0  # up to here (a sequence number) the watch has failed what was too old
        self._bytes_in_flight = 0  # written and queued
        self._partial_bytes = 0  # of the reply that is still incomplete
        self._heard_at = self._sent_at = self._now()
        self._bytes_written = self._bytes_answered = 0  # since the beginning; the second in whole batches
        self._bytes_taken = 0  # of those written, what the other side had confirmed at the last tick
        self._watch: asyncio.TimerHandle | None = None
        self._tick_due, self._overslept = 0.0, False
        self._retiring = False
        self._patient_until: Callable[[], float] = float  # see `be_patient`
        self.number = 0  # its owner's
        self.full = False
        self.closed_because = ""
        self._gone: Future[None] = self._loop.create_future()

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "closing" if self.closed_because else "open"
        return f"<Link {state} in_flight={len(self._waiting)} bytes={self._bytes_in_flight}>"

    @property
    def in_flight(self) -> int:
        """Commands whose replies have not come."""
        return len(self._waiting)

    # --- sending ---

    def ask(self, packed: bytes) -> Pending:
        """Queue one packed command, as `send`; to be awaited at once by the calling task, which it wakes directly."""
        pending = Pending()
        # `wake` stays None if the task of another loop asks: asyncio refuses to let it wait. No __init__: 0.1 µs.
        pending._loop, pending.error, pending.wake = self._loop, None, None  # noqa: SLF001 - the name is asyncio's
        waiting = self._waiting
        waiting.append(pending)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        self._bytes_in_flight = size = self._bytes_in_flight + len(packed)
        if len(waiting) >= self._in_flight_max or size >= self._in_flight_bytes_max:
            self.full = True
        return pending

    def send(self, packed: bytes) -> Future[Reply]:
        """Queue one packed command; the future gets its reply, or LinkLostError when the link dies first."""
        future: Future[Reply] = Future(loop=self._loop)
        self.enqueue(packed, future)
        return future

    def enqueue(self, packed: bytes, waiter: Waiter, count: int = 1) -> None:
        """Queue `count` packed commands for a waiter that exists already; it gets each of their replies."""
        for _ in range(count):
            self._waiting.append(waiter)
        self.write(packed)

    def write(self, packed: bytes) -> None:
        """Queue bytes; on their own only for what has no reply of its own (SUBSCRIBE in push mode)."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        self._bytes_in_flight += len(packed)
        if len(self._waiting) >= self._in_flight_max or self._bytes_in_flight >= self._in_flight_bytes_max:
            self.full = True

    def before_flush(self, call: Callable[[], None]) -> None:
        """Call it once, before the next write: what it queues leaves with that, so callers of a turn come together."""
        self._before_flush.append(call)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._before_flush:
            self._flushing = True  # what they queue leaves below
            calls, self._before_flush = self._before_flush, []
            for call in calls:
                call()
        self._flushing = False
        transport, out = self._transport, self._out
        if not out:
            return None
        if transport is None:
            return self._fail_all()
        if self.closed_because:
            return None  # it will be lost in a moment; what stands in `_out` then counts as never sent
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._sent_at = now = self._now()
        in_flight = len(self._waiting)
        self._written = self._replied + in_flight
        self._batches.append((self._written, now, len(data)))
        counters = self._counters
        counters.bytes_sent += len(data)
        self._bytes_written += len(data)
        if in_flight > counters.in_flight_max:  # noqa: PLR1730 - three times as fast as max(), and once per write
            counters.in_flight_max = in_flight
        transport.write(data)
        return None

    # --- receiving ---

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the loop shall put what it reads: the same buffer each time."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Count what has come, then wake those that it answers."""
        replies: list[Reply] = []
        malformed = ""
        self._flushing = True  # what the woken tasks send leaves in one write, at the end of this read
        try:
            self._reader.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type] # it takes any buffer
            if self._on_push is not None:
                self._account(nbytes, self._route_pushes(self._on_push))
            else:
                replies.extend(iter(self._reader.gets, _MORE))  # what stands before a malformed one stays
        except (hiredis.ProtocolError, TypeError) as exc:  # TypeError: a map whose key is a list
            malformed = f"malformed reply: {exc}"
        except IndexError:
            malformed = _ONE_TOO_MANY
        if self._on_push is None:
            if len(replies) > len(self._waiting):
                malformed = _ONE_TOO_MANY
                del replies[len(self._waiting) :]
            self._account(nbytes, len(replies))
        try:
            self._deliver(iter(replies))
        finally:  # also when a woken task ends the program
            if malformed:
                self.abort(malformed)
            if self.full:
                self._make_room()
            self._flush()

    def _deliver(self, replies: Iterator[Reply]) -> None:
        take = self._waiting.popleft
        try:
            for reply in replies:
                waiter = take()
                if type(waiter) is Pending:  # as its set_result, without the call
                    wake = waiter.wake
                    if wake is not None:
                        waiter.wake, waiter.reply = None, reply
                        waiter.context.run(wake, waiter)
                elif not waiter.done():  # cancelled or late: nobody wants it
                    waiter.set_result(reply)
        except BaseException:  # a woken task ends the program (SystemExit); the others still get theirs
            for reply in replies:
                self._loop.call_soon(_hand_over, take(), reply)
            raise

    def _route_pushes(self, on_push: Callable[[list[Any]], None]) -> int:
        gets, replied = self._reader.gets, 0
        while (reply := gets()) is not _MORE:
            if type(reply) is list and reply and type(reply[0]) is bytes and reply[0] in _PUSHES:
                on_push(reply)
                continue
            if type(reply) is hiredis.ReplyError and str(reply).startswith(_ELSEWHERE):
                on_push([reply])  # the only refusal of a subscription, which has no waiter
                continue
            waiter = self._waiting.popleft()
            replied += 1
            if not waiter.done():
                waiter.set_result(reply)
        return replied

    def _account(self, nbytes: int, replied: int) -> None:
        self._heard_at = now = self._now()
        counters, batches = self._counters, self._batches
        counters.bytes_received += nbytes
        if replied or self._on_push is not None:
            self._partial_bytes = 0
            counters.commands += replied
            self._replied += replied
            while batches and batches[0][0] <= self._replied:
                end, sent_at, size = batches.popleft()
                self._bytes_in_flight -= size
                self._bytes_answered += size
                counters.answered(end - self._timed, now - sent_at)
                self._timed = end
        else:
            self._partial_bytes += nbytes
            if self._partial_bytes > self.limits.reply_bytes_max and self._on_push is None:
                self.abort(f"a reply is larger than {self.limits.reply_bytes_max} bytes")

    def _make_room(self) -> None:
        if len(self._waiting) < self._in_flight_max and self._bytes_in_flight < self._in_flight_bytes_max:
            self.full = False
            if self._on_room is not None:
                self._on_room()

    # --- the watch ---

    def be_patient(self, until: Callable[[], float]) -> None:
        """`until()` gives the loop time before which silence is no reason to give the link up."""
        self._patient_until = until

    def _tick(self) -> None:
        limits, now = self.limits, self._now()
        self._watch = self._loop.call_later(limits.tick_s, self._tick)
        late, self._tick_due = now - self._tick_due > limits.tick_s, now + limits.tick_s
        if late and not self._overslept:
            self._overslept = True
            return  # it is our loop that was busy: replies may lie in the socket, so look once more first
        self._overslept = False
        self._expire_older_than(now - limits.command_timeout_s)
        if self._waiting and self._batches:
            if self._oldest_is_on_its_way():
                self._heard_at = now
            silent_since = max(self._heard_at, self._batches[0][1])
            if now - silent_since >= limits.hang_timeout_s and now >= self._patient_until():
                self.abort(f"the server is silent since {now - silent_since:.1f} s")
        elif self._retiring and not self._waiting:
            self.abort("replaced by another connection")
        elif limits.idle_ping and now - max(self._heard_at, self._sent_at) >= limits.hang_timeout_s / 4:
            self.enqueue(_PING, NOBODY)

    def _oldest_is_on_its_way(self) -> bool:
        """
        Whether the other side has taken more of the oldest write since the last tick, and has not all of it yet.

        So a large value may take its time, while a stopped server whose kernel goes on accepting commands shows no
        sign of life.
        """
        before = self._bytes_taken
        self._bytes_taken = taken = self._bytes_written - unacknowledged_bytes(self._transport)
        return before < taken < self._bytes_answered + self._batches[0][2]

    def _expire_older_than(self, sent_before: float) -> None:
        """Fail what was sent before; it keeps its place in the queue. Looks at each command once."""
        end = 0
        for batch_end, sent_at, _ in self._batches:
            if sent_at > sent_before:
                break
            end = batch_end
        if end <= self._expired:
            return
        first = max(self._expired, self._replied) - self._replied
        self._expired = end
        for waiter in list(self._waiting)[first : end - self._replied]:
            if not waiter.done():
                waiter.set_exception(ReplyLateError())

    # --- beginning and end ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open (and TLS spoken)."""
        self._transport = transport  # type: ignore[assignment] # asyncio hands a Transport to a stream protocol
        self._tick_due = self._now() + self.limits.tick_s
        self._watch = self._loop.call_at(self._tick_due, self._tick)

    def retire(self) -> None:
        """Close as soon as everything in flight has been answered; the owner has another link."""
        self._retiring = True

    def abort(self, reason: str) -> None:
        """Drop the connection now; everything in flight fails with `reason`."""
        self.closed_because = self.closed_because or reason
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone: tell the owner, then fail what is in flight."""
        cause = "closed by the server" if exc is None else str(getattr(exc, "strerror", "") or exc).lower()
        self.closed_because = self.closed_because or cause
        self._transport = None
        if self._watch is not None:
            self._watch.cancel()
        self._on_lost(self.closed_because)
        self._fail_all()
        if not self._gone.done():
            self._gone.set_result(None)

    async def wait_closed(self) -> None:
        """Return when the socket is closed and everything in flight has failed. Call `abort` first."""
        if self._transport is not None:
            await asyncio.shield(self._gone)

    def _fail_all(self) -> None:
        self._out.clear()
        self._batches.clear()
        while self._waiting:
            waiter = self._waiting.popleft()
            self._replied += 1
            if not waiter.done():
                waiter.set_exception(LinkLostError(self.closed_because, sent=self._replied <= self._written))


def _hand_over(waiter: Waiter, reply: Reply) -> None:
    if not waiter.done():
        waiter.set_result(reply)


_PING = pack(("PING",))
