"""
Who waits in this process, and which permits it has: pure state, no I/O, no clock.

A *waiter* is queued -> released, or removed (refused, timed out, cancelled). A *slot*, permits due at one moment, is
held -> used by the waiters who are first at that moment, given back while it is not due, or lost. Slots belong to no
waiter: so a cancelled waiter's permits serve whoever is next, and an urgent caller overtakes everybody here who is not
yet due. Owner of both is the dispatcher; only it calls what is here.

Permits serve at the moment at which they are due, never later: the server counts them in the windows of that moment.
"""

from __future__ import annotations

from asyncio import Future
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

from aegis.redis.limiting.gate import Grant, LaneAsk, Run
from aegis.redis.limiting.limit import Lane

#: Runs that one question describes per lane: the head of the queue. The rest is only counted.
_RUNS_MAX = 64


class Waiter:
    """One caller of `wait`. Its future gets the slot that it used; None for permits that are not of the server."""

    __slots__ = ("answered", "cost", "deadline", "future", "lane", "since", "timeout_s")

    def __init__(
        self, lane: Lane, cost: int, since: float, timeout_s: float | None, future: Future[Slot | None]
    ) -> None:
        self.lane, self.cost, self.since, self.timeout_s, self.future = lane, cost, since, timeout_s, future
        self.deadline = None if timeout_s is None else since + timeout_s
        self.answered = timeout_s is None  #: whether it is known that its deadline may be met


class Slot:
    """Permits due at one moment. `due` is loop time."""

    __slots__ = ("due", "grant", "permits")

    def __init__(self, due: float, grant: Grant, permits: int) -> None:
        self.due, self.grant, self.permits = due, grant, permits


class WaitQueue:
    """Waiters by lane, first come first served, and the slots they will use."""

    def __init__(self) -> None:
        self._lanes: tuple[OrderedDict[Waiter, None], ...] = tuple(OrderedDict() for _ in Lane)
        self._wanted = [0] * len(Lane)  # permits, by lane
        self._odd = 0  # waiters that a single run cannot describe: another cost than 1
        self._open: set[Waiter] = set()  # those not answered yet
        self.slots: deque[Slot] = deque()  # by due time
        self.held = 0  # permits in the slots

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._lanes[waiter.lane]

    def __iter__(self) -> Iterator[Waiter]:
        for lane in self._lanes:
            yield from lane

    # --- waiters ---

    def add(self, waiter: Waiter) -> None:
        """Queue it as the last of its lane."""
        self._lanes[waiter.lane][waiter] = None
        self._wanted[waiter.lane] += waiter.cost
        self._odd += waiter.cost != 1
        if not waiter.answered:
            self._open.add(waiter)

    def remove(self, waiter: Waiter) -> bool:
        """Take it out, wherever it stands; False when it is not here."""
        if waiter not in self._lanes[waiter.lane]:
            return False
        del self._lanes[waiter.lane][waiter]
        self._wanted[waiter.lane] -= waiter.cost
        self._odd -= waiter.cost != 1
        self._open.discard(waiter)
        return True

    def answer(self, waiter: Waiter) -> None:
        """Its deadline may be met: it need not be asked about again."""
        waiter.answered = True
        self._open.discard(waiter)

    @property
    def open(self) -> bool:
        """Whether there is anybody of whom it is not known whether the deadline can be met."""
        return bool(self._open)

    def first(self) -> Waiter | None:
        """Who is next."""
        for lane in self._lanes:
            if lane:
                return next(iter(lane))
        return None

    # --- slots ---

    def hold(self, slot: Slot) -> None:
        """A grant: later ones are due later, except when one is handed on."""
        if self.slots and slot.due < self.slots[-1].due:
            self.slots = deque(sorted((*self.slots, slot), key=lambda each: each.due))
        else:
            self.slots.append(slot)
        self.held += slot.permits

    def take_due(self, now: float) -> Slot | None:
        """The next slot that is due, out of the queue."""
        if self.slots and self.slots[0].due <= now:
            slot = self.slots.popleft()
            self.held -= slot.permits
            return slot
        return None

    def serve(self, slot: Slot) -> list[Waiter]:
        """Those who are first, as many as the slot's permits serve; they are out of the queue, the permits used."""
        served: list[Waiter] = []
        while slot.permits and (waiter := self.first()) is not None:
            if waiter.future.done():  # cancelled in this turn of the loop
                self.remove(waiter)
                continue
            if waiter.cost > slot.permits:
                break
            self.remove(waiter)
            slot.permits -= waiter.cost
            served.append(waiter)
        return served

    def surplus(self) -> list[Slot]:
        """Take out the permits that nobody here would use: the latest, or those too few for who is next."""
        if self._odd == 0:
            return self._cut(self.held - sum(self._wanted))
        waiters, left = iter(self), []
        waiter = next(waiters, None)
        for slot in self.slots:
            free = slot.permits
            while waiter is not None and waiter.cost <= free:
                free -= waiter.cost
                waiter = next(waiters, None)
            if free:
                left.append(Slot(slot.due, slot.grant, free))
                slot.permits -= free
        self._drop_empty()
        return left

    def drop_all(self) -> list[Slot]:
        """Take out every slot."""
        slots, self.slots, self.held = list(self.slots), deque(), 0
        return slots

    def drop_before(self, due_us: int) -> list[Slot]:
        """Take out the slots that are due before that moment of the server."""
        early = [slot for slot in self.slots if slot.grant.due_us < due_us]
        if early:
            self.slots = deque(slot for slot in self.slots if slot.grant.due_us >= due_us)
            self.held = sum(slot.permits for slot in self.slots)
        return early

    def _cut(self, permits: int) -> list[Slot]:
        cut: list[Slot] = []
        while permits > 0:
            slot = self.slots[-1]
            part = min(permits, slot.permits)
            cut.append(Slot(slot.due, slot.grant, part))
            slot.permits -= part
            permits -= part
            self.held -= part
            if not slot.permits:
                self.slots.pop()
        return cut

    def _drop_empty(self) -> None:
        self.slots = deque(slot for slot in self.slots if slot.permits)
        self.held = sum(slot.permits for slot in self.slots)

    # --- what is still to be asked for ---

    def uncovered(self) -> list[int]:
        """Permits waited for, by lane, beyond those that are held. Call `surplus` before."""
        held, missing = self.held, []
        for wanted in self._wanted:
            missing.append(max(0, wanted - held))
            held = max(0, held - wanted)
        return missing

    def asks(self, now: float) -> tuple[list[LaneAsk], list[list[list[Waiter]]]]:
        """What to ask the server, and who stands behind each run of it."""
        asks, behind = [], []
        held = self.held
        for lane, missing in zip(Lane, self.uncovered(), strict=True):
            if missing:
                runs, waiters = self._runs(lane, held, now)
                asks.append(LaneAsk(lane, missing, runs))
                behind.append(waiters)
            held = max(0, held - self._wanted[lane])
        return asks, behind

    def _runs(self, lane: Lane, held: int, now: float) -> tuple[list[Run], list[list[Waiter]]]:
        if not self._odd and not self._open:
            return [Run(self._wanted[lane] - held, 1, -1)], [[]]
        runs: list[Run] = []
        behind: list[list[Waiter]] = []
        for waiter in self._lanes[lane]:
            if held >= waiter.cost:
                held -= waiter.cost
                continue
            patience_us = -1
            if not waiter.answered and waiter.deadline is not None:
                patience_us = max(0, int((waiter.deadline - now) * 1e6))
            if runs and patience_us == -1 == runs[-1].patience_us and runs[-1].cost == waiter.cost:
                runs[-1] = runs[-1]._replace(callers=runs[-1].callers + 1)
            elif len(runs) < _RUNS_MAX:
                runs.append(Run(1, waiter.cost, patience_us))
                behind.append([])
            else:
                break
            behind[-1].append(waiter)
        return runs, behind

    def permits_before(self, lane: Lane) -> int:
        """Permits still to be asked for by those who stand before a new caller of this lane."""
        return sum(self.uncovered()[: lane + 1])


def grants_of(slots: Sequence[Slot]) -> list[Grant]:
    """What to give back to the server."""
    return [slot.grant._replace(permits=slot.permits) for slot in slots]
