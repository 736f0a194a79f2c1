"""One flight: what callers of one process do to each other, which is nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import traceback
from functools import partial

import pytest

from aegis.config import RedisConfig
from aegis.errors import CacheTypeError, ClosedError, LoadFailedError, LoadTimeoutError
from aegis.redis import Cache, Redis
from aegis.testing import until


class Gate:
    """A loader that waits to be opened."""

    def __init__(self, value: object = 1) -> None:
        self.value, self.began, self.open, self.cancelled, self.calls = value, asyncio.Event(), asyncio.Event(), 0, 0

    async def load(self) -> object:
        self.calls += 1
        self.began.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.mark.parametrize("leaving", [0, 1, 4])
async def test_a_cancelled_caller_takes_nobody_along(redis, leaving):
    """Whichever caller is cancelled, the first included, the others get the value of the one load."""
    cache, gate = Cache(redis), Gate()
    callers = [asyncio.create_task(cache.get_or_set("k", gate.load, int)) for _ in range(5)]
    await gate.began.wait()
    callers[leaving].cancel()
    gate.open.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(outcomes.pop(leaving), asyncio.CancelledError)
    assert outcomes == [1] * 4
    assert (gate.calls, gate.cancelled) == (1, 0)


async def test_when_all_have_left_the_load_ends(redis):
    """The loader is cancelled, nothing is reported as lost, the lease is free, and the next call loads."""
    reports: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    cache, gate = Cache(redis), Gate()
    callers = [asyncio.create_task(cache.get_or_set("k", gate.load, int)) for _ in range(3)]
    await gate.began.wait()
    for caller in callers:
        caller.cancel()
    assert all(
        isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*callers, return_exceptions=True)
    )
    assert await cache.get_or_set("k", lambda: 2, int) == 2
    assert (gate.calls, gate.cancelled) == (1, 1)
    assert await redis.execute("EXISTS", "aegis:lease:{k}") == 0
    gc.collect()
    assert reports == []


async def test_nobody_boards_a_load_that_is_being_cancelled(redis):
    """The loader takes its time to end after the last caller has left: who asks meanwhile gets a load of his own."""
    cache, began, ended = Cache(redis), asyncio.Event(), asyncio.Event()

    async def slow_to_end() -> int:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await ended.wait()
        return 1

    caller = asyncio.create_task(cache.get_or_set("k", slow_to_end, int))
    await began.wait()
    cancelled = cache._core.loads.flights["k"]
    load = cancelled.task
    caller.cancel()
    await asyncio.sleep(0)
    assert not load.done()
    assert "k" not in cache._core.loads.flights
    assert await cache.get_or_set("k", lambda: 2, int) == 2
    ended.set()
    await asyncio.gather(caller, load, return_exceptions=True)
    assert await cache.get("k", int) == 2


async def test_a_caller_cancelled_as_the_error_arrives_loses_nothing(redis):
    """The outcome of a future whose caller has just been cancelled is not reported as never retrieved."""
    reports: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    cache, gate = Cache(redis), Gate(ValueError("upstream"))
    caller = asyncio.create_task(cache.get_or_set("k", gate.load, int))
    other = asyncio.create_task(cache.get_or_set("k", gate.load, int))
    await gate.began.wait()
    flight = cache._core.loads.flights["k"]
    gate.open.set()
    while not any(future.done() for future in flight._waiting):
        await asyncio.sleep(0)
    caller.cancel()
    outcomes = await asyncio.gather(caller, other, return_exceptions=True)
    assert isinstance(outcomes[1], ValueError)
    del flight, caller, other, outcomes
    gc.collect()
    assert reports == []


async def test_errors_are_everybodys_own(redis):
    """Each caller gets an exception of its own whose traceback shows the loader once and does not grow."""
    cache, gate = Cache(redis), Gate(KeyError("000000"))
    callers = [asyncio.create_task(cache.get_or_set("k", gate.load, int)) for _ in range(10)]
    await gate.began.wait()
    gate.open.set()
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert gate.calls == 1
    assert len({id(error) for error in errors}) == 10
    assert {(type(error), error.args) for error in errors} == {(KeyError, ("000000",))}
    lengths = {len(traceback.extract_tb(error.__traceback__)) for error in errors}
    assert len(lengths) == 1
    assert all("load" in [frame.name for frame in traceback.extract_tb(error.__traceback__)] for error in errors)


class CodeError(Exception):
    """Takes other arguments than it keeps."""

    def __init__(self, code: str) -> None:
        super().__init__(f"the upstream says {code}")
        self.code = code


class TwoArgumentsError(Exception):
    """Cannot be made from what it keeps."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


@pytest.mark.parametrize(
    "error",
    [CodeError("EGW00201"), TwoArgumentsError("EGW00201", "too fast"), OSError(5, "io"), UnicodeError("u")],
    ids=lambda error: type(error).__name__,
)
async def test_errors_of_any_class_are_copied(redis, error):
    """Also those whose constructor cannot be called again: the same text, the same attributes, one object each."""
    cache, gate = Cache(redis), Gate(error)
    await cache.get("warm")
    await until(lambda: cache.stats().local_trusted)  # with its link up, the process remembers errors by itself
    callers = [asyncio.create_task(cache.get_or_set("k", gate.load, int)) for _ in range(3)]
    await gate.began.wait()
    gate.open.set()
    errors = [*await asyncio.gather(*callers, return_exceptions=True)]
    with pytest.raises(type(error)) as caught:
        await cache.get_or_set("k", gate.load, int)
    errors.append(caught.value)
    assert {(type(each), str(each), getattr(each, "code", ""), getattr(each, "errno", 0)) for each in errors} == {
        (type(error), str(error), getattr(error, "code", ""), getattr(error, "errno", 0))
    }
    assert len({id(each) for each in (*errors, error)}) == 5


async def test_closing_before_a_load_began_leaves_nobody_waiting(valkey_server):
    """A load that is cancelled before its first step has an outcome, too."""
    async with Redis(RedisConfig(url=valkey_server.url)) as redis:
        await redis.execute("FLUSHALL")
        cache, gate = Cache(redis), Gate()
        await cache.get("warm")
        callers = [asyncio.create_task(cache.get_or_set("k", gate.load, int)) for _ in range(3)]
        many = asyncio.create_task(cache.get_or_set_many(["a", "b"], lambda _: {}, int))
        while not cache._core.loads.flights:  # to the turn: it has not begun yet
            await asyncio.sleep(0)
        closing = asyncio.create_task(redis.close())
        outcomes = await asyncio.wait_for(asyncio.gather(*callers, many, return_exceptions=True), 5)
        await closing
    assert {type(each) for each in outcomes} <= {ClosedError}


async def test_an_error_keeps_the_next_second_quiet(redis):
    """For `error_ttl_s` nobody loads again, in no cache of the fleet; then somebody does."""
    cache, other, calls = Cache(redis), Cache(redis), 0

    def load() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(5, "upstream")
        return calls

    for each in (cache, cache, other, other):
        with pytest.raises(OSError, match="upstream"):
            await each.get_or_set("k", load, int, error_ttl_s=0.3)
    assert calls == 1
    while await redis.execute("EXISTS", "aegis:lease:{k}"):
        await asyncio.sleep(0.01)
    assert await other.get_or_set("k", load, int) == 2


async def test_an_error_told_by_another_process_is_remembered(redis):
    """Who was told once does not ask for it again with every call."""
    first, second = Cache(redis), Cache(redis)
    await second.get("warm")
    await until(lambda: second.stats().local_trusted)
    for cache in (first, second):
        with pytest.raises(ZeroDivisionError):
            await cache.get_or_set("k", lambda: 1 // 0, int, error_ttl_s=60)
    before = redis.stats().commands
    for _ in range(10):
        with pytest.raises(ZeroDivisionError):
            await second.get_or_set("k", lambda: 1 // 0, int, error_ttl_s=60)
    assert second.stats().loads == 0
    assert redis.stats().commands - before == 20  # GET and PTTL, each time


async def test_an_error_is_forgotten_when_its_end_may_have_been_missed(redis):
    """The link was lost for a moment: that somebody set or deleted the key would not have been heard."""
    cache = Cache(redis)
    await cache.get("the first use")
    await until(lambda: cache._core.tether.hears)
    with pytest.raises(ZeroDivisionError):
        await cache.get_or_set("k", lambda: 1 // 0, int, error_ttl_s=60)
    await redis.execute("DEL", "aegis:lease:{k}")  # tells nobody
    with pytest.raises(ZeroDivisionError):
        await cache.get_or_set("k", lambda: 2, int)
    cache._core.tether._feed.renew("for this test")
    await until(lambda: not cache._core.tether.hears)
    await until(lambda: cache._core.tether.hears)
    assert await cache.get_or_set("k", lambda: 2, int) == 2


async def test_an_error_that_cannot_be_rebuilt_is_told_in_words(redis):
    """A class that formats its arguments would say them twice: another process gets LoadFailedError instead."""
    first, second = Cache(redis), Cache(redis)
    with pytest.raises(CodeError):
        await first.get_or_set("k", partial(fail, "EGW00201"), int)
    with pytest.raises(LoadFailedError, match=r"CodeError: the upstream says EGW00201$"):
        await second.get_or_set("k", partial(fail, "EGW00201"), int)


def fail(code: str) -> None:
    raise CodeError(code)


async def test_without_error_ttl_the_next_caller_loads(redis):
    """Zero means: remember nothing."""
    cache = Cache(redis)
    with pytest.raises(ZeroDivisionError):
        await cache.get_or_set("k", lambda: 1 // 0, int, error_ttl_s=0)
    assert await cache.get_or_set("k", lambda: 1, int) == 1


async def test_setting_a_value_ends_the_quiet(redis):
    """Who sets or deletes a key knows better than an old error."""
    cache, other = Cache(redis), Cache(redis)
    with pytest.raises(ZeroDivisionError):
        await cache.get_or_set("k", lambda: 1 // 0, int, error_ttl_s=60)
    await other.delete("k")
    async with asyncio.timeout(1):
        while True:
            try:
                assert await cache.get_or_set("k", lambda: 2, int) == 2
                break
            except ZeroDivisionError:  # until the announcement is here
                await asyncio.sleep(0.001)


async def test_a_hung_loader_gives_the_key_back(redis):
    """At its deadline everybody gets LoadTimeoutError, even if the loader ignores being cancelled; others may load."""
    cache, never = Cache(redis, load_timeout_s=0.1), asyncio.Event()

    async def hang() -> int:
        while True:
            try:
                await never.wait()
                return 0
            except asyncio.CancelledError:
                pass

    outcomes = await asyncio.gather(
        *(cache.get_or_set("k", hang, int, error_ttl_s=0) for _ in range(5)), return_exceptions=True
    )
    assert [type(each) for each in outcomes] == [LoadTimeoutError] * 5
    assert await cache.get_or_set("k", lambda: 1, int) == 1
    never.set()


async def test_hung_loaders_do_not_use_up_the_places(redis):
    """Loaders that ignore being cancelled are left behind; the bound of concurrent loads does not become a wall."""
    cache, never = Cache(redis, load_timeout_s=0.1, concurrent_loads=2), asyncio.Event()

    async def hang(*_: object) -> dict[str, int]:
        while not never.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await never.wait()
        return {}

    outcomes = await asyncio.gather(
        cache.get_or_set("a", hang), cache.get_or_set_many(["b", "c"], hang), return_exceptions=True
    )
    assert [type(each) for each in outcomes] == [LoadTimeoutError] * 2
    assert await cache.get_or_set("d", lambda: 1, int) == 1
    assert await cache.get_or_set_many(["e"], lambda _: {"e": 1}, int) == {"e": 1}
    never.set()


async def test_a_loader_that_is_cancelled_from_within_is_an_error(redis):
    """Callers who were not cancelled do not get CancelledError."""
    cache = Cache(redis)

    async def load() -> int:
        raise asyncio.CancelledError

    with pytest.raises(LoadFailedError, match="'k'"):
        await cache.get_or_set("k", load, int)


async def test_set_during_a_load_wins(redis):
    """The callers of the load get the newer value; a later caller reads it."""
    cache, gate = Cache(redis), Gate(1)
    caller = asyncio.create_task(cache.get_or_set("k", gate.load, int))
    await gate.began.wait()
    await cache.set("k", 2)
    gate.open.set()
    assert await caller == 2
    assert await cache.get("k", int) == 2
    assert cache.stats().refused_stores == 1


async def test_after_a_delete_nobody_boards_the_old_load(redis):
    """A caller who asks after the delete gets a value loaded after it."""
    cache, old, new = Cache(redis), Gate("old"), Gate("new")
    new.open.set()
    before = asyncio.create_task(cache.get_or_set("k", old.load, str))
    await old.began.wait()
    await cache.delete("k")
    assert await cache.get_or_set("k", new.load, str) == "new"
    old.open.set()
    assert await before == "new"  # its own was refused, and something newer is there
    assert await cache.get("k", str) == "new"


@pytest.mark.parametrize("local_entries", [0, 1000])
@pytest.mark.parametrize("what", ["delete", "set", "invalidate"])
async def test_after_a_change_elsewhere_nobody_boards_the_old_load(redis, what, local_entries):
    """Another process deletes, sets or invalidates: who asks here from then on is not given what was loaded before."""
    cache, other = Cache(redis, local_entries=local_entries), Cache(redis)
    old, new, tags = Gate("old"), Gate("new"), ("t",) if what == "invalidate" else ()
    new.open.set()
    await cache.get("warm")
    await until(lambda: cache._core.tether.hears)
    await other.set("another", 1, tags=("t",))  # that a tag comes to be is a change, too
    await cache._core.tether._feed.barrier()
    before = asyncio.create_task(cache.get_or_set("k", old.load, str, tags=tags))
    await old.began.wait()
    await cache._core.tether._feed.barrier()
    assert "k" in cache._core.loads.flights
    change = {"delete": partial(other.delete, "k"), "set": partial(other.set, "k", "new")}
    await change.get(what, partial(other.invalidate, "t"))()
    await until(lambda: "k" not in cache._core.loads.flights)
    if what == "invalidate":  # the lease is held: the second load begins when the first one ends
        old.open.set()
        await before
    assert await cache.get_or_set("k", new.load, str, tags=tags) == "new"
    old.open.set()
    assert await before == ("old" if what == "invalidate" else "new")
    assert await cache.get("k", str) == "new"


async def test_invalidating_a_tag_during_a_load_wins(redis):
    """What was loaded before the invalidation is not served after it, here or elsewhere."""
    cache, other, gate = Cache(redis), Cache(redis), Gate("old")
    before = asyncio.create_task(cache.get_or_set("k", gate.load, str, tags=("x",)))
    await gate.began.wait()
    await other.invalidate("x")
    gate.open.set()
    assert await before == "old"
    assert await other.get("k", str) is None
    assert await cache.get("k", str) is None
    assert await cache.get_or_set("k", lambda: "new", str, tags=("x",)) == "new"
    assert await other.get("k", str) == "new"


async def test_loads_within_loads_do_not_wait_for_each_other(redis):
    """A loader that uses the cache gets through even when every place for concurrent loads is taken."""
    cache = Cache(redis, concurrent_loads=2)

    async def outer(n: int) -> int:
        return await cache.get_or_set(f"inner{n}", lambda: n, int) + 1

    async with asyncio.timeout(5):
        values = await asyncio.gather(*(cache.get_or_set(f"outer{n}", lambda n=n: outer(n), int) for n in range(10)))
    assert values == list(range(1, 11))


async def test_concurrent_loads_are_bounded(redis):
    """No more loaders run at once than were allowed."""
    cache, running, most = Cache(redis, concurrent_loads=3), 0, 0

    async def load() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        return 1

    await asyncio.gather(*(cache.get_or_set(f"k{n}", load, int) for n in range(20)))
    assert most == 3


async def test_callers_with_different_types_share_the_load(redis):
    """Each gets the value as the type that it asked for."""
    cache, gate = Cache(redis), Gate([1, 2])
    first = asyncio.create_task(cache.get_or_set("k", gate.load, list[int]))
    await gate.began.wait()
    second = asyncio.create_task(cache.get_or_set("k", gate.load, tuple[int, ...]))
    await until(lambda: cache.stats().joined)
    gate.open.set()
    assert (await first, await second) == ([1, 2], (1, 2))
    assert gate.calls == 1


async def test_a_loader_of_the_wrong_type_is_told_so(redis):
    """What it returns is checked when it is loaded, not when somebody reads it later; nothing is stored."""
    cache = Cache(redis)
    with pytest.raises(CacheTypeError, match=r"'k'.*str"):
        await cache.get_or_set("k", lambda: "text", int)
    with pytest.raises(CacheTypeError, match="object cannot be encoded"):
        await cache.get_or_set("o", object, error_ttl_s=0)
    assert await cache.get("k") is None


async def test_closing_ends_loads_and_says_so(valkey_server):
    """Callers of a load that is under way when Redis is closed get ClosedError; the lease is released."""
    async with Redis(RedisConfig(url=valkey_server.url)) as redis:
        cache, gate = Cache(redis), Gate()
        caller = asyncio.create_task(cache.get_or_set("closing", gate.load, int))
        await gate.began.wait()
    with pytest.raises(ClosedError):
        await caller
    async with Redis(RedisConfig(url=valkey_server.url)) as redis:
        assert await redis.execute("EXISTS", "aegis:lease:{closing}") == 0
