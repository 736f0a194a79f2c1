"""The blocking objects: derived from the async ones, with the same names, results and errors."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import signal
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

import aegis.sync as sync
from aegis.config import Config, DatabaseConfig, RedisConfig
from aegis.errors import (
    AegisError,
    ClosedError,
    QueryError,
    RateLimitTimeoutError,
    RedisUnavailableError,
    WrongThreadError,
)
from aegis.redis import Rate, RateLimit, Update
from aegis.sync import _derive
from aegis.testing import until_sync
from aegis.upstream.simulator import Market, Simulator

TWINS = list(_derive.twins.items())
LIMIT = RateLimit("sync", Rate(5, per=1))


@pytest.fixture
def redis(valkey_server):
    with sync.Redis(RedisConfig(url=valkey_server.url)) as redis:
        redis.execute("FLUSHALL")
        yield redis


@pytest.fixture
def database(postgres_server):
    with sync.Database(DatabaseConfig(url=postgres_server.url, min_conns=1)) as database:
        yield database


# --- one surface ------------------------------------------------------------------------------------------------------


def public(cls: type) -> dict[str, object]:
    return {name: member for name, member in inspect.getmembers_static(cls) if not name.startswith("_")}


@pytest.mark.parametrize(("original", "twin"), TWINS, ids=[twin.__name__ for _, twin in TWINS])
def test_both_surfaces_have_the_same_members_with_the_same_parameters(original, twin):
    """What is added to an async class is there at once; nothing else is."""
    data = {name for name, member in public(original).items() if not (callable(member) or isinstance(member, property))}
    missing = {name for owner, name in _derive.NOT_OFFERED if owner == original.__name__}
    assert missing <= public(original).keys()
    assert public(twin).keys() == public(original).keys() - data - missing
    for name, member in public(original).items():
        if inspect.isfunction(member) and name not in missing:
            assert inspect.signature(getattr(twin, name)) == inspect.signature(member), name
            assert getattr(twin, name).__doc__ == member.__doc__
            assert not inspect.iscoroutinefunction(getattr(twin, name))
    for asynchronous, blocking in (("__aenter__", "__enter__"), ("__aiter__", "__iter__"), ("__anext__", "__next__")):
        assert hasattr(original, asynchronous) == hasattr(twin, blocking)


def test_every_class_that_a_twin_gives_has_a_twin():
    """No coroutine ever reaches the caller: what methods and attributes return is plain, or blocking."""
    for original, _ in TWINS:
        for name, member in public(original).items():
            function = (
                member.fget if isinstance(member, property) else inspect.unwrap(member) if callable(member) else None
            )
            if function is None or (original.__name__, name) in _derive.NOT_OFFERED:
                continue
            for returned in classes_in(typing.get_type_hints(function).get("return")):
                awaits = any(inspect.iscoroutinefunction(part) for part in vars(returned).values())
                assert not awaits or returned in _derive.twins, f"{original.__name__}.{name} gives {returned}"


def classes_in(hint: object) -> set[type]:
    inner = set().union(*map(classes_in, typing.get_args(hint)), set())
    return inner | ({hint} if isinstance(hint, type) and hint.__module__.startswith("aegis.") else set())


def test_what_cannot_block_says_where_to_go(redis):
    """redis-py's own client is asyncio's."""
    with pytest.raises(AttributeError, match=r"redis\.Redis"):
        _ = redis.raw


# --- the same results and errors --------------------------------------------------------------------------------------


def test_limits_are_the_same_limits(redis):
    """Types, waiting, refusal."""
    limiter = sync.RateLimiter(redis)
    for left in (4, 3, 2, 1, 0):
        assert tuple(limiter.allow(LIMIT))[:2] == (True, left)
    assert limiter.allow(LIMIT).allowed is False
    with pytest.raises(RateLimitTimeoutError) as refused:
        limiter.wait(LIMIT, timeout=0.01)
    assert 0 < refused.value.retry_after_s <= 1.1
    assert 0 < limiter.wait(LIMIT) <= 1.5
    assert limiter.stats().granted == 6


def test_threads_share_one_limit(redis):
    """Forty waits from eight threads at twenty a second: a window lies between the first and the last, none is lost."""
    limiter = sync.RateLimiter(redis)
    limit = RateLimit("threads", Rate(20, per=1), pad=0.0)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        waited = list(pool.map(lambda _: limiter.wait(limit), range(40)))
    assert len(waited) == limiter.stats().granted == 40
    assert time.monotonic() - started >= 1.0


class Stock(msgspec.Struct):
    name: str


def test_cache_loads_with_a_plain_function_that_may_block_and_call_back(redis):
    """It runs in a thread of its own, once for all threads that ask."""
    cache, callers, loads = sync.Cache(redis), 8, []
    together = threading.Barrier(callers)

    def load() -> Stock:
        loads.append(threading.current_thread().name)
        time.sleep(0.05)  # a loader that blocks, as loaders do
        redis.execute("SET", "called-back", "yes")
        return Stock("삼성전자")

    def ask(_: int) -> Stock:
        together.wait()
        return cache.get_or_set("stock:005930", load, Stock, ttl=60)

    with ThreadPoolExecutor(callers) as pool:
        assert {stock.name for stock in pool.map(ask, range(callers))} == {"삼성전자"}
    assert len(loads) == 1
    assert loads[0].startswith("aegis-sync-call")
    assert redis.execute("GET", "called-back") == b"yes"
    assert cache.get("stock:005930", Stock) == Stock("삼성전자")
    assert cache.get_or_set_many(["a", "b"], lambda keys: {key: key * 2 for key in keys}, str, ttl=60) == {
        "a": "aa",
        "b": "bb",
    }


def test_a_loader_that_fails_raises_what_it_raised(redis):
    """The same class, in the caller's thread."""

    def load() -> int:
        raise LookupError("no such stock")

    with pytest.raises(LookupError, match="no such stock"):
        sync.Cache(redis).get_or_set("k", load, int, ttl=60, error_ttl_s=0)


def test_cached_decorates_plain_functions(redis):
    """Typed by the annotation, with `forget`."""
    calls = []

    @sync.Cache(redis).cached(key="chart:{code}", ttl=60)
    def chart(code: str) -> list[int]:
        calls.append(code)
        return [1, 2]

    assert chart("005930") == chart("005930") == [1, 2]
    assert calls == ["005930"]
    assert chart.__name__ == "chart"
    assert chart.forget("005930") is True
    chart("005930")
    assert len(calls) == 2


def test_limited_decorates_plain_functions_and_leaves_their_arguments_alone(redis):
    """A callback of the user's stays what it is, a blocking object stays blocking, by position and by name."""
    limiter = sync.RateLimiter(redis)

    @limiter.limited(LIMIT)
    def call(client: sync.Redis, back: Callable[[int], Any], *, other: sync.Redis) -> Any:
        assert client is other is redis
        return back(int(client.execute("INCR", "n")))

    assert call(redis, lambda number: number + 1, other=redis) == 2
    assert limiter.peek(LIMIT).used == 1


def test_rows_transactions_and_their_errors(database):
    """Commit, rollback, retry with a plain function, typed rows, streams."""
    database.execute("create temp table if not exists nothing ()")
    database.execute("drop table if exists sync_t")
    database.execute("create table sync_t (code text primary key, price int)")
    with database.transaction() as tx:
        assert type(tx) is sync.Transaction
        tx.execute("insert into sync_t values ('a', 1)")

    def insert_and_fail() -> None:
        with database.transaction() as tx:
            tx.execute("insert into sync_t values ('b', 2)")
            raise LookupError

    with pytest.raises(LookupError):
        insert_and_fail()
    assert database.fetch_value("select count(*) from sync_t") == 1

    def raise_price(tx: sync.Transaction) -> int:
        tx.execute("update sync_t set price = price + 1")
        return tx.fetch_value("select price from sync_t")

    assert database.run_tx(raise_price) == 2
    assert database.upsert("sync_t", [("a", 3), ("c", 4)], key=("code",), columns=("code", "price")).inserted == 1
    assert [row["price"] for row in database.iterate("select price from sync_t order by code", batch=1)] == [3, 4]
    with pytest.raises(QueryError) as refused:
        database.execute("select 1/0")
    assert refused.value.sqlstate == "22012"
    assert database.health().ok


def test_broadcast_is_an_iterator(redis):
    """Updates of the same type; the end of the block ends it."""
    with sync.PubSub(redis, topic="sync") as bus:
        with bus.subscribe("005930", type=int) as updates:
            bus.publish("005930", 71_000, urgent=True)
            update = next(updates)
            assert type(update) is Update
            assert (update.key, update.value) == ("005930", 71_000)
        with pytest.raises(StopIteration):
            next(updates)
        assert bus.last("005930", int) == 71_000


def test_upstreams_over_one_limit_and_one_pool(redis):
    """A client of KIS, a derived HTTP client, a stream of chunks."""
    with ThreadPoolExecutor(1) as pool:
        ready, done = threading.Event(), threading.Event()
        urls: list[str] = []

        async def serve() -> None:
            async with Simulator(Market.generated()) as simulator:
                urls.append(simulator.url)
                ready.set()
                await asyncio.to_thread(done.wait)

        serving = pool.submit(asyncio.run, serve())
        assert ready.wait(20)
        try:
            environ = {"KIS_APP_KEY": "key", "KIS_APP_SECRET": "secret", "KIS_BASE_URL": urls[0]}
            kis_config = Config.load({**environ, "NAVER_BASE_URL": urls[0]}, None)
            with sync.HttpClient() as http:
                limiter, cache = sync.RateLimiter(redis), sync.Cache(redis)
                kis = sync.KisClient(http, limiter, cache, kis_config.kis)
                assert kis.price("005930").price > 0
                assert kis.limit.name == "kis"
                paid = http.with_rate_limiter(limiter, LIMIT)
                assert type(paid) is sync.HttpClient
                response = paid.get(f"{urls[0]}/api/realtime/domestic/stock/005930")
                assert response.status == 200
                assert limiter.peek(LIMIT).used == 1
                with http.stream("GET", f"{urls[0]}/api/realtime/domestic/stock/005930") as streamed:
                    assert b"005930" in b"".join(streamed)
                naver = sync.NaverClient(http, limiter, cache, kis_config.naver)
                watched = naver.watch(["005930"])
                assert next(watched)[0].code == "005930"
                watched.close()
        finally:
            done.set()
        serving.result(20)


def test_the_runtime_gives_blocking_rooms():
    """Every room; the same object for the same room; closed after the block."""
    config = Config.load({"REDIS_URL": "embedded:"}, None)
    with sync.Runtime(config, database=False) as rt:
        assert type(rt) is sync.Runtime
        assert type(rt.redis) is sync.Redis
        assert rt.redis is rt.redis
        assert rt.limiter.wait(LIMIT) < 1
        rt.cache.set("k", 1, ttl=60)
        assert rt.cache.get("k", int) == 1
        with pytest.raises(ClosedError):
            _ = rt.db
        redis = rt.redis
    with pytest.raises(AegisError):
        redis.execute("GET", "k")


def test_what_cannot_be_opened_raises_its_own_error():
    """And an object that was not entered cannot be left."""
    with pytest.raises(RedisUnavailableError), sync.Redis(RedisConfig(host="127.0.0.1", port=1)):
        pass
    with pytest.raises(ClosedError):
        sync.Redis(RedisConfig()).__exit__(None, None, None)
    with pytest.raises(TypeError, match="given by other objects"):
        sync.Subscription()


# --- threads, loops, signals ------------------------------------------------------------------------------------------


async def test_it_works_where_a_loop_is_running(valkey_server):
    """As in a notebook, whose own loop runs in the same thread."""
    with sync.Redis(RedisConfig(url=valkey_server.url)) as redis:
        assert redis.ping() > 0


def test_a_call_from_the_background_thread_is_refused(database):
    """Rows are read there: a generator that asks for more would wait for itself."""

    def rows():
        yield (database.fetch_value("select 1"),)

    database.execute("create table if not exists sync_rows (n int primary key)")
    with pytest.raises(WrongThreadError):
        database.upsert("sync_rows", rows(), key=("n",), columns=("n",))


def test_context_variables_reach_the_call(redis):
    """A request id that was bound in the caller's thread is there in the loader."""
    request_id = contextvars.ContextVar("request_id", default="none")
    request_id.set("r-1")
    assert sync.Cache(redis).get_or_set("k", request_id.get, str, ttl=60) == "r-1"


def test_ctrl_c_cancels_the_call_which_cleans_up(valkey_server, redis):
    """A waiting limiter gives its slot back, the process ends by KeyboardInterrupt, nothing hangs."""
    code = f"""
from aegis import sync
from aegis.config import RedisConfig
from aegis.redis import Rate, RateLimit
limit = RateLimit("interrupted", Rate(1, per=30))
with sync.Redis(RedisConfig(url={valkey_server.url!r})) as redis:
    limiter = sync.RateLimiter(redis)
    limiter.wait(limit)
    print("waiting", flush=True)
    try:
        limiter.wait(limit)
    except KeyboardInterrupt:
        print("interrupted", limiter.stats().waiting, flush=True)
        raise
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout.readline() == "waiting\n"
        until_sync(lambda: redis.execute("KEYS", "*interrupted*"))
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted 0\n"
        assert child.wait(20) == -signal.SIGINT


def test_a_script_that_forgets_to_close_still_ends(valkey_server):
    """The background thread keeps nobody alive."""
    code = f"""
from aegis import sync
from aegis.config import RedisConfig
redis = sync.Redis(RedisConfig(url={valkey_server.url!r}))
redis.__enter__()
print(redis.execute("SET", "k", "v"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stdout) == (0, "b'OK'\n")


def test_a_forked_child_has_a_loop_of_its_own(valkey_server):
    """Objects of the parent stay the parent's; new ones work, on both sides."""
    code = f"""
import os
from aegis import sync
from aegis.config import RedisConfig
config = RedisConfig(url={valkey_server.url!r})
with sync.Redis(config) as redis:
    assert redis.ping() > 0
    child = os.fork()
    if child == 0:
        with sync.Redis(config) as own:
            os._exit(7 if own.ping() > 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert redis.ping() > 0
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]  # 3.12 warns of fork with threads
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
