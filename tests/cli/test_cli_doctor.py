"""`aegis doctor` as a shell sees it: lines for people, JSON for scripts, exit codes for both."""

from __future__ import annotations

import json

import pytest

NOWHERE = dict.fromkeys(("KIS_BASE_URL", "DART_BASE_URL", "NAVER_BASE_URL", "NAVER_CHART_URL"), "http://127.0.0.1:1")
WELL = {"REDIS_URL": "embedded:", "DATABASE_URL": "embedded:", "PORT": "0"}


@pytest.fixture
def doctor(command):
    """`aegis doctor ...` where no upstream can be reached."""
    return lambda *args, **environ: command("doctor", *args, **{**NOWHERE, **environ})


def test_all_well_is_exit_code_0(doctor):
    """One line for each check, a count at the end, nothing on stderr."""
    done = doctor("redis", "postgres", "ports", **WELL)
    assert (done.returncode, done.stderr) == (0, "")
    assert "upstreams" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("5 ok, 1 skipped")


def test_a_failure_is_exit_code_1_and_says_what_to_do(doctor):
    """The remedy stands below its line; the log of the rooms does not get in between."""
    done = doctor(
        "redis", "postgres", **WELL | {"REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAILED" in done.stdout
    assert "-> start the server, or set REDIS_URL" in done.stdout


def test_warnings_fail_only_when_asked_to(doctor):
    """`--strict` is for a deployment's gate."""
    off = WELL | {"REDIS_URL": "", "REDIS_ENABLED": "false"}
    assert doctor("redis", **off).returncode == 0
    assert doctor("redis", "--strict", **off).returncode == 1


def test_a_bad_configuration_is_exit_code_78(doctor):
    """As everywhere."""
    done = doctor(REDIS_DB="x")
    assert done.returncode == 78
    assert "REDIS_DB" in done.stdout


def test_findings_are_records_for_scripts(doctor):
    """Area, check, verdict, what was seen, what to do."""
    done = doctor("upstreams", "--json", **WELL)
    report = json.loads(done.stdout)
    assert report["ok"] is False
    assert done.returncode == 1
    naver = next(finding for finding in report["findings"] if finding["check"] == "Naver host")
    assert naver["verdict"] == "failed"
    assert naver["remedy"]


def test_an_unknown_area_is_refused(doctor):
    """Exit code 2, the names that there are."""
    done = doctor("kafka")
    assert done.returncode == 2
    assert "redis, postgres" in done.stderr
