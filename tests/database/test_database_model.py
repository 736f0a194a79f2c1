"""
The pool against a model, at every interleaving that hypothesis can think of.

The driver here answers when the test says so, and in the way it says: each connect, ping, reset and goodbye is a step
of its own, so a cancellation can fall before, between and after all of them. (The same pool meets the real server in
test_database_churn.py.)
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aegis.config import DatabaseConfig
from aegis.database._lease import Lease
from aegis.database._session import Trace
from aegis.database._supply import Supply
from aegis.database.pool import Pool
from aegis.errors import ClosedError, DatabaseUnavailableError

MAX, MIN, WAITING = 2, 1, 5


@dataclass(eq=False)
class Wire:
    """One connection, as the pool sees it."""

    closed: bool = False
    in_transaction: bool = False
    soiled: bool = False

    def is_closed(self) -> bool:
        return self.closed

    def is_in_transaction(self) -> bool:
        return self.in_transaction

    def terminate(self) -> None:
        self.closed = True


@dataclass(eq=False)
class Steps:
    """A driver whose every operation waits for the test. Counts what exists on the other side."""

    address: str = "model"
    pending: list[tuple[str, asyncio.Future]] = field(default_factory=list)
    connecting: int = 0
    wires: list[Wire] = field(default_factory=list)

    async def _step(self, kind: str) -> None:
        future = asyncio.get_running_loop().create_future()
        entry = (kind, future)
        self.pending.append(entry)
        try:
            await future
        finally:
            self.pending.remove(entry)

    async def connect(self) -> Wire:
        self.connecting += 1
        try:
            await self._step("connect")
        except ConnectionError as exc:
            raise DatabaseUnavailableError(self.address, "refused") from exc
        finally:
            self.connecting -= 1
        wire = Wire()
        self.wires.append(wire)
        return wire

    async def ping(self, conn: Wire) -> None:
        await self._step("ping")

    async def reset(self, conn: Wire) -> None:
        await self._step("reset")
        conn.soiled = False

    async def close(self, conn: Wire) -> None:
        try:
            await self._step("close")
        finally:
            conn.closed = True

    def there(self) -> int:
        """Connections that the server would count."""
        return self.connecting + sum(not wire.closed for wire in self.wires)


class WatchedSupply(Supply):
    """The supply, checking that a server that is away is tried by one attempt at a time."""

    def _start_one(self) -> None:
        assert self.failure is None or not self.connecting
        super()._start_one()


class Watched(Pool):
    """The pool, checking at every hand-over that it went to whoever came first."""

    def __init__(self, config: DatabaseConfig, driver: Steps, clock) -> None:
        super().__init__(config, driver, clock)
        self._supply = WatchedSupply(driver, self, self._count, clock)

    def _give(self, lease: Lease, now: float) -> None:
        waiting = {waiter: due for waiter, due in self._waiters._queue.items() if not waiter.done()}
        super()._give(lease, now)
        served = [due for waiter, due in waiting.items() if waiter.done()]
        assert served == sorted(waiting.values())[:1]


@dataclass(eq=False)
class Borrower:
    """A task that acquires one lease and keeps it until told."""

    number: int
    task: asyncio.Task
    lease: Lease | None = None
    cancelled: bool = False


class PoolModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loop.time = lambda: 0.0  # no timer fires by itself: time is a step like any other
        self.driver = Steps()
        config = DatabaseConfig(
            max_conns=MAX, min_conns=MIN, max_waiting=WAITING, acquire_timeout=1e6, max_conn_idle_time=1e6
        )
        self.pool = Watched(config, self.driver, clock=lambda: 1000.0)
        self.borrowers: list[Borrower] = []
        self.count = 0
        self.pool._open = True
        self.pool._supply.start()

    def turn(self, times: int = 1) -> None:
        async def turns() -> None:
            for _ in range(times):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    async def _borrow(self, number: int) -> None:
        borrower = next(b for b in self.borrowers if b.number == number)
        borrower.lease = self.pool.take() or await self.pool.acquire()

    # --- what users do ---

    @rule(turns=st.integers(0, 2))
    def borrow(self, turns):
        self.count += 1
        borrower = Borrower(self.count, None)  # the task needs to find its own record
        self.borrowers.append(borrower)
        borrower.task = self.loop.create_task(self._borrow(self.count))
        self.turn(turns)

    @precondition(lambda self: any(b.lease is None and not b.task.done() for b in self.borrowers))
    @rule(data=st.data(), turns=st.integers(0, 2))
    def cancel(self, data, turns):
        waiting = [b for b in self.borrowers if b.lease is None and not b.task.done()]
        borrower = data.draw(st.sampled_from(waiting))
        borrower.task.cancel()
        borrower.cancelled = True
        self.turn(turns)

    @precondition(lambda self: any(b.lease for b in self.borrowers))
    @rule(
        data=st.data(),
        how=st.sampled_from(["clean", "clean", "dirty", "close", "broken", "transaction", "dead", "expired"]),
        turns=st.integers(0, 2),
    )
    def give_back(self, data, how, turns):
        borrower = data.draw(st.sampled_from([b for b in self.borrowers if b.lease]))
        lease, borrower.lease = borrower.lease, None
        self.borrowers.remove(borrower)
        lease.trace = {"dirty": Trace.RESET, "close": Trace.CLOSE}.get(how, Trace.NONE)
        lease.broken = how == "broken"
        lease.conn.soiled = how in {"dirty", "close", "broken", "transaction"}
        lease.conn.in_transaction = how == "transaction"
        lease.conn.closed = lease.conn.closed or how == "dead"
        lease.expires_at = 0.0 if how == "expired" else lease.expires_at
        self.in_loop(lambda: self.pool.release(lease))
        self.turn(turns)

    # --- what the server and the time do ---

    @precondition(lambda self: self.driver.pending)
    @rule(data=st.data(), well=st.booleans(), turns=st.integers(0, 2))
    def answer(self, data, well, turns):
        kind, future = data.draw(st.sampled_from(self.driver.pending))
        if not future.done():
            if well or kind == "close":
                future.set_result(None)
            else:
                future.set_exception(TimeoutError() if kind == "ping" else ConnectionRefusedError())
        self.turn(turns)

    @precondition(lambda self: self.pool._idle)
    @rule(data=st.data(), how=st.sampled_from(["dead", "old", "expired"]))
    def age(self, data, how):
        lease = data.draw(st.sampled_from(self.pool._idle))
        if how == "dead":
            lease.conn.closed = True
        elif how == "expired":
            lease.expires_at = 0.0
        else:
            for each in self.pool._idle:
                each.idle_since -= 5.0

    @rule(turns=st.integers(0, 2))
    def upkeep(self, turns):
        self.in_loop(self.pool._upkeep)
        self.pool._timers.pop("upkeep").cancel()
        self.turn(turns)

    @precondition(lambda self: self.pool._supply.planned)
    @rule(turns=st.integers(0, 2))
    def retry(self, turns):
        self.pool._supply.planned.cancel()
        self.in_loop(self.pool._supply.retry)
        self.turn(turns)

    def in_loop(self, call) -> None:
        async def run() -> None:
            call()

        self.loop.run_until_complete(run())

    # --- what must hold after every step ---

    @invariant()
    def never_more_than_the_maximum(self):
        assert self.driver.there() <= MAX
        assert self.pool.size <= MAX

    @invariant()
    def nobody_shares_a_connection(self):
        held = [id(b.lease) for b in self.borrowers if b.lease]
        assert len(held) == len(set(held))
        assert not {id(lease) for lease in self.pool._idle} & set(held)

    @invariant()
    def nobody_gets_what_another_left_behind(self):
        assert not any(lease.conn.soiled for lease in [*self.pool._idle, *self.pool._held])

    @invariant()
    def cancellations_are_not_swallowed(self):
        for borrower in list(self.borrowers):
            if borrower.task.done() and borrower.lease is None:
                self.borrowers.remove(borrower)
                if borrower.cancelled:
                    assert borrower.task.cancelled()
                else:
                    error = borrower.task.exception()
                    assert type(error).__name__ in {"DatabaseUnavailableError", "PoolFullError"}, error

    @invariant()
    def whoever_waits_will_be_served(self):
        alive = [waiter for waiter in self.pool._waiters if not waiter.done()]
        if alive:
            assert not self.pool._idle
            busy = self.pool._held or self.pool._closing or self.pool._supply.connecting or self.pool._supply.planned
            assert busy, "waiters, and nothing that could ever serve them"
            if self.pool._supply.failure is None and self.pool.size < MAX:
                assert self.pool._supply.connecting, "a free slot, a waiter, and nobody connects"

    def teardown(self) -> None:
        """Whatever happened: everything given back, the pool is whole and hands out its maximum once more."""
        for borrower in self.borrowers:
            if borrower.lease is None:
                borrower.task.cancel()
        self.settle()
        for borrower in self.borrowers:
            if borrower.lease is not None and borrower.lease in self.pool._held:
                self.in_loop(lambda lease=borrower.lease: self.pool.release(lease))
        self.settle()
        assert not self.pool._held
        assert not self.pool._waiters
        again = [self.loop.create_task(self.pool.acquire()) for _ in range(MAX)]
        self.settle()
        assert all(task.done() for task in again)
        assert len({task.result() for task in again}) == MAX
        for task in again:
            self.in_loop(lambda task=task: self.pool.release(task.result()))
        closing = self.loop.create_task(self.pool.close())
        self.settle()
        assert closing.done()
        assert (self.pool.size, self.driver.there()) == (0, 0)
        self.loop.close()

    def settle(self) -> None:
        for _ in range(40):
            if self.pool._supply.planned:
                self.pool._supply.planned.cancel()
                self.in_loop(self.pool._supply.retry)
            for _, future in list(self.driver.pending):
                if not future.done():
                    future.set_result(None)
            self.turn(3)


PoolModel.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPoolModel = pytest.mark.timeout(120)(PoolModel.TestCase)


async def test_closing_a_pool_whose_connect_has_not_begun_leaves_nothing():
    """A connect task that is cancelled before its first step counts no longer; close returns and the size is zero."""
    pool = Pool(DatabaseConfig(max_conns=1, min_conns=0), Steps())
    pool._open = True
    pool._supply.start()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    assert pool.size == 1
    closing = asyncio.create_task(pool.close())
    await asyncio.wait([closing, waiting], timeout=5)
    assert closing.done()
    assert isinstance(waiting.exception(), ClosedError)
    assert pool.size == 0


async def test_closing_while_a_caller_asks_a_connection_tells_him():
    """He does not join a line that nobody serves any more, and closing does not wait for what he found dead."""
    driver = Steps()
    pool = Pool(DatabaseConfig(max_conns=2, min_conns=0, close_timeout=3600), driver)
    pool._open = True
    pool._supply.start()
    first = asyncio.create_task(pool.acquire())
    while not driver.pending:
        await asyncio.sleep(0)
    driver.pending[0][1].set_result(None)
    lease = await first
    pool.release(lease)
    lease.idle_since -= 5.0
    asking = asyncio.create_task(pool.acquire())
    while not driver.pending:
        await asyncio.sleep(0)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    driver.pending[0][1].set_exception(TimeoutError())
    await asyncio.wait([asking, closing], timeout=10)
    assert isinstance(asking.exception(), ClosedError)
    assert closing.done()


async def test_who_asked_a_dead_connection_first_keeps_its_place():
    """The silent connection costs the first caller a ping, not its place before those who came meanwhile."""
    driver = Steps()
    pool = Pool(DatabaseConfig(max_conns=1, min_conns=0), driver)
    pool._open = True
    pool._supply.start()
    first = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    driver.pending[0][1].set_result(None)
    lease = await first
    pool.release(lease)
    lease.idle_since -= 5.0
    order: list[str] = []

    async def ask(name: str) -> None:
        got = await pool.acquire()
        order.append(name)
        pool.release(got)

    early = asyncio.create_task(ask("early"))
    await asyncio.sleep(0)
    assert driver.pending[0][0] == "ping"
    late = asyncio.create_task(ask("late"))
    await asyncio.sleep(0)
    driver.pending[0][1].set_exception(TimeoutError())
    while not (early.done() and late.done()):
        for _, future in list(driver.pending):
            if not future.done():
                future.set_result(None)
        await asyncio.sleep(0)
    assert order == ["early", "late"]
    closing = asyncio.create_task(pool.close())
    while not closing.done():
        for _, future in list(driver.pending):
            if not future.done():
                future.set_result(None)
        await asyncio.sleep(0)
