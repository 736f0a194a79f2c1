"""The front door of the benchmarks: it lists them, runs them, says what failed, and ends what it started."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from aegis.testing import until_sync

ROOT = Path(__file__).parent.parent


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_every_benchmark_is_listed_with_its_question():
    """Each file but the shared ones."""
    with start("--list") as listing:
        listed = dict(line.split(maxsplit=1) for line in listing.communicate()[0].splitlines())
    assert listing.returncode == 0
    assert set(listed) == {path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem[0] != "_"}
    assert all(question.count(" ") > 3 for question in listed.values())


def test_a_report_says_what_was_measured_on_what():
    """The chosen one is run; its report comes as JSON by name, its progress elsewhere."""
    with start("ratelimit_server", "--smoke", "--json") as running:
        said, progress = running.communicate()
    assert running.returncode == 0, progress
    assert list(json.loads(said)) == ["ratelimit_server"]
    assert "[1/1] ratelimit_server done after" in progress


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["caches"], "no benchmark begins with caches; there are: cache_hit, "),
        (["--save", "--json", "--smoke"], "what is committed are real figures"),
    ],
)
def test_what_makes_no_sense_is_refused(options, complaint):
    """Before anything runs."""
    with start(*options) as refused:
        assert complaint in refused.communicate()[1]
    assert refused.returncode != 0


def test_ctrl_c_leaves_nothing_running():
    """The benchmark, its workers and its servers end; the exit code is that of an interrupted program."""
    with start("sync_call") as running:
        family = psutil.Process(running.pid)
        started = until_sync(lambda: len(all_ := family.children(recursive=True)) > 2 and all_)  # with its server
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
        until_sync(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in started))
