"""The link under pressure: bounds, cancellation at any moment, refused commands, replies that no server should send."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.errors import (
    CommandNotAllowedError,
    RedisError,
    RedisUnavailableError,
    ReplyTimeoutError,
    ServerLostError,
    ServerReplyError,
)
from aegis.redis import Redis
from aegis.redis.connection.deadlines import Deadlines, _three_digits_up
from aegis.redis.connection.link import pack
from aegis.redis.connection.open import open_link
from aegis.testing import FaultProxy, until


async def test_no_more_commands_are_in_flight_than_allowed(valkey_server: EmbeddedValkey) -> None:
    """A thousand callers, ten places: the others wait, every one is answered, first come first served."""
    async with Redis(RedisConfig(url=valkey_server.url, max_in_flight=10)) as redis:
        await redis.execute("DEL", "log")
        order = await asyncio.gather(*(redis.execute("RPUSH", "log", i) for i in range(1000)))
        assert order == list(range(1, 1001))
        assert await redis.execute("LRANGE", "log", 0, -1) == [str(i).encode() for i in range(1000)]
        stats = redis.stats()
        assert stats.in_flight_max == 10
        assert (stats.in_flight, stats.waiting) == (0, 0)


async def test_no_more_bytes_are_in_flight_than_allowed(valkey_server: EmbeddedValkey) -> None:
    """Values of 10 KB, room for 50 KB: at most six at once; one that is larger than the room goes alone."""
    async with Redis(RedisConfig(url=valkey_server.url, max_in_flight_bytes=50_000)) as redis:
        await asyncio.gather(*(redis.execute("SET", i, bytes(10_000)) for i in range(200)))
        assert redis.stats().in_flight_max <= 6
        assert await redis.execute("SET", "big", bytes(200_000)) == b"OK"
        assert await redis.execute("STRLEN", "big") == 200_000


async def test_a_caller_that_leaves_the_queue_is_not_sent(valkey_server: EmbeddedValkey) -> None:
    """One place, held by a slow proxy: those cancelled while waiting for it never reach the server."""
    async with FaultProxy(valkey_server.socket) as proxy, Redis(RedisConfig(url=proxy.url, max_in_flight=1)) as redis:
        await redis.execute("DEL", "n")
        proxy.slow(0.05)
        tasks = [asyncio.create_task(redis.execute("INCR", "n")) for _ in range(10)]
        await asyncio.sleep(0)
        for task in tasks[1:-1]:
            task.cancel()
        assert await tasks[0] == 1
        assert await tasks[-1] == 2


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
async def test_cancelling_at_any_moment_never_gives_anybody_the_wrong_reply(
    redis: Redis, plan: list[tuple[int, int]]
) -> None:
    """Each command is given after some loop turns and cancelled after some; whoever stays gets its own number."""

    async def ask(number: int) -> None:
        assert await redis.execute("ECHO", number) == str(number).encode()

    tasks: list[asyncio.Task[None]] = []
    for number, (turns_before, turns_until_cancel) in enumerate(plan):
        for _ in range(turns_before):
            await asyncio.sleep(0)
        task = asyncio.create_task(ask(number))
        tasks.append(task)
        if turns_until_cancel < 3:
            for _ in range(turns_until_cancel):
                await asyncio.sleep(0)
            task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError)
    assert await redis.execute("ECHO", "end") == b"end"
    assert redis.stats().connections == 1


@pytest.mark.parametrize(
    "command",
    [
        "BLPOP k 0", "brpop k 0", "BLMOVE a b LEFT LEFT 0", "BLMPOP 0 1 k LEFT", "BZPOPMIN k 0", "WAIT 1 0",
        "BRPOPLPUSH a b 0", "BZPOPMAX k 0", "BZMPOP 0 1 k MIN", "WAITAOF 1 0 0",
        "SUBSCRIBE c", "psubscribe c", "SSUBSCRIBE c", "MONITOR", "SYNC", "PSYNC ? -1", "REPLCONF ack 1",
        "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE",
        "SELECT 1", "AUTH x", "HELLO 3", "RESET", "QUIT", "MULTI", "EXEC", "DISCARD", "WATCH k", "UNWATCH",
        "READONLY", "READWRITE", "ASKING",
        "CLIENT REPLY OFF", "client tracking on", "CLIENT NO-EVICT ON", "CLIENT SETNAME x", "SCRIPT DEBUG YES",
        "CLIENT CACHING YES", "CLIENT SETINFO lib-name x", "CLIENT NO-TOUCH ON",
        "XREAD BLOCK 0 STREAMS s 0", "XREADGROUP GROUP g c COUNT 1 block 0 STREAMS s >",
        "XREADGROUP GROUP streams streams BLOCK 0 STREAMS s >",
    ],
)  # fmt: skip
async def test_what_must_not_share_the_connection_is_refused_before_it_is_sent(redis: Redis, command: str) -> None:
    """In any spelling, also inside a pipeline or a transaction; the connection and its neighbours are unharmed."""
    sent = redis.stats().bytes_sent
    words = command.split()
    for call in (
        redis.execute(*words),
        redis.execute(*[word.encode() for word in words]),
        redis.execute(*words, timeout=1.0),
        redis.pipeline([("PING",), words]),
        redis.transaction([("PING",), words]),
    ):
        with pytest.raises(CommandNotAllowedError, match=words[0].upper()):
            await call
    assert redis.stats().bytes_sent == sent
    assert await redis.execute("PING") == b"PONG"


async def test_their_harmless_relatives_are_allowed(redis: Redis) -> None:
    """CLIENT ID, XREAD without BLOCK (even of a stream of that name), SCRIPT EXISTS."""
    assert await redis.execute("CLIENT", "ID") > 0
    assert await redis.execute("XREAD", "COUNT", 1, "STREAMS", "block", 0) is None
    await redis.execute("XGROUP", "CREATE", "stream", "block", "$", "MKSTREAM")
    assert await redis.execute("XREADGROUP", "GROUP", "block", "block", "STREAMS", "stream", ">") is None
    assert await redis.execute("SCRIPT", "EXISTS", "0" * 40) == [0]


async def test_what_is_no_command_is_refused_before_it_is_sent(redis: Redis) -> None:
    """No words, or words that are neither text nor bytes nor numbers."""
    sent = redis.stats().bytes_sent
    with pytest.raises(ValueError, match="at least its name"):
        await redis.execute()
    with pytest.raises(ValueError, match="at least its name"):
        await redis.pipeline([("PING",), ()])
    for wrong in (None, True, ["a"], {"a": 1}):
        with pytest.raises(TypeError):
            await redis.execute("SET", "k", wrong)  # type: ignore[arg-type]
    assert redis.stats().bytes_sent == sent


async def test_a_woken_task_may_close_the_client(valkey_server: EmbeddedValkey) -> None:
    """The one that is woken first closes; the others get their replies or learn that it was closed."""
    async with Redis(RedisConfig(url=valkey_server.url)) as redis:

        async def ask_and_close() -> None:
            await redis.execute("PING")
            await redis.close()

        results = await asyncio.gather(
            ask_and_close(), *(redis.execute("ECHO", i) for i in range(50)), return_exceptions=True
        )
    assert results[0] is None
    assert results[1:] == [str(i).encode() for i in range(50)]


async def test_a_task_sees_its_own_context_after_a_reply(redis: Redis) -> None:
    """Tasks that share one read keep their context variables, their names and their place as current task."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    async def ask(number: int) -> None:
        variable.set(number)
        for _ in range(3):
            await redis.execute("ECHO", number)
            assert variable.get() == number
            assert asyncio.current_task().get_name() == f"task {number}"

    tasks = [asyncio.create_task(ask(number), name=f"task {number}") for number in range(20)]
    await asyncio.gather(*tasks)


async def test_commands_of_woken_tasks_leave_together(redis: Redis) -> None:
    """A hundred tasks that ask again and again: one write per round of replies, not one per task."""
    writes = 0
    write = redis._steady._link._transport.write

    def counted(data: bytes) -> None:
        nonlocal writes
        writes += 1
        write(data)

    redis._steady._link._transport.write = counted

    async def ask() -> None:
        for _ in range(50):
            await redis.execute("PING")

    await asyncio.gather(*(ask() for _ in range(100)))
    assert writes < 500


async def test_cancelling_twice_and_with_a_message_behaves_as_for_any_await(redis: Redis) -> None:
    """The message arrives; a second cancel while the first is on its way changes nothing."""
    task = asyncio.create_task(redis.execute("ECHO", 1))
    await asyncio.sleep(0)
    assert task.cancel("enough")
    task.cancel("more")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await redis.execute("ECHO", 2) == b"2"


@pytest.mark.parametrize("timeout", [math.nan, math.inf, -math.inf])
async def test_a_timeout_that_is_no_time_sends_nothing(redis: Redis, timeout: float) -> None:
    """Refused by name, in every way of sending; neither then nor later does the command run; nobody else is hurt."""
    await redis.execute("DEL", "n")
    calls = [
        redis.execute("INCR", "n", timeout=timeout),
        redis.execute("INCR", "n", timeout=timeout, idempotent=True),
        redis.pipeline([("INCR", "n")], timeout=timeout),
        redis.transaction([("INCR", "n")], timeout=timeout),
    ]
    neighbour = asyncio.create_task(redis.execute("ECHO", "mine"))
    for refused in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(refused, ValueError)
        assert f"timeout={timeout}" in str(refused)
    assert await neighbour == b"mine"
    assert await redis.execute("PING", timeout=10.0) == b"PONG"
    assert await redis.execute("GET", "n") is None
    assert (redis.stats().connections, redis.stats().waiting) == (1, 0)


async def test_a_task_of_another_loop_is_refused_and_harms_nobody(redis: Redis) -> None:
    """asyncio says what is wrong; the connection and its own tasks go on."""

    async def elsewhere() -> None:
        await redis.execute("ECHO", "theirs")

    with pytest.raises(RuntimeError, match="different loop"):
        await asyncio.to_thread(asyncio.run, elsewhere())
    for _ in range(3):
        assert await redis.execute("ECHO", "mine") == b"mine"
    assert redis.stats().connections == 1


async def test_a_late_or_unwanted_reply_does_not_harm_the_connection(
    valkey_server: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever was cancelled or timed out in flight, in whatever way it was sent: the reply is thrown away."""
    settings = {"command_timeout": 0.1, "hang_timeout": 5.0}  # the watch looks at the cancelled ones, too
    async with FaultProxy(valkey_server.socket) as proxy, Redis(RedisConfig(url=proxy.url, **settings)) as redis:
        proxy.slow(0.15)
        calls = [
            redis.execute("ECHO", 1),
            redis.execute("ECHO", 1, idempotent=True),
            redis.execute("ECHO", 1, timeout=10.0),
            redis.pipeline([("ECHO", 1), ("ECHO", 2)]),
        ]
        cancelled = [asyncio.create_task(call) for call in calls]
        late = [
            asyncio.create_task(redis.execute("ECHO", 1, timeout=0.02)),
            asyncio.create_task(redis.execute("ECHO", 1, timeout=0.02, idempotent=True)),
            asyncio.create_task(redis.pipeline([("ECHO", 1), ("ECHO", 2)], timeout=0.02)),
        ]
        await asyncio.sleep(0.01)
        for task in cancelled:
            task.cancel()
        results = await asyncio.gather(*cancelled, *late, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 4 + [ReplyTimeoutError] * 3
        async with asyncio.timeout(5):
            while redis.stats().in_flight:
                await asyncio.sleep(0.01)
        proxy.heal()
        assert await redis.execute("ECHO", "mine") == b"mine"
        assert redis.stats().connections == 1
    assert caplog.records == []


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_was_busy_does_not_blame_the_server(factory, valkey_server: EmbeddedValkey) -> None:
    """The program computes for longer than the hang timeout with a command in flight: the reply is there, not late."""

    async def main() -> None:
        settings = RedisConfig(url=valkey_server.url, hang_timeout=0.1, command_timeout=0.2)
        async with Redis(settings) as redis:
            for _ in range(3):
                task = asyncio.create_task(redis.execute("ECHO", 1))
                await asyncio.sleep(0)
                await asyncio.sleep(0)  # queued, then written
                time.sleep(0.5)  # noqa: ASYNC251 - the point of the test
                assert await task == b"1"
            assert redis.stats().connections == 1

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def test_a_tick_that_comes_late_looks_once_more_before_it_blames_the_server(
    valkey_server: EmbeddedValkey,
) -> None:
    """A task blocks the loop while the reply lies in the socket, and the watch is called before the reader."""
    async with Redis(RedisConfig(url=valkey_server.url, hang_timeout=0.2)) as redis:
        await redis.ping()
        link, asked = redis._steady._link, asyncio.create_task(redis.execute("ECHO", "here"))
        while not link._batches:
            await asyncio.sleep(0)
        time.sleep(0.4)  # noqa: ASYNC251 - the loop shall be busy
        link._watch.cancel()
        link._tick()
        assert await asked == b"here"
        assert redis.stats().connections == 1


async def test_a_stopped_server_is_noticed_although_its_kernel_takes_what_comes_later() -> None:
    """Only the oldest write counts: later commands that a hung server's socket accepts are no sign of life."""
    with EmbeddedValkey(port=0) as server:
        config = RedisConfig(url=server.url, hang_timeout=0.5, connect_timeout=0.2)
        async with Redis(config) as redis:
            await redis.ping()
            os.kill(server.pid, signal.SIGSTOP)
            try:
                started, calls = time.monotonic(), []
                while redis.stats().state == "connected" and time.monotonic() - started < 5:
                    calls.append(asyncio.create_task(redis.execute("ECHO", bytes(5_000), timeout=4)))
                    await asyncio.sleep(0.01)
                assert time.monotonic() - started < 3
            finally:
                os.kill(server.pid, signal.SIGCONT)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert any(isinstance(outcome, ServerLostError) for outcome in outcomes)


async def test_a_large_value_may_take_longer_than_the_hang_timeout_in_both_directions(
    valkey_server: EmbeddedValkey,
) -> None:
    """As long as bytes move the other side is alive; with the same bound, silence is not borne."""
    async with (
        FaultProxy(f"127.0.0.1:{valkey_server.port}") as proxy,
        Redis(RedisConfig(url=proxy.url, hang_timeout=0.8, command_timeout=30)) as redis,
    ):
        await redis.execute("SET", "big", bytes(4_000_000))
        for command, delay_s, chunk_bytes in (
            (("GET", "big"), 0.006, 16_384),
            (("SET", "big", bytes(16_000_000)), 0.008, 65_536),
        ):
            proxy.slow(delay_s, chunk_bytes=chunk_bytes)
            started = time.monotonic()
            await redis.execute(*command)
            assert time.monotonic() - started > 1.2
            proxy.heal()
        await redis.execute("DEL", "big")
        assert redis.stats().connections == 1


async def test_a_link_that_was_idle_for_long_gets_the_whole_time_for_its_next_reply(
    valkey_server: EmbeddedValkey,
) -> None:
    """Silence counts from the command, not from the last word of the server (the feed's links have no idle PING)."""
    async with FaultProxy(valkey_server.socket) as proxy:
        lost: list[str] = []
        link = await open_link(RedisConfig(url=proxy.url, hang_timeout=0.4), lost.append)
        now = asyncio.get_running_loop().time
        while now() - link._heard_at < 0.6:
            await asyncio.sleep(0.05)
        proxy.slow(0.1)
        assert await link.send(pack(("PING",))) == b"PONG"
        assert lost == []
        link.abort("done")
        await link.wait_closed()


_LEAVING = """
import asyncio
from aegis.config import RedisConfig
from aegis.redis import Redis

async def main():
    async with Redis(RedisConfig(url={url!r})) as redis:
        async def leave():
            await redis.ping()
            raise SystemExit(3)
        try:
            await asyncio.gather(leave(), *(redis.execute("ECHO", number) for number in range(50)))
        finally:
            print(await redis.execute("ECHO", "last"), redis.stats().in_flight, flush=True)

asyncio.run(main())
"""


def test_a_task_that_ends_the_program_does_not_desynchronise_the_replies(valkey_server: EmbeddedValkey) -> None:
    """SystemExit out of the task that a reply woke: what cleans up afterwards still gets its own reply."""
    done = subprocess.run(
        [sys.executable, "-c", _LEAVING.format(url=valkey_server.url)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("b'last' 0\n", 3), done.stderr


# --- replies that no server should send ---


@contextlib.asynccontextmanager
async def server_that_says(*lines: bytes) -> AsyncIterator[RedisConfig]:
    """A server that logs everybody in and answers the first other command with these bytes."""

    handlers: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if b"PING" in data:
                    writer.write(b"+OK\r\n+PONG\r\n" if b"SETNAME" in data else b"+PONG\r\n")
                else:
                    writer.writelines(lines)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield RedisConfig(host="127.0.0.1", port=server.sockets[0].getsockname()[1], max_reply_bytes=1_000_000)
    await asyncio.gather(*handlers)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"?what\r\n", "malformed reply"),
        (b"$abc\r\n", "malformed reply"),
        (b"$-7\r\n", "malformed reply"),
        (b"*1\r\n:12x\r\n", "malformed reply"),
        (b"%1\r\n*1\r\n:1\r\n:1\r\n", "malformed reply"),
        (b"$2000000\r\n" + bytes(1_500_000), "larger than 1000000 bytes"),
        (b"*2000000\r\n" + b":1\r\n" * 400_000, "larger than 1000000 bytes"),
    ],
)
async def test_a_malformed_or_too_large_reply_ends_the_connection_and_says_so(answer: bytes, cause: str) -> None:
    """The caller learns the cause; the client goes on over a new connection."""
    async with server_that_says(answer) as config, Redis(config) as redis:
        with pytest.raises(ServerLostError, match=cause):
            await redis.execute("GET", "k")
        assert await redis.ping() > 0
        assert redis.stats().connections == 2


async def test_a_reply_that_nobody_asked_for_ends_the_connection() -> None:
    """Two replies to one command: from there on no reply could be trusted."""
    async with server_that_says(b"+one\r\n+two\r\n") as config, Redis(config) as redis:
        assert await redis.execute("GET", "k") == b"one"
        async with asyncio.timeout(5):
            while redis.stats().connections < 2:
                await asyncio.sleep(0.01)
        assert await redis.ping() > 0


async def test_a_reply_just_below_the_bound_is_whole(valkey_server: EmbeddedValkey) -> None:
    """Large replies in many reads arrive unharmed, next to small ones."""
    async with Redis(RedisConfig(url=valkey_server.url, max_reply_bytes=9_000_000)) as redis:
        big = random.Random(7).randbytes(8_000_000)
        await redis.execute("SET", "big", big)
        replies = await asyncio.gather(
            redis.execute("GET", "big"), redis.execute("ECHO", 1), redis.execute("GET", "big")
        )
        assert replies == [big, b"1", big]
        with pytest.raises(ServerLostError, match="larger than"):
            await redis.execute("MGET", "big", "big")


# --- everything at once ---


async def storm(server: EmbeddedValkey, seconds: float, seed: int) -> dict[str, int]:
    """Tasks that count with INCR on a bad line; returns what they saw. Every call ends exactly once."""
    chance = random.Random(seed)
    seen = {"answered": 0, "unknown": 0, "unsent": 0, "cancelled": 0}
    async with FaultProxy(server.socket) as proxy:
        config = RedisConfig(url=proxy.url, hang_timeout=0.15, connect_timeout=0.3, max_in_flight=50)
        async with Redis(config) as redis:
            await redis.execute("DEL", "n")
            over = asyncio.get_running_loop().time() + seconds

            async def count(chance: random.Random) -> None:
                while asyncio.get_running_loop().time() < over:
                    marker = chance.randbytes(4).hex()
                    try:
                        async with asyncio.timeout(0.001 if chance.random() < 0.02 else 5):
                            if chance.random() < 0.5:
                                echo = (await redis.pipeline([("INCR", "n"), ("ECHO", marker)], timeout=1.0))[1]
                                seen["answered"] += 1
                            else:
                                await redis.execute("INCR", "n")
                                seen["answered"] += 1
                                echo = await redis.execute("ECHO", marker, timeout=1.0, idempotent=True)
                        assert echo == marker.encode()
                    except ServerLostError:
                        seen["unknown"] += 1
                    except RedisUnavailableError:
                        seen["unsent"] += 1
                    except TimeoutError:
                        seen["cancelled"] += 1

            async def disturb() -> None:
                while asyncio.get_running_loop().time() < over:
                    await asyncio.sleep(chance.uniform(0.01, 0.1))
                    match chance.randrange(6):
                        case 0:
                            proxy.reset()
                        case 1:
                            proxy.disconnect()
                        case 2:
                            proxy.reset_after(chance.randrange(1, 200))
                        case 3:
                            proxy.refuse()
                            proxy.reset()
                            await asyncio.sleep(0.05)
                        case 4:
                            proxy.freeze()
                            await asyncio.sleep(chance.uniform(0.0, 0.4))
                        case 5:
                            proxy.slow(0.002)
                            await asyncio.sleep(0.05)
                    proxy.heal()

            await asyncio.gather(disturb(), *(count(random.Random(chance.random())) for _ in range(100)))
            proxy.heal()
            executed = int(await redis.execute("GET", "n", timeout=5))
            stats = redis.stats()
            assert (stats.in_flight, stats.waiting) == (0, 0)
            assert stats.in_flight_max <= 52, "a pipeline of two may begin where one place is left"
    # Each answered one was executed; each executed one was answered, or its caller was told that it may have been.
    assert seen["answered"] <= executed <= seen["answered"] + seen["unknown"] + seen["cancelled"]
    return seen


async def test_in_a_storm_of_faults_every_call_ends_once_and_is_told_the_truth(valkey_server: EmbeddedValkey) -> None:
    """Random resets, freezes, refusals and cancellations: counts on both sides agree. Long form: benchmarks."""
    seen = await storm(valkey_server, seconds=3.0, seed=3)
    assert seen["answered"] > 100
    assert seen["unknown"] > 0


def test_all_of_it_holds_on_uvloop(valkey_server: EmbeddedValkey) -> None:
    """The same storm on the other event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(storm(valkey_server, seconds=2.0, seed=4))
    assert seen["answered"] > 100


# --- small parts ---


@given(seconds=st.floats(1e-6, 1e6))
def test_timeouts_are_rounded_up_by_less_than_a_percent(seconds: float) -> None:
    """Never shorter than asked, never below a millisecond, few different ones."""
    rounded = _three_digits_up(seconds)
    assert rounded >= min(seconds, 1e6) * (1 - 1e-9)
    assert rounded <= max(seconds * 1.0101, 0.001)


async def test_deadlines_fire_in_time_and_only_for_those_not_done() -> None:
    """Mixed timeouts: each future expires once, none early; done ones are forgotten."""
    loop = asyncio.get_running_loop()
    expired: list[tuple[asyncio.Future[object], float]] = []
    deadlines = Deadlines(loop, lambda future: expired.append((future, loop.time())))
    given: dict[asyncio.Future[object], float] = {}
    for turn in range(300):
        future: asyncio.Future[object] = loop.create_future()
        timeout = (0.05, 0.01, 0.0234567)[turn % 3]
        given[future] = loop.time() + timeout
        deadlines.add(timeout, future)
        if turn % 2:
            future.set_result(None)
    assert deadlines.latest_above(0.03) > 0.0
    assert deadlines.latest_above(0.05) == 0.0
    async with asyncio.timeout(5):
        while len(deadlines):
            await asyncio.sleep(0.005)
    assert [future for future, _ in expired if future.done()] == []
    assert len(expired) == 150
    assert all(at >= given[future] - 1e-6 for future, at in expired)
    deadlines.close()


async def test_a_deadline_that_the_loop_missed_is_put_off_once() -> None:
    """By as long as its timer was late; then it has passed."""
    loop, expired = asyncio.get_running_loop(), []
    deadlines: Deadlines[asyncio.Future[object]] = Deadlines(loop, lambda _: expired.append(loop.time()))
    for turn in range(2):
        deadlines.add(0.1, loop.create_future())
        began = loop.time()
        time.sleep(0.15)  # noqa: ASYNC251 - that is the fault
        await until(lambda turn=turn: len(expired) > turn)
        assert expired[turn] - began > 0.199
    deadlines.close()


@pytest.mark.parametrize(
    "error",
    [
        RedisUnavailableError("host:1", "refused"),
        ServerLostError("host:1", "GET", "reset"),
        ReplyTimeoutError("host:1", "GET", "no reply within 1 s"),
        ServerReplyError("GET", "WRONGTYPE Operation against a key"),
        CommandNotAllowedError("BLPOP"),
    ],
)
def test_errors_survive_the_way_between_processes(error: RedisError) -> None:
    """Pickled and back: same class, same fields, same message."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__
