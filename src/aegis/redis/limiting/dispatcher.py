"""
One dispatcher per limit and key: it asks the server for all who wait in this process, and releases them when due.

States: idle (nobody waits, nothing is held: its owner may forget it) -> asking (one question is under way, never two)
-> sleeping until the next slot is due or the server expects us -> asking ... Everything happens in `_settle`, which is
called once per turn of the loop in which anything changed: it releases what is due, gives back what nobody needs, asks
if it is time, and sets one timer. So callers of one turn share one question, and a cancelled one's permits are handed
to the next without asking anybody.

What the server hears: how many permits each lane waits for, in order. What it answers: what is granted, who cannot be
served in time, and when to come back; a process that does not come then loses its place. The bell (`bell.py`)
says when to come sooner. How a caller's wait begins and ends stands in `callers.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aegis.errors import (
    AegisError,
    ClosedError,
    RateLimitLayoutError,
    RedisError,
    RedisUnavailableError,
    ServerLostError,
    ServerReplyError,
)
from aegis.redis.limiting.bell import Bell
from aegis.redis.limiting.callers import RETRY_EVERY_S, Callers
from aegis.redis.limiting.counts import Counts
from aegis.redis.limiting.gate import Gate, Turn
from aegis.redis.limiting.limit import PAD_S, Lane
from aegis.redis.limiting.local_share import PATIENCE_S, Fallback, Permits
from aegis.redis.limiting.outlook import Outlook
from aegis.redis.limiting.queue import Slot, Waiter, WaitQueue, grants_of

#: Refusals of the server that pass by themselves: it is starting, failing over, full, or busy.
_PASSING = frozenset(
    {"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "OOM", "MISCONF", "NOREPLICAS"}
)


class Dispatcher:
    """Serves the `callers` of one limit and key. `spawn` keeps a task until it is done."""

    def __init__(
        self,
        gate: Gate,
        counts: Counts,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        bell: Bell,
        fallback: Fallback | None,
    ) -> None:
        self._gate, self._counts, self._spawn, self._bell, self._fallback = gate, counts, spawn, bell, fallback
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._queue, self._clock = WaitQueue(), gate.clock
        self._outlook = Outlook(gate)
        self.callers = Callers(gate, counts, self._queue, self._outlook, self._soon)
        self._asking = False
        self._settling: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._late_max_s = max(gate.limit.pad, PAD_S) / 2
        self._closed = False

    def __repr__(self) -> str:
        doing = "asking" if self._asking else "sleeping"
        return f"<Dispatcher {self._gate.limit.name} {doing} waiting={len(self._queue)} slots={len(self._queue.slots)}>"

    @property
    def idle(self) -> bool:
        """Whether it may be forgotten: nobody waits, nothing is held, nothing is under way."""
        return not (self._asking or len(self._queue) or self._queue.slots or self._outlook.lanes or self._settling)

    @property
    def reserved(self) -> int:
        """Permits held for moments to come."""
        return self._queue.held

    # --- deciding ---

    def _soon(self) -> None:
        """Settle at the end of this turn of the loop."""
        if self._settling is None and not self._closed:
            self._settling = self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._settling = None
        now = self._now()
        self._release(now)
        surplus = self._queue.surplus()
        missing = self._queue.uncovered()
        if self._fallback is not None and self._fallback.away:
            self._serve_locally(self._fallback.permits(), now)
            missing = self._queue.uncovered()
        elif not self._asking:
            leaving = [lane for lane in self._outlook.lanes if not missing[lane]]
            if any(missing) and (self._queue.open or now >= self._outlook.next_ask(missing)):
                self._asking = True
                self._spawn(self._ask())
            elif leaving:
                self._outlook.leave(leaving)
                self._give_back(surplus, leaving)
                surplus = []
        if surplus:
            self._give_back(surplus, ())
        self._set_timer(missing)

    def _release(self, now: float) -> None:
        """Wake those whose permits are due. A slot that we are late for is lost: others count on its moment."""
        while (slot := self._queue.take_due(now)) is not None:
            if now - slot.due + self._clock.doubt_s > self._late_max_s:
                self._counts.late += slot.permits
                continue
            for waiter in self._queue.serve(slot):
                waiter.future.set_result(slot)
            self._counts.late += slot.permits

    def _serve_locally(self, permits: Permits, now: float) -> None:
        """Redis is away, and we go on without."""
        while (waiter := self._queue.first()) is not None:
            due = permits.due(waiter.cost, now)
            if due > now:
                self._outlook.ask_from(due)
                if waiter.deadline is None or due <= waiter.deadline:
                    return
                self.callers.refuse(waiter, due - now)
                continue
            self._queue.remove(waiter)
            if not waiter.future.done():
                permits.take(waiter.cost, now)
                waiter.future.set_result(None)

    def _set_timer(self, missing: Sequence[int]) -> None:
        at = self._queue.slots[0].due if self._queue.slots else math.inf
        if not self._asking:
            at = min(at, self._outlook.next_ask(missing))
        if self._timer is not None:
            if self._timer.when() == at:
                return
            self._timer.cancel()
            self._timer = None
        if at < math.inf:
            self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._settle_now()

    def _settle_now(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        self._settle()

    # --- asking ---

    async def _ask(self) -> None:
        asked_at = self._now()
        asks, behind = self._queue.asks(asked_at)
        try:
            turn = await self._gate.turn(asks, None if self._fallback is None else PATIENCE_S)
        except (RedisUnavailableError, ServerLostError) as exc:
            self._not_answered(exc, asked_at)
        except ServerReplyError as exc:
            if exc.code in _PASSING:
                self._not_answered(exc, asked_at)
            else:
                self._fail_all(exc)
        except (ClosedError, RateLimitLayoutError) as exc:
            self._fail_all(exc)
        else:
            self.callers.trouble = None
            self._take(turn, {ask.lane: waiters for ask, waiters in zip(asks, behind, strict=True)})
        finally:
            self._asking = False
        if not self._closed:
            self._settle_now()

    def _take(self, turn: Turn, behind: dict[Lane, list[list[Waiter]]]) -> None:
        """Believe the answer."""
        for refusal in turn.refused:
            for waiter in behind[refusal.lane][refusal.run]:
                self.callers.refuse(waiter, refusal.wait_us / 1e6)
        for runs in behind.values():
            for run in runs:
                for waiter in run:
                    self._queue.answer(waiter)
        for grant in turn.grants:
            self._queue.hold(Slot(self._clock.local(grant.due_us), grant, grant.permits))
        self._outlook.believe(turn)
        if turn.told or self._queue.slots:
            self._bell.listen(self._gate.channel, self)
        if turn.held_until_us > turn.now_us:
            self._counts.held_until = max(self._counts.held_until, self._clock.local(turn.held_until_us))
            early = self._queue.drop_before(turn.held_until_us)
            if early:
                self._give_back(early, ())

    def _not_answered(self, exc: RedisError, asked_at: float) -> None:
        """What it may have granted is lost. Ask again in a moment, until all deadlines have passed; or do without."""
        self._counts.outages += 1
        self.callers.trouble = exc
        self._outlook.forget()
        self._outlook.ask_from(self._now() + RETRY_EVERY_S)
        if self._fallback is not None:
            self._fallback.failed(exc, asked_at)
            self._queue.drop_all()  # the share opens when nothing that Redis granted can still be used

    def _fail_all(self, exc: AegisError) -> None:
        self.callers.trouble = exc if isinstance(exc, RedisError) else None
        self._outlook.forget()
        self.callers.fail_all(exc)

    def _give_back(self, slots: Sequence[Slot], leaving: Sequence[Lane]) -> None:
        self._spawn(self._return(slots, leaving))

    async def _return(self, slots: Sequence[Slot], leaving: Sequence[Lane]) -> None:
        try:
            self._counts.returned += await self._gate.give_back(grants_of(slots), leaving)
        except (RedisError, ClosedError):
            return  # then they are lost to everybody, not doubled; and our place is lost when we do not come

    # --- what others tell ---

    def come(self) -> None:
        """We are next in line, or everything has changed: ask now."""
        self._outlook.ask_from(0.0)
        self._soon()

    def hold(self, seconds: float) -> None:
        """Somebody said hold: what we have is for moments that are not allowed any more."""
        self._counts.held_until = max(self._counts.held_until, self._now() + seconds)
        slots = self._queue.drop_all()
        if slots:
            self._give_back(slots, ())
        self.come()

    async def close(self) -> None:
        """Everybody who waits gets `ClosedError`; what is held goes back."""
        slots, leaving = self._queue.drop_all(), self._outlook.lanes
        self._fail_all(ClosedError("Redis"))
        self._closed = True
        for handle in (self._settling, self._timer):
            if handle is not None:
                handle.cancel()
        if slots or leaving:
            await self._return(slots, leaving)
