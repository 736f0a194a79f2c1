"""The main job itself, for a few seconds: every rule holds, and each process for itself would break them."""

from __future__ import annotations

import json

import pytest


@pytest.mark.timeout(120)
def test_the_main_job_keeps_every_rule_that_processes_on_their_own_break(run_demo):
    """
    Four processes on one key: nothing refused, the quota used, one token, no gap, every row accounted for.

    The comparison is real: without sharing, the same collectors exceed the quota and each issues a token.
    """
    done = run_demo("--seconds", "5", "--compare", "--json")
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
    alone = report["compare"]
    assert alone["ok"] is False
    assert alone["kis"]["rejected"] > 0
    assert alone["tokens_issued"] == 4
