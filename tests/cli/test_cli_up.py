"""`aegis up` and `aegis limits`: real servers with real commands on them, gone with whoever started them."""

from __future__ import annotations

import asyncio
import contextlib
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
from aegis.embedded import EmbeddedValkey, free_port
from aegis.redis import Rate, RateLimit
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
    """What the user's shell says about other servers does not reach it; the rest does."""
    code = """
import os, socket, sys
assert "REDIS_PASSWORD" not in os.environ and os.environ["KIS_APP_KEY"] == "k"
from urllib.parse import urlsplit
for name in ("REDIS_URL", "DATABASE_URL"):
    url = urlsplit(os.environ[name])
    with socket.create_connection((url.hostname, url.port)) as server:
        if name == "REDIS_URL":
            server.sendall(b"PING\\r\\n")
            assert server.recv(100) == b"+PONG\\r\\n"
sys.exit(7)
"""
    others = {"REDIS_URL": "redis://127.0.0.1:1", "REDIS_PASSWORD": SECRET}
    done = aegis("up", "--no-page", "--", sys.executable, "-S", "-c", code, **others, KIS_APP_KEY="k")
    assert done.returncode == 7, done.stderr


def test_a_command_that_is_not_there_is_one_line(command):
    """And the exit code of a shell."""
    done = command("up", "--redis", "none", "--no-postgres", "--no-page", "--", "/nothing/here")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr.splitlines()[-1] == "aegis: cannot run /nothing/here: No such file or directory"


def test_variables_are_for_a_shell_and_servers_end_with_us():
    """Every line can be pasted; nothing outlives the command, even where nothing can be done about its end."""
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
        up.kill()
        assert up.wait(30) == -signal.SIGKILL
    wait_for_the_end_of(children)


def wait_for_the_end_of(children: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "a server outlived us"
        time.sleep(0.05)


@pytest.mark.parametrize(("end", "options"), [(signal.SIGINT, ()), (signal.SIGTERM, ("--no-postgres",))])
async def test_a_page_shows_what_is_on_them(end, options):
    """On PORT: what a process with the printed variables publishes is there. Ctrl-C and SIGTERM end all of it."""
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
                        if (await answer.json())["prices"] == {"005930": [75_800]}:
                            break
                    await asyncio.sleep(0.05)
            async with session.get(f"{url}state.json") as answer:
                servers = (await answer.json()).get("servers", {})
        assert ("PostgreSQL" in servers) is (not options) or not servers
        children = psutil.Process(up.pid).children(recursive=True)
        assert len(children) >= (2 if options else 4)  # each a guardian and its server
    finally:
        up.send_signal(end)
        assert await up.wait() == 130
    await asyncio.to_thread(wait_for_the_end_of, children)


@pytest.mark.parametrize(
    ("options", "scheme", "places"),
    [
        ("--redis sentinel", "redis+sentinel", 3),
        ("--cluster 2+0", "redis+cluster", 2),
    ],
)
def test_groups_of_servers(options, scheme, places):
    """Their URL is the one that the configuration reads."""
    done = aegis("up", *options.split(), "--no-postgres", "--no-page", "--", "sh", "-c", "echo $REDIS_URL")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{scheme}://")
    assert len(done.stdout.split(",")) == places
    Config.load({"REDIS_URL": done.stdout.strip()}, None)


@pytest.mark.parametrize("options", ["--cluster 3+2", "--cluster 3", "--cluster 0+0", "--cluster 3+3 --sentinel"])
def test_groups_that_cannot_be_are_refused_before_anything_starts(options, command):
    """One line that says what is expected."""
    done = command("up", *options.split())
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


def test_limits_of_ones_own_are_found_where_a_program_defines_them(command, valkey_server, tmp_path):
    """One by its name, all of a module, imported from the working directory; what is none is said."""
    rates = "Rate(20, per=1.0), Rate(100, per=60.0)"
    source = f"""
from aegis.redis import Rate, RateLimit
ORDERS = RateLimit("orders", {rates})
NEWS = RateLimit("news", Rate(1, per=2.0))
"""
    (tmp_path / "its_limits.py").write_text(source)
    with sync.Redis(Config.load({"REDIS_URL": valkey_server.url}, None).redis) as redis:
        redis.execute("FLUSHALL")
        sync.RateLimiter(redis).allow(RateLimit("orders", Rate(20, per=1.0), Rate(100, per=60.0)), key=SECRET)
    environ = {"REDIS_URL": valkey_server.url}
    [row] = json.loads(command("limits", "its_limits:ORDERS", "--key", SECRET, "--json", **environ).stdout)
    assert (row["limit"], row["rates"]) == ("orders", [{"limit": 20, "per": 1.0}, {"limit": 100, "per": 60.0}])
    (tmp_path / "its").mkdir()
    (tmp_path / "its" / "limits.py").write_text(source)
    rows = json.loads(command("limits", "kis", "its.limits", "its.limits:NEWS", "--json", **environ).stdout)
    assert [row["limit"] for row in rows] == ["kis", "orders", "news"]
    for wrong, why in (
        ("its_limits:ORDER", "there is no RateLimit 'ORDER' in 'its_limits'"),
        ("json.decoder", "there is no RateLimit in 'json.decoder'"),
        ("nothing.here", "'nothing.here' cannot be imported: ModuleNotFoundError"),
    ):
        done = command("limits", wrong)
        assert done.returncode == 2
        assert why in " ".join(done.stderr.split())


def test_the_live_view_outlasts_an_outage_and_ends_with_ctrl_c():
    """On a terminal it goes on, and says so while the server is away; exit code 130, the cursor is shown again."""
    leader, follower = os.openpty()
    with EmbeddedValkey(port=free_port()) as server:
        environ = {"REDIS_URL": server.url, "REDIS_COMMAND_TIMEOUT": "500ms", "TERM": "xterm", "COLUMNS": "120"}
        with subprocess.Popen(
            [*AEGIS, "limits", "kis"], stdin=follower, stdout=follower, stderr=follower, env=child_environ(environ)
        ) as shown:
            os.close(follower)
            screen = b""

            def until(text: bytes, times: int = 1) -> None:
                nonlocal screen
                screen = b""
                while screen.count(text) < times:
                    screen += os.read(leader, 4096)

            until(b"5 in 1 s", times=3)  # drawn again and again
            server.kill()
            until(b"these are the values from before")
            server.start()
            while b"these are" in screen:  # a whole picture without it
                until(b"5 in 1 s", times=3)
            shown.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # the other side is closed
                while chunk := os.read(leader, 4096):
                    screen += chunk
            assert shown.wait(20) == 130
    os.close(leader)
    assert b"\x1b[?25h" in screen
