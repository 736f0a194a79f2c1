"""The main job itself, for a few seconds: every rule holds, and nothing outlives it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from aegis.embedded import free_port

AEGIS = (sys.executable, "-m", "aegis")


def run_demo(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AEGIS, "demo", "--port", "0", *args],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, **environ},
    )


def eventually(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


@pytest.mark.timeout(120)
def test_the_main_job_keeps_every_rule():
    """Four processes on one key: nothing refused, the quota used, one token, no gap, every row accounted for."""
    done = run_demo("--seconds", "6", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"] is True
    assert report["processes"] == 4
    assert [report[name]["rejected"] for name in ("kis", "dart", "naver")] == [0, 0, 0]
    assert report["kis"]["worst_window"] <= 5
    assert report["kis"]["quota_used"] >= 0.9
    assert report["tokens_issued"] == 1
    assert report["ticks_received"] == report["ticks_published"] > 0
    assert report["gaps"] == 0
    assert report["rows_inserted"] == report["rows_in_table"] > 0
    assert report["cache"]["loads"] > 0


@pytest.mark.timeout(120)
def test_each_process_for_itself_breaks_the_rules_that_sharing_keeps():
    """The comparison is real: without sharing, the same collectors exceed the quota and issue several tokens."""
    done = run_demo("--seconds", "5", "--processes", "3", "--compare", "--json")
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["ok"] is True
    alone = report["compare"]
    assert alone["ok"] is False
    assert alone["kis"]["rejected"] > 0
    assert alone["tokens_issued"] == 3


@pytest.mark.timeout(120)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_a_demo_that_is_ended(end):
    """Servers, simulator, collectors and their directories are gone, whatever ends the demo."""
    with subprocess.Popen(
        [*AEGIS, "demo", "--seconds", "60", "--port", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as demo:
        descendants: list[psutil.Process] = []
        for line in demo.stderr:
            if " s of 60" in line:  # it runs: every process is there
                descendants = psutil.Process(demo.pid).children(recursive=True)
                break
        assert len(descendants) > 8
        demo.send_signal(end)
        assert demo.wait(30) == {signal.SIGKILL: -signal.SIGKILL}.get(end, 130)
    eventually(lambda: not any(process.is_running() for process in descendants))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--no-such-option",), "--no-such-option"),
        (("--processes", "0"), "--processes"),
        (("--replay", "/nowhere/bars.csv"), "/nowhere/bars.csv"),
    ],
)
def test_bad_command_line_is_one_clear_error(args, says):
    """It names the option or the file, exits with a code that says so, and starts nothing."""
    done = run_demo(*args)
    assert done.returncode in {1, 2}
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_taken_ports_are_one_clear_error_and_nothing_starts():
    """Dashboard and metrics: the port, the reason, the remedy, exit code 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for done, what in (
            (run_demo("--port", port), "dashboard"),
            (run_demo(PORT="0", METRICS_ENABLED="true", METRICS_PORT=port), "metrics"),
        ):
            assert done.returncode == 1
            [line] = done.stderr.splitlines()
            assert f"the {what} cannot listen on port {port}" in line


def test_wrong_variable_is_named_and_the_exit_code_says_so():
    """Exit code 78, every variable by name."""
    done = run_demo(METRICS_PORT="ninety", REDIS_HOSTT="x")
    assert done.returncode == 78
    assert "METRICS_PORT" in done.stderr
    assert "did you mean REDIS_HOST?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(120)
def test_dashboard_and_metrics_show_the_run():
    """The page and the scrape tell what the report tells."""
    with subprocess.Popen(
        [*AEGIS, "demo", "--seconds", "30", "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "METRICS_ENABLED": "true", "METRICS_PORT": (metrics := str(free_port()))},
    ) as demo:
        page = re.search(r"http://\S+/", demo.stderr.readline())[0]
        for line in demo.stderr:
            if " s of 30" in line:
                break
        shown = json.loads(urllib.request.urlopen(f"{page}state.json", timeout=5).read())
        assert shown["run"]["upstreams"]["kis"]["requests"] > 0
        assert {f"process:collector {index}" for index in range(4)} <= shown.keys()
        assert "<title>aegis</title>" in urllib.request.urlopen(page, timeout=5).read().decode()
        scraped = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=20).read().decode()
        assert re.search(r'aegis_upstream_requests_total\{process="demo",upstream="kis"\} [1-9]', scraped)
        for collector in range(4):
            granted = rf'limit="kis",outcome="granted",process="collector_{collector}"'
            assert re.search(r"aegis_limiter_waits_total\{lane=\"\w+\"," + granted + r"\} [1-9]", scraped)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130


def test_malformed_replay_names_file_line_and_expectation(tmp_path: Path):
    """The line that cannot be read is named, and what was expected."""
    bars = tmp_path / "bars.csv"
    header = "date,code,name,market,open,high,low,close,volume,amount,market_cap,shares\n"
    bars.write_text(header + "2026-01-02,005930,삼성전자,KOSPI,1,2,x,2,1,1,1,1\n")
    done = run_demo("--replay", str(bars))
    assert done.returncode in {1, 2}
    assert "bars.csv" in done.stderr
    assert "2" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.linesep.join(done.stderr.splitlines()[:1]) == done.stderr.strip()


def test_help_and_version_need_nothing():
    """`--help` lists the commands; `--version` names the versions that matter."""
    shown = subprocess.run([*AEGIS, "--help"], capture_output=True, text=True, check=True).stdout
    assert "demo" in shown
    shown = subprocess.run([*AEGIS, "--version"], capture_output=True, text=True, check=True).stdout
    assert "aegis" in shown
    assert "asyncpg" in shown
