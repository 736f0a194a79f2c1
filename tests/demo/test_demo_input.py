"""What a user may get wrong: each is one clear error at the edge, and nothing has started."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--processes", "0"), "--processes"),
        (("--cluster", "3+1"), "3+1"),
        (("--replay", "/nowhere/bars.csv"), "/nowhere/bars.csv"),
    ],
)
def test_bad_command_line_is_one_clear_error(run_demo, args, says):
    """It names the option or the file, exits with a code that says so, and starts nothing."""
    done = run_demo(*args)
    assert done.returncode in {1, 2}
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_taken_ports_are_one_clear_error_and_nothing_starts(run_demo):
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


def test_wrong_variable_is_named_and_the_exit_code_says_so(run_demo):
    """Exit code 78, every variable by name."""
    done = run_demo(METRICS_PORT="ninety", REDIS_HOSTT="x")
    assert done.returncode == 78
    assert "METRICS_PORT" in done.stderr
    assert "did you mean REDIS_HOST?" in done.stderr
    assert "Traceback" not in done.stderr


def test_malformed_replay_names_file_line_and_expectation(run_demo, tmp_path: Path):
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
