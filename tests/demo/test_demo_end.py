"""The demo while it runs and when it is ended: what it shows, and that nothing outlives it."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request

import psutil
import pytest

from aegis.embedded import free_port


def gone(processes: list[psutil.Process], timeout_s: float = 20.0) -> bool:
    """Whether all of them end in time."""
    deadline = time.monotonic() + timeout_s
    while any(process.is_running() for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def read(url: str) -> str:
    return urllib.request.urlopen(url, timeout=20).read().decode()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_demo_that_is_ended(running_demo, end):
    """Servers, simulator and collectors are gone, whatever ends the demo."""
    with running_demo() as (demo, _):
        descendants = psutil.Process(demo.pid).children(recursive=True)
        assert len(descendants) > 6
        demo.send_signal(end)
        assert demo.wait(30) == {signal.SIGKILL: -signal.SIGKILL}.get(end, 130)
    assert gone(descendants)


@pytest.mark.timeout(120)
def test_dashboard_and_metrics_show_the_run_until_ctrl_c_ends_it_in_order(running_demo):
    """The page and the scrape tell what the report tells; then every process leaves."""
    metrics = str(free_port())
    with running_demo(METRICS_ENABLED="true", METRICS_PORT=metrics) as (demo, page):
        shown = json.loads(read(f"{page}state.json"))
        assert shown["run"]["upstreams"]["kis"]["requests"] > 0
        assert {"process:collector 0", "process:collector 1"} <= shown.keys()
        assert "<title>aegis</title>" in read(page)
        scraped = read(f"http://127.0.0.1:{metrics}/metrics")
        assert re.search(r'aegis_upstream_requests_total\{process="demo",upstream="kis"\} [1-9]', scraped)
        for collector in range(2):
            granted = rf'limit="kis",outcome="granted",process="collector_{collector}"'
            assert re.search(r"aegis_limiter_waits_total\{lane=\"\w+\"," + granted + r"\} [1-9]", scraped)
        descendants = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    assert gone(descendants)
