"""The shared connection against a real server: commands, scripts, pipelines, transactions, closing, disabled."""

from __future__ import annotations

import asyncio

import pytest

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.errors import ClosedError, RedisUnavailableError, ServerReplyError
from aegis.redis import Redis


async def test_replies_come_back_as_bytes_integers_lists_and_none(redis: Redis) -> None:
    """Each kind of reply has one Python type."""
    assert await redis.execute("SET", "k", "v") == b"OK"
    assert await redis.execute("GET", "k") == b"v"
    assert await redis.execute("GET", "absent") is None
    assert await redis.execute("INCRBY", b"n", 41) == 41
    assert await redis.execute("MGET", "k", "absent") == [b"v", None]
    assert await redis.ping() > 0


async def test_many_tasks_each_get_their_own_reply(redis: Redis) -> None:
    """A thousand concurrent commands are answered in order: nobody gets another's value."""
    await asyncio.gather(*(redis.execute("SET", f"k{i}", i) for i in range(1000)))
    values = await asyncio.gather(*(redis.execute("GET", f"k{i}") for i in range(1000)))
    assert values == [str(i).encode() for i in range(1000)]


async def test_a_refused_command_raises_and_harms_nobody_else(redis: Redis) -> None:
    """The error names the command and the server's code; its neighbours on the connection succeed."""
    await redis.execute("SET", "k", "text")
    before, refused, after = await asyncio.gather(
        redis.execute("GET", "k"), redis.execute("INCR", "k"), redis.execute("GET", "k"), return_exceptions=True
    )
    assert (before, after) == (b"text", b"text")
    assert isinstance(refused, ServerReplyError)
    assert (refused.code, refused.command) == ("ERR", "INCR")


async def test_a_pipeline_returns_replies_in_order_and_raises_the_first_refusal(redis: Redis) -> None:
    """Commands after a refused one still run; return_errors puts the refusal in its place."""
    assert await redis.pipeline([("SET", "a", 1), ("INCR", "a"), ("GET", "a")]) == [b"OK", 2, b"2"]
    with pytest.raises(ServerReplyError, match="LPUSH"):
        await redis.pipeline([("LPUSH", "a", "x"), ("INCR", "a")])
    replies = await redis.pipeline([("LPUSH", "a", "x"), ("INCR", "a")], return_errors=True)
    assert isinstance(replies[0], ServerReplyError)
    assert replies[1] == 4
    assert await redis.pipeline([]) == []


async def test_a_transaction_is_one_step_for_everybody_else(redis: Redis, valkey_server: EmbeddedValkey) -> None:
    """Two connections that append pairs in transactions never interleave them."""
    async with Redis(RedisConfig(url=valkey_server.url)) as other:

        async def append(client: Redis, word: str) -> None:
            for _ in range(50):
                await client.transaction([("RPUSH", "log", word), ("RPUSH", "log", word)])

        await asyncio.gather(append(redis, "a"), append(other, "b"), append(redis, "c"))
    log = await redis.execute("LRANGE", "log", 0, -1)
    assert len(log) == 300
    assert all(first == second for first, second in zip(log[::2], log[1::2], strict=True))


async def test_a_transaction_with_an_unknown_command_executes_nothing(redis: Redis) -> None:
    """The error is the cause (the unknown command), not EXECABORT; the connection stays usable."""
    with pytest.raises(ServerReplyError, match=r"refused NOSUCHCOMMAND.*unknown command"):
        await redis.transaction([("SET", "k", 1), ("NOSUCHCOMMAND",)])
    assert await redis.execute("GET", "k") is None


async def test_a_transaction_reports_a_command_refused_while_executing(redis: Redis) -> None:
    """The others took effect; the error says which command it was."""
    await redis.execute("SET", "text", "x")
    with pytest.raises(ServerReplyError, match="INCR"):
        await redis.transaction([("SET", "k", 1), ("INCR", "text")])
    assert await redis.execute("GET", "k") == b"1"
    ok, refused = await redis.transaction([("SET", "k", 2), ("INCR", "text")], return_errors=True)
    assert ok == b"OK"
    assert isinstance(refused, ServerReplyError)
    assert await redis.transaction([]) == []


async def test_what_works_in_the_background_ends_before_the_connection_in_reverse_order(
    valkey_server: EmbeddedValkey,
) -> None:
    """on_close callbacks still have a working connection; one taken back does not run; close() twice runs them once."""
    order: list[object] = []
    async with Redis(RedisConfig(url=valkey_server.url)) as redis:

        async def first() -> None:
            order.append(("first", await redis.execute("ECHO", "still here")))

        async def second() -> None:
            order.append("second")

        async def third() -> None:
            order.append("third")

        redis.on_close(first)
        redis.on_close(second)
        forget = redis.on_close(third)
        forget()
        forget()
    await redis.close()
    assert order == ["second", ("first", b"still here")]


async def test_a_failing_callback_keeps_nobody_from_ending(valkey_server: EmbeddedValkey) -> None:
    """Its exception is raised after the others ran and the connection is closed."""
    ran = []
    redis = Redis(RedisConfig(url=valkey_server.url))
    await redis.__aenter__()

    async def broken() -> None:
        raise RuntimeError("broken")

    async def sound() -> None:
        ran.append(True)

    redis.on_close(sound)
    redis.on_close(broken)
    with pytest.raises(ExceptionGroup, match="failed to end"):
        await redis.close()
    assert ran == [True]
    with pytest.raises(ClosedError):
        await redis.execute("PING")


async def test_unopened_and_closed_clients_say_so(valkey_server: EmbeddedValkey) -> None:
    """Before and after its `async with` a client refuses to work, without I/O."""
    redis = Redis(RedisConfig(url=valkey_server.url))
    with pytest.raises(ClosedError):
        await redis.execute("PING")
    async with redis:
        assert await redis.execute("PING") == b"PONG"
    with pytest.raises(ClosedError):
        await redis.execute("PING")


async def test_an_open_client_cannot_be_entered_again_but_a_closed_one_can(valkey_server: EmbeddedValkey) -> None:
    """Entering twice would lose a connection; after close it is a fresh start, statistics go on."""
    redis = Redis(RedisConfig(url=valkey_server.url))
    async with redis:
        with pytest.raises(RuntimeError, match="open already"):
            await redis.__aenter__()
        assert await redis.execute("ECHO", 1) == b"1"
    async with redis:
        assert await redis.execute("ECHO", 2) == b"2"
    assert redis.stats().connections == 2
    assert "closed" in repr(redis)


async def test_disabled_it_does_no_io_at_all() -> None:
    """Nothing listens at that port: every call returns its neutral value at once."""
    async with Redis(RedisConfig(enabled=False, port=1)) as redis:
        assert not redis.enabled
        assert await redis.execute("GET", "k") is None
        assert await redis.ping() == 0.0
        assert await redis.pipeline([("GET", "k"), ("GET", "k")]) == [None, None]
        assert await redis.transaction([("GET", "k")]) == [None]


async def test_an_unreachable_server_is_named_at_once() -> None:
    """Nothing listens: the error names host, port and cause in well under the connect timeout."""
    async with asyncio.timeout(1):
        with pytest.raises(RedisUnavailableError, match=r"127\.0\.0\.1:1 "):
            async with Redis(RedisConfig(host="127.0.0.1", port=1)):
                pytest.fail("it connected to nothing")
