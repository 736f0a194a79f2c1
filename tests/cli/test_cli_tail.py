"""`aegis tail`, as a process of its own, on a real server."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from aegis import sync
from aegis.cli.tail import as_text
from aegis.config import Config
from aegis.redis import Gap, PubSub, Update


async def start(url: str, *arguments: str) -> asyncio.subprocess.Process:
    """The command, with the server in its environment."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "aegis", "tail", *arguments,
        env={"REDIS_URL": url, "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def line_of(process: asyncio.subprocess.Process) -> dict[str, object]:
    return json.loads(await asyncio.wait_for(process.stdout.readline(), 30))


async def test_lines_of_json_follow_the_keys_asked_for(redis, valkey_server):
    """First the last values, then what changes, and nothing of other keys; Ctrl-C ends it with 130."""
    async with PubSub(redis) as bus:
        await bus.publish("005930", {"price": 70_000})
        await bus.publish("000660", {"price": 200_000})
        await bus.flush()
        process = await start(valkey_server.url, "quotes", "005930", "--json")
        first = await line_of(process)
        assert (first["key"], first["value"], first["snapshot"]) == ("005930", {"price": 70_000}, True)
        await bus.publish("000660", {"price": 200_100})
        await bus.publish("005930", {"price": 70_100}, urgent=True)
        then = await line_of(process)
        assert (then["key"], then["value"], then["snapshot"]) == ("005930", {"price": 70_100}, False)
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in err


def test_lines_for_people_and_a_count(command, valkey_server):
    """Where the output is no terminal, one line per update; it ends after as many as asked for."""
    config = Config.load({"REDIS_URL": valkey_server.url}, None)
    with sync.Redis(config.redis) as redis:
        redis.execute("FLUSHALL")
        with sync.PubSub(redis) as bus:
            bus.publish("a", 1)
            bus.publish("b", 2)
    done = command("tail", "quotes", "--pattern", "[ab]", "--count", "2", REDIS_URL=valkey_server.url)
    assert done.returncode == 0, done.stderr
    assert sorted(line.split("  ")[1:] for line in done.stdout.splitlines()) == [["a", "1"], ["b", "2"]]


def test_without_a_server_it_says_so(command):
    """One line on stderr, naming the address, and exit code 1."""
    done = command("tail", "quotes", REDIS_URL="redis://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "127.0.0.1:1" in done.stderr


def test_text_of_updates_and_losses():
    """A loss cannot be overlooked."""
    assert as_text(Update("a", {"p": 1}, 5, 3, 0.0)).endswith('  a  {"p":1}  (+3 folded)')
    assert as_text(Gap("3/p.1", 1, 7, 7, "why")) == "-- 7 ticks of 3/p.1 were lost: why"
    assert as_text(Gap("3", 0, 0, 0, "why")).startswith("-- unknown ticks")
