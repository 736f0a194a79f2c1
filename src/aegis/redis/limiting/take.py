"""
Callers of `allow`: those of one turn of the loop share one script call, and the reply wakes each of them.

States of a batch: open (callers join until the link writes) -> asked -> answered or failed. A caller that is cancelled
keeps its place, since its permits may have been taken; as with any `allow`, what was granted to nobody is not used.
What cannot go the short way (no connection, no room, a server not known yet) is asked by a task.

This is written for few steps: with 50 callers, each costs one object to wait on and one tuple to return.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import groupby
from typing import Any

from hiredis import ReplyError

from aegis.errors import (
    AegisError,
    RedisError,
    RedisUnavailableError,
    ReplyTimeoutError,
    ServerLostError,
)
from aegis.redis.caching.flight import fresh
from aegis.redis.connection.waiters import LinkLostError, Pending, Reply
from aegis.redis.limiting.counts import Counts
from aegis.redis.limiting.gate import Gate, Took, took_of
from aegis.redis.limiting.limit import Decision
from aegis.redis.limiting.local_share import PATIENCE_S, Fallback

_new = tuple.__new__


class Takes:
    """Serves the callers of `allow` of one limit and key."""

    def __init__(
        self,
        gate: Gate,
        counts: Counts,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        fallback: Fallback | None,
    ) -> None:
        self._gate, self._counts, self._spawn, self._fallback = gate, counts, spawn, fallback
        self._loop = asyncio.get_running_loop()
        self._batch: _Batch | None = None

    def ask(self, cost: int) -> Pending:
        """Join this turn's batch; to be awaited at once. Gives a `Decision`."""
        pending = Pending()
        pending._loop, pending.error = self._loop, None  # noqa: SLF001 - the name is asyncio's; no __init__: 0.1 µs
        batch = self._batch
        if batch is None:
            self._batch = batch = _Batch(self)
            if not self._gate.before_write(self._send):
                self._loop.call_soon(self._send)
        batch.callers.append(pending)
        batch.costs.append(cost)
        return pending

    def _send(self) -> None:
        batch, self._batch = self._batch, None
        assert batch is not None
        batch.runs = _runs(batch.costs)
        if self._fallback is not None and self._fallback.away:
            self._go_without(batch, self._fallback)
        elif not self._gate.take_now(batch.runs, batch):
            self._spawn(self.ask_slowly(batch))

    async def ask_slowly(self, batch: _Batch) -> None:
        """As a command like any other: waits for a connection, within its time."""
        asked_at = self._loop.time()
        try:
            took = await self._gate.take(batch.runs, None if self._fallback is None else PATIENCE_S)
        except (RedisUnavailableError, ServerLostError) as exc:
            self._fail(batch, exc, asked_at)
        except AegisError as exc:
            batch.fail(exc)
        else:
            batch.answer(took)

    def _fail(self, batch: _Batch, exc: RedisError, asked_at: float) -> None:
        self._counts.outages += 1
        if self._fallback is None:
            batch.fail(exc)
        else:
            self._fallback.failed(exc, asked_at)
            self._go_without(batch, self._fallback)

    def _go_without(self, batch: _Batch, fallback: Fallback) -> None:
        self._loop.call_soon(batch.wake, [fallback.decide(cost) for cost in batch.costs])

    def lost(self, batch: _Batch, exc: LinkLostError) -> None:
        """The link ended. What was never sent is asked again."""
        if exc.sent:
            self._fail(batch, ServerLostError(self._gate.address, "EVALSHA", str(exc)), self._loop.time())
        else:
            self._spawn(self.ask_slowly(batch))

    def late(self, batch: _Batch) -> None:
        """No reply in time."""
        self._fail(batch, ReplyTimeoutError(self._gate.address, "EVALSHA", "no reply in time"), self._loop.time())

    def refused(self, batch: _Batch, reply: ReplyError) -> None:
        """It had no effect: ask again as a command like any other, for which refusals mean something (READONLY)."""
        del reply
        self._spawn(self.ask_slowly(batch))

    def count(self, allowed: int, denied: int) -> None:
        """For the statistics."""
        self._counts.allowed += allowed
        self._counts.denied += denied


class _Batch:
    """Callers of one turn; stands in the link's queue as the one who waits for the reply."""

    __slots__ = ("_answered", "callers", "costs", "runs", "takes")

    def __init__(self, takes: Takes) -> None:
        self.takes, self._answered = takes, False
        self.callers: list[Pending] = []
        self.costs: list[int] = []
        self.runs: tuple[tuple[int, int], ...] = ()

    # --- what the link wants of a waiter ---

    def done(self) -> bool:
        """Whether the reply is of no use any more."""
        return self._answered

    def set_result(self, reply: Reply) -> None:
        """The reply is here; called outside of any task, so the callers are woken directly."""
        if type(reply) is int and len(self.callers) == 1:  # the most frequent case, without a list and a loop
            self._answered = True
            self.takes.count(1, 0)
            self.callers[0].set_result(_new(Decision, (True, reply, 0.0)))
        elif type(reply) is ReplyError:
            self.takes.refused(self, reply)
        else:
            self.wake(self._decisions(took_of(self.runs, reply)))

    def set_exception(self, exc: BaseException) -> None:
        """The link was lost, or time is over."""
        if isinstance(exc, LinkLostError):
            self._answered = exc.sent
            self.takes.lost(self, exc)
        else:
            self.takes.late(self)

    def wake(self, decisions: list[Decision]) -> None:
        """Give each caller its decision; only outside of any task."""
        self._answered = True
        served = 0
        for pending, decision in zip(self.callers, decisions, strict=True):
            served += decision[0]
            pending.set_result(decision)
        self.takes.count(served, len(self.callers) - served)

    # --- the same for a task ---

    def answer(self, took: list[Took]) -> None:
        """As `set_result`, from within a task: callers are woken in the loop's next turn."""
        asyncio.get_running_loop().call_soon(self.wake, self._decisions(took))

    def fail(self, exc: AegisError) -> None:
        """Every caller gets the error, each a copy of its own."""
        self._answered = True
        for pending in self.callers:
            if not pending.done():
                pending.set_exception(fresh(exc))

    def _decisions(self, took: list[Took]) -> list[Decision]:
        decisions: list[Decision] = []
        for (callers, cost), (served, left, retry_us) in zip(self.runs, took, strict=True):
            later = range((served - 1) * cost, -1, -cost)  # what those who come after each of them took
            decisions += [_new(Decision, (True, left + more, 0.0)) for more in later]
            if served < callers:
                decisions += [Decision(False, left, retry_us / 1e6)] * (callers - served)
        return decisions


def _runs(costs: list[int]) -> tuple[tuple[int, int], ...]:
    """How many next to each other ask for the same, and what."""
    first = costs[0]
    if costs.count(first) == len(costs):
        return ((len(costs), first),)
    return tuple((len(list(same)), cost) for cost, same in groupby(costs))
