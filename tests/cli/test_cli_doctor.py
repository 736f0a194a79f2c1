"""`aegis doctor` as a shell sees it: lines for people, JSON for scripts, exit codes for both."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from aegis.config import child_environ

NOWHERE = dict.fromkeys(("KIS_BASE_URL", "DART_BASE_URL", "NAVER_BASE_URL", "NAVER_CHART_URL"), "http://127.0.0.1:1")
WELL = {"REDIS_URL": "embedded:", "DATABASE_URL": "embedded:", "PORT": "0"}


def doctor(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "aegis", "doctor", "--env-file", os.devnull, *args],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=child_environ({**NOWHERE, **environ}),
    )
    assert "Traceback" not in done.stderr
    return done


def test_all_well_is_exit_code_0():
    """One line for each check, a count at the end, nothing on stderr."""
    done = doctor("redis", "postgres", "ports", **WELL)
    assert (done.returncode, done.stderr) == (0, "")
    assert "upstreams" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("5 ok, 1 skipped")


def test_a_failure_is_exit_code_1_and_says_what_to_do():
    """The remedy stands below its line; the log of the rooms does not get in between."""
    done = doctor(
        "redis", "postgres", **WELL | {"REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAILED" in done.stdout
    assert "-> start the server, or set REDIS_URL" in done.stdout


def test_warnings_fail_only_when_asked_to():
    """`--strict` is for a deployment's gate."""
    off = WELL | {"REDIS_URL": "", "REDIS_ENABLED": "false"}
    assert doctor("redis", **off).returncode == 0
    assert doctor("redis", "--strict", **off).returncode == 1


def test_a_bad_configuration_is_exit_code_78():
    """As everywhere."""
    done = doctor(REDIS_DB="x")
    assert done.returncode == 78
    assert "REDIS_DB" in done.stdout


def test_findings_are_records_for_scripts():
    """Area, check, verdict, what was seen, what to do."""
    done = doctor("upstreams", "--json", **WELL)
    report = json.loads(done.stdout)
    assert report["ok"] is False
    assert done.returncode == 1
    naver = next(finding for finding in report["findings"] if finding["check"] == "Naver host")
    assert naver["verdict"] == "failed"
    assert naver["remedy"]


def test_an_unknown_area_is_refused():
    """Exit code 2, the names that there are."""
    done = doctor("kafka")
    assert done.returncode == 2
    assert "redis, postgres" in done.stderr
