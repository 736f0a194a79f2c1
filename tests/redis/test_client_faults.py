"""What a caller gets when the connection breaks: a real server behind a proxy that misbehaves on command."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.errors import (
    ClosedError,
    RedisUnavailableError,
    ReplyTimeoutError,
    ServerLostError,
    ServerReplyError,
)
from aegis.redis import Redis
from aegis.testing import Direction, FaultProxy, until


@pytest.fixture
async def proxy(valkey_server: EmbeddedValkey) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(valkey_server.socket) as proxy:
        yield proxy


def config(proxy: FaultProxy, **settings: object) -> RedisConfig:
    return RedisConfig(url=proxy.url, **settings)


async def restart(server: EmbeddedValkey) -> None:
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)


async def test_a_reset_in_the_middle_of_a_reply_leaves_the_outcome_unknown(proxy: FaultProxy) -> None:
    """The command in flight raises ServerLostError; the next one is answered over a new connection, undisturbed."""
    async with Redis(config(proxy)) as redis:
        await redis.execute("SET", "k", "v" * 1000)
        proxy.reset_after(100)
        with pytest.raises(ServerLostError, match=r"lost during GET.*unknown"):
            await redis.execute("GET", "k")
        assert await redis.execute("ECHO", "whole") == b"whole"
        stats = redis.stats()
        assert (stats.connections, stats.reconnects, stats.errors) == (2, 1, {"lost": 1})


async def test_a_lost_command_is_not_sent_again_and_an_idempotent_one_is(proxy: FaultProxy) -> None:
    """INCR through a connection that loses the reply: executed once, or, marked idempotent, twice."""
    async with Redis(config(proxy)) as redis:
        await redis.execute("DEL", "n")
        proxy.reset_after(1)
        with pytest.raises(ServerLostError):
            await redis.execute("INCR", "n")
        assert await redis.execute("GET", "n") == b"1"
        proxy.reset_after(1)
        assert await redis.execute("INCR", "n", idempotent=True) == 3


async def test_commands_given_while_there_is_no_connection_are_sent_when_it_is_back(proxy: FaultProxy) -> None:
    """In the order in which they were given, each once."""
    async with Redis(config(proxy)) as redis:
        await redis.execute("DEL", "log")
        proxy.refuse()
        proxy.reset()
        await until(lambda: redis.stats().state == "reconnecting")
        pushes = [asyncio.create_task(redis.execute("RPUSH", "log", i)) for i in range(50)]
        block = asyncio.create_task(redis.pipeline([("RPUSH", "log", 50), ("RPUSH", "log", 51)]))
        await until(lambda: redis.stats().waiting == 51)
        proxy.heal()
        assert await asyncio.gather(*pushes, block) == [*range(1, 51), [51, 52]]
        assert await redis.execute("LRANGE", "log", 0, -1) == [str(i).encode() for i in range(52)]


async def test_a_command_that_cannot_be_sent_in_its_time_says_why_and_was_not_sent(proxy: FaultProxy) -> None:
    """The error names the address, the time and the cause of the outage; nothing reaches the server later."""
    async with Redis(config(proxy)) as redis:
        await redis.execute("DEL", "n")
        proxy.refuse()
        proxy.reset()
        await until(lambda: redis.stats().state == "reconnecting")
        started = time.monotonic()
        with pytest.raises(RedisUnavailableError, match=rf"127\.0\.0\.1:{proxy.port} .*not sent within 0\.2 s: conn"):
            await redis.execute("INCR", "n", timeout=0.2)
        assert 0.15 < time.monotonic() - started < 0.6
        with pytest.raises(RedisUnavailableError):
            await redis.pipeline([("INCR", "n"), ("INCR", "n")], timeout=0.05)
        cancelled = asyncio.create_task(redis.execute("INCR", "n"))
        await until(lambda: redis.stats().waiting == 1)
        cancelled.cancel()
        await until(lambda: redis.stats().waiting == 0)
        proxy.heal()
        assert await redis.execute("GET", "n") is None
        assert redis.stats().errors == {"unavailable": 2}


async def test_what_was_queued_but_not_written_is_sent_again_without_being_asked(proxy: FaultProxy) -> None:
    """The connection dies between the call and the write: that outcome is known, so the caller notices nothing."""
    async with Redis(config(proxy)) as redis:
        await redis.execute("DEL", "n")
        task = asyncio.create_task(redis.execute("INCR", "n"))
        block = asyncio.create_task(redis.pipeline([("INCR", "n"), ("INCR", "n")]))
        await asyncio.sleep(0)  # both are queued now; the write comes in the next turn
        redis._steady._link.abort("cut by the test")
        assert sorted([await task, *await block]) == [1, 2, 3]
        assert redis.stats().connections == 2


@pytest.mark.parametrize("busy", [True, False], ids=["with a command in flight", "idle"])
async def test_a_half_open_connection_is_noticed_in_under_three_seconds(proxy: FaultProxy, busy: bool) -> None:
    """Packets vanish, nobody sends FIN: the command fails, or the idle client notices by itself; then it recovers."""
    async with Redis(config(proxy)) as redis:
        await redis.ping()
        proxy.freeze()
        started = time.monotonic()
        if busy:
            with pytest.raises(ServerLostError, match="silent"):
                await redis.execute("GET", "k")
        else:
            await until(lambda: redis.stats().state == "reconnecting")
        assert time.monotonic() - started < 3.0
        proxy.reset()
        proxy.heal()
        assert await redis.execute("ECHO", "back") == b"back"


async def test_a_direction_that_is_lost_is_noticed(proxy: FaultProxy) -> None:
    """Commands arrive, replies vanish: as half-open."""
    async with Redis(config(proxy, hang_timeout=0.3)) as redis:
        await redis.execute("DEL", "n")
        proxy.drop(Direction.TO_CLIENT)
        with pytest.raises(ServerLostError, match="silent"):
            await redis.execute("INCR", "n")
        proxy.heal()
        assert await redis.execute("GET", "n") == b"1"


async def test_a_stopped_server_is_given_up_and_used_again_when_it_goes_on() -> None:
    """SIGSTOP: the kernel still accepts connections, so opening a client must time out, too."""
    with EmbeddedValkey(port=0) as server:
        settings = RedisConfig(url=server.url, hang_timeout=0.4, connect_timeout=0.3)
        async with Redis(settings) as redis:
            await redis.ping()
            os.kill(server.pid, signal.SIGSTOP)
            try:
                with pytest.raises(ServerLostError, match="silent"):
                    await redis.execute("SET", "k", 1)
                with pytest.raises(RedisUnavailableError, match=r"no answer within 0\.3 s"):
                    await Redis(settings).__aenter__()
                with pytest.raises(RedisUnavailableError, match="not sent"):
                    await redis.execute("SET", "k", 2, timeout=0.5)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert await redis.execute("SET", "k", 3) == b"OK"


@pytest.fixture
def sleepy_server() -> Iterator[EmbeddedValkey]:
    """A server that sleeps when told."""
    with EmbeddedValkey(options={"enable-debug-command": "yes"}) as server:
        yield server


async def test_a_slow_command_with_a_long_timeout_is_waited_for(sleepy_server: EmbeddedValkey) -> None:
    """Silence beyond the hang timeout is borne when the caller asked for it, and only then."""
    settings = RedisConfig(url=sleepy_server.url, command_timeout=0.4, hang_timeout=0.2)
    async with Redis(settings) as redis:
        with pytest.raises(ServerLostError, match="silent"):
            await redis.execute("DEBUG", "SLEEP", "0.5")
        patient = [
            redis.execute("DEBUG", "SLEEP", "0.6", timeout=3),
            redis.pipeline([("ECHO", "a"), ("ECHO", "b")], timeout=3),
        ]
        assert await asyncio.gather(*patient) == [b"OK", [b"a", b"b"]]
        assert redis.stats().connections == 2


async def test_a_reply_that_comes_too_late_is_thrown_away(sleepy_server: EmbeddedValkey) -> None:
    """The command raises in time, its neighbours get their own replies, and the connection is kept."""
    settings = RedisConfig(url=sleepy_server.url, command_timeout=0.2, hang_timeout=5.0)
    async with Redis(settings) as redis:
        with pytest.raises(ReplyTimeoutError, match=r"did not answer DEBUG: no reply within 0\.2 s"):
            await redis.execute("DEBUG", "SLEEP", "0.5")
        with pytest.raises(ReplyTimeoutError, match=r"0\.05 s"):
            await redis.execute("ECHO", "late", timeout=0.05)
        with pytest.raises(ReplyTimeoutError):
            await redis.pipeline([("ECHO", "late"), ("ECHO", "later")], timeout=0.05)
        await until(lambda: redis.stats().in_flight == 0)
        assert await redis.execute("ECHO", "mine") == b"mine"
        stats = redis.stats()
        assert (stats.connections, stats.errors) == (1, {"timeout": 3})


async def test_a_restarted_server_is_found_again_and_scripts_are_loaded_again() -> None:
    """After a restart the connection, the database number and the name are as before."""
    with EmbeddedValkey(port=0) as server:
        settings = RedisConfig(url=server.url, db=3, client_name="collector")
        async with Redis(settings) as redis:
            await restart(server)
            assert await redis.execute("CLIENT", "GETNAME") == b"collector"
            assert b"db=3" in await redis.execute("CLIENT", "INFO")


async def test_client_kill_is_survived(redis: Redis, valkey_server: EmbeddedValkey) -> None:
    """A connection that an administrator ends is made again."""
    async with Redis(RedisConfig(url=valkey_server.url)) as victim:
        own_id = await victim.execute("CLIENT", "ID")
        assert await redis.execute("CLIENT", "KILL", "ID", own_id) == 1
        await until(lambda: victim.stats().state == "reconnecting" or victim.stats().connections == 2)
        assert await victim.execute("CLIENT", "ID") != own_id


async def test_after_a_failover_the_new_primary_is_found_under_the_old_name(valkey_server: EmbeddedValkey) -> None:
    """READONLY raises, had no effect, and makes the client connect anew."""
    with EmbeddedValkey(port=0) as demoted:
        async with FaultProxy(demoted.socket) as name, Redis(RedisConfig(url=name.url)) as redis:
            await redis.execute("SET", "k", "before")
            await redis.execute("REPLICAOF", "127.0.0.1", 1)
            name.target = valkey_server.socket
            refused, neighbour = await asyncio.gather(
                redis.execute("SET", "k", "after"), redis.execute("GET", "k"), return_exceptions=True
            )
            assert isinstance(refused, ServerReplyError)
            assert refused.code == "READONLY"
            assert neighbour == b"before"
            await until(lambda: redis.stats().connections == 2)
            assert await redis.execute("SET", "k", "after") == b"OK"
            await until(lambda: name.connections == 1)
            assert redis.stats().errors == {"READONLY": 1}


async def test_a_read_only_server_is_left_without_losing_what_it_still_answers(valkey_server: EmbeddedValkey) -> None:
    """What is in flight when the new connection stands is answered over the old one; then that is closed."""
    with EmbeddedValkey(port=0) as demoted:
        async with FaultProxy(demoted.socket) as name, Redis(RedisConfig(url=name.url)) as redis:
            await redis.execute("SET", "k", "before")
            await redis.execute("REPLICAOF", "127.0.0.1", 1)
            name.slow(0.1)
            with pytest.raises(ServerReplyError, match="READONLY"):
                await redis.execute("SET", "k", "after")
            asked: list[asyncio.Task[object]] = []
            while redis.stats().connections < 2:
                asked.append(asyncio.create_task(redis.execute("GET", "k")))
                await asyncio.sleep(0.01)
            assert not asked[-1].done(), "nothing was in flight when the link was replaced"
            assert set(await asyncio.gather(*asked)) == {b"before"}
            await until(lambda: name.connections == 1)


async def test_a_server_that_stays_read_only_is_asked_for_its_name_once_a_second(valkey_server: EmbeddedValkey) -> None:
    """A replica refuses every write: a new connection for each would be a storm."""
    with EmbeddedValkey(port=0) as demoted:
        async with Redis(RedisConfig(url=demoted.url)) as redis:
            await redis.execute("REPLICAOF", "127.0.0.1", 1)
            began = time.monotonic()
            while redis.stats().connections < 3:
                with pytest.raises(ServerReplyError, match="READONLY"):
                    await redis.execute("SET", "k", 1)
            assert time.monotonic() - began > 0.99
            assert redis.stats().errors["READONLY"] > 3


async def test_a_command_that_is_sent_again_keeps_its_deadline(proxy: FaultProxy) -> None:
    """Its time is counted from the call: what the first try took is gone."""
    async with Redis(config(proxy, hang_timeout=10.0)) as redis:
        proxy.freeze()
        began = time.monotonic()
        asked = asyncio.create_task(redis.execute("ECHO", 1, timeout=1.0, idempotent=True))
        await asyncio.sleep(0.9)
        proxy.reset()
        with pytest.raises((ReplyTimeoutError, RedisUnavailableError)):
            await asked
        assert 0.99 < time.monotonic() - began < 1.85


async def test_a_server_that_is_loading_is_unavailable_and_served_when_it_has_loaded(tmp_path: Path) -> None:
    """A real data set takes its time: opening says LOADING at once, an open client waits for the end of it."""
    options = {"dir": str(tmp_path), "dbfilename": "dump.rdb"}
    slow = {**options, "key-load-delay": "300", "loading-process-events-interval-bytes": "1024"}
    with EmbeddedValkey(port=0, options=options) as server:
        settings = RedisConfig(url=server.url)
        async with Redis(settings) as redis:
            await redis.execute("EVAL", "for i=1,6000 do redis.call('SET', i, i) end", 0)
            await redis.execute("SAVE")
            await asyncio.to_thread(server.stop)
            server.options = slow
            await asyncio.to_thread(server.start)
            with pytest.raises(RedisUnavailableError, match="PING refused: LOADING"):
                await Redis(settings).__aenter__()
            await until(lambda: "LOADING" in redis._steady.cause)
            with pytest.raises(RedisUnavailableError, match=r"not sent within 0\.01 s: PING refused: LOADING"):
                await redis.execute("GET", 6000, timeout=0.01)
            assert await redis.execute("GET", 6000) == b"6000"


async def test_out_of_memory_is_a_refusal_with_its_code() -> None:
    """-OOM: no effect, and reads go on."""
    with EmbeddedValkey(options={"maxmemory": "1mb"}) as server:
        async with Redis(RedisConfig(url=server.url)) as redis:
            with pytest.raises(ServerReplyError, match="Redis refused SET: OOM") as caught:
                await redis.pipeline([("SET", i, "v" * 400_000) for i in range(4)])
            assert caught.value.code == "OOM"
            assert await redis.execute("GET", 3) is None
            assert redis.stats().connections == 1


async def test_an_outage_is_told_in_one_line_at_its_beginning_and_one_at_its_end(
    proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Many failed attempts and many failed commands add no line."""
    with caplog.at_level(logging.INFO, "aegis.redis"):
        async with Redis(config(proxy)) as redis:
            proxy.refuse()
            proxy.reset()
            await until(lambda: redis.stats().connect_failures > 3)
            with pytest.raises(RedisUnavailableError):
                await redis.execute("PING", timeout=0.01)
            proxy.heal()
            await redis.ping()
    begin, end = [record.getMessage() for record in caplog.records]
    assert "lost" in begin
    assert f"127.0.0.1:{proxy.port}" in begin
    assert "again after" in end


async def test_closing_fails_what_is_in_flight_and_what_waits(proxy: FaultProxy) -> None:
    """In flight: outcome unknown. Not sent: ClosedError. Nobody hangs."""
    async with Redis(config(proxy)) as redis:
        proxy.freeze()
        in_flight = asyncio.create_task(redis.execute("PING"))
        await until(lambda: redis.stats().in_flight == 1)
        await redis.close()
        with pytest.raises(ServerLostError, match="closed by this process"):
            await in_flight
    proxy.heal()
    async with Redis(config(proxy)) as redis:
        proxy.refuse()
        proxy.reset()
        await until(lambda: redis.stats().state == "reconnecting")
        waiting = asyncio.create_task(redis.execute("PING"))
        await until(lambda: redis.stats().waiting == 1)
        await redis.close()
        with pytest.raises(ClosedError):
            await waiting


async def test_a_busy_loop_is_no_late_server(redis):
    """The program blocks its own loop for longer than the timeout, before the command is written: it is answered."""
    asking = [asyncio.create_task(redis.execute("PING", timeout=0.05)) for _ in range(3)]
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - that is the fault
    assert await asyncio.gather(*asking) == [b"PONG"] * 3
