"""`aegis up` and `aegis limits`: real servers with real commands on them, gone with whoever started them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import aiohttp
import psutil
import pytest

from aegis import sync
from aegis.config import Config, child_environ
from aegis.runtime import Runtime
from aegis.upstream import DART_RATE_LIMIT, NAVER_RATE_LIMIT

AEGIS = (sys.executable, "-m", "aegis")
SECRET = "zq-do-not-show"


def aegis(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*AEGIS, *args], capture_output=True, text=True, timeout=55, check=False, env=child_environ(environ)
    )
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done


def test_a_command_runs_with_the_variables_and_its_exit_code_is_ours():
    """What the user's shell says about other servers does not reach it."""
    code = """
import asyncio, sys
from aegis import Config, Runtime
async def main():
    async with Runtime(Config.load(env_file=None)) as rt:
        assert await rt.redis.execute("SET", "k", "v") == b"OK"
        assert await rt.db.fetch_value("select 1") == 1
asyncio.run(main())
sys.exit(7)
"""
    done = aegis("up", "--", sys.executable, "-c", code, REDIS_URL="redis://127.0.0.1:1")
    assert done.returncode == 7, done.stderr


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_variables_are_for_a_shell_and_servers_end_with_us(end):
    """Every line can be pasted; nothing outlives the command, whatever ends it."""
    environ = child_environ({"PORT": "0"})
    with subprocess.Popen(
        [*AEGIS, "up"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
    ) as up:
        lines = [up.stdout.readline(), up.stdout.readline()]
        variables = dict(shlex.split(line)[1].split("=", 1) for line in lines)
        assert variables.keys() == {"REDIS_URL", "DATABASE_URL"}
        Config.load(variables, None)
        children = psutil.Process(up.pid).children(recursive=True)
        assert len(children) >= 4  # two guardians, two servers
        up.send_signal(end)
        assert up.wait(30) == (-signal.SIGKILL if end is signal.SIGKILL else 130)
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "a server outlived us"
        time.sleep(0.05)


@pytest.mark.parametrize("options", [(), ("--no-postgres",)])
async def test_a_page_shows_what_is_on_them(options):
    """On PORT: what a process with the printed variables publishes is there."""
    up = await asyncio.create_subprocess_exec(
        *(*AEGIS, "up", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environ({"PORT": "0"}),
    )
    try:
        said = (await up.stderr.readuntil(b"Ctrl-C ends them")).decode()
        url = re.search(r"to be seen on (http://\S+/)", said)[1]
        lines = [(await up.stdout.readline()).decode() for _ in range(1 if options else 2)]
        variables = dict(shlex.split(line)[1].split("=", 1) for line in lines)
        async with Runtime(Config.load(variables, None), database=False) as rt, aiohttp.ClientSession() as session:
            await rt.bus.publish("005930", {"price": 75_800}, urgent=True)
            async with asyncio.timeout(30):
                while True:
                    async with session.get(f"{url}history.json") as answer:
                        if await answer.json() == {"005930": [75_800]}:
                            break
                    await asyncio.sleep(0.05)
            async with session.get(f"{url}state.json") as answer:
                servers = (await answer.json()).get("servers", {})
        assert ("PostgreSQL" in servers) is (not options) or not servers
    finally:
        up.send_signal(signal.SIGINT)
        assert await up.wait() == 130


@pytest.mark.parametrize(
    ("options", "scheme", "places"),
    [
        ("--redis sentinel", "redis+sentinel", 3),
        ("--cluster 2+0", "redis+cluster", 2),
    ],
)
def test_groups_of_servers(options, scheme, places):
    """Their URL is the one that the configuration reads."""
    code = "from aegis import Config; print(Config.load(env_file=None).redis.url.get_secret_value())"
    done = aegis("up", *options.split(), "--no-postgres", "--", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{scheme}://")
    assert len(done.stdout.split(",")) == places


@pytest.mark.parametrize("options", ["--cluster 3+2", "--cluster 3", "--cluster 0+0", "--cluster 3+3 --sentinel"])
def test_groups_that_cannot_be_are_refused_before_anything_starts(options):
    """One line that says what is expected."""
    done = aegis("up", *options.split())
    assert done.returncode == 2
    assert "expected primaries+replicas" in done.stderr or "exclude each other" in done.stderr


def test_limits_show_what_is_used_of_the_configured_key(command, valkey_server):
    """For the account of DART_API_KEY, which is not shown; held and free ones as well."""
    with sync.Redis(Config.load({"REDIS_URL": valkey_server.url}, None).redis) as redis:
        redis.execute("FLUSHALL")
        limiter = sync.RateLimiter(redis)
        for _ in range(60):
            limiter.allow(DART_RATE_LIMIT, key=SECRET)
        limiter.hold(NAVER_RATE_LIMIT, 60)
    environ = {"REDIS_URL": valkey_server.url, "DART_API_KEY": SECRET}
    rows = {row["limit"]: row for row in json.loads(command("limits", "--json", **environ).stdout)}
    assert rows["dart"]["used"] == 60
    assert rows["dart"]["rates"] == [{"limit": 100, "per": 60}]
    assert 0 < rows["naver"]["held_for"] <= 60
    assert rows["kis"]["used"] == 0
    done = command("limits", "dart", "naver", **environ)
    shown = done.stdout.splitlines()
    assert len(shown) == 3
    assert "████" in shown[1]
    assert SECRET not in done.stdout + done.stderr
    assert command("limits", "dart", "--key", "another", "--json", **environ).stdout.count('"used":0') == 1


def test_limits_without_redis_and_with_a_wrong_name_are_one_clear_line(command):
    """Exit codes 1 and 2."""
    done = command("limits", REDIS_URL="redis://127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    done = command("limits", "kiss")
    assert done.returncode == 2
    assert "kis" in done.stderr


def test_the_live_view_ends_with_ctrl_c(valkey_server):
    """On a terminal it goes on; exit code 130, the cursor is shown again."""
    leader, follower = os.openpty()
    with subprocess.Popen(
        [*AEGIS, "limits", "kis"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=child_environ({"REDIS_URL": valkey_server.url, "TERM": "xterm", "COLUMNS": "100"}),
    ) as shown:
        os.close(follower)
        screen = b""
        while screen.count(b"kis") < 3:  # drawn again and again
            screen += os.read(leader, 4096)
        shown.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(leader, 4096):
                screen += chunk
        except OSError:  # the other side is closed
            pass
        assert shown.wait(20) == 130
    os.close(leader)
    assert b"\x1b[?25h" in screen
