"""Metrics of one process and of several on one port: fresh, complete, and right about who is alive."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import metrics_child
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aegis.errors import MetricsDirectoryError, PortTakenError
from aegis.telemetry import MetricsServer, Sample, on_loop
from aegis.telemetry._home import home_of, sweep
from aegis.telemetry.sample import histogram

#: Real processes, each forked from one that has imported everything: a tenth of a start from nothing.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["aegis.telemetry"])


def scraped(port):
    """Every sample as `{name: {labels: value}}`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            of_name = found.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in of_name, f"{sample.name}{labels} twice"
            of_name[labels] = sample.value
    return found


def by_process(found, name="aegis_process_up"):
    return {dict(labels)["process"]: value for labels, value in found.get(name, {}).items()}


def eventually_up(port, expected):
    """A scrape that shows these processes; on a busy machine one may answer too late for the first."""
    return eventually(lambda: by_process(found := scraped(port)) == expected and found, str(expected))


def eventually(true, what):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if (value := true()) is not None and value is not False:
                return value
        time.sleep(0.05)
    raise AssertionError(f"{what} never came")


def meeting_place(port):
    return Path(tempfile.gettempdir(), f"aegis-metrics-{os.getuid()}-{port}")


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    yield free
    shutil.rmtree(meeting_place(free), ignore_errors=True)


@pytest.fixture
def start(port):
    """Start a process with that name; gives it, and whether it `serves` or `waits`."""
    children = []

    def started(name):
        here, there = FORKS.Pipe()
        child = FORKS.Process(target=metrics_child.main, args=(port, name, there))
        child.start()
        there.close()
        child.said = here
        children.append(child)
        return child, here.recv()

    yield started
    for child in children:
        child.kill()
        child.join()
        child.said.close()


def test_every_kind_of_number_is_scraped_as_what_it_is():
    """Counters, gauges and histograms, asked for at each scrape, with the labels they have."""
    count = 0

    def samples():
        nonlocal count
        count += 1
        yield Sample("jobs", "Jobs.", count, (("kind", 'a"b\n'),), total=True)
        yield Sample("queue", "Queue.", 1.5)
        yield histogram("took_seconds", "Took.", 7.5, (0.1, 1.0), (1, 2, 3), ("kind", "x"))

    with MetricsServer(samples, 0, process="me") as server:
        first, second = scraped(server.port), scraped(server.port)
    jobs = (("kind", 'a"b\n'), ("process", "me"))
    assert (first["aegis_jobs_total"][jobs], second["aegis_jobs_total"][jobs]) == (1, 2)
    assert first["aegis_queue"] == {(("process", "me"),): 1.5}
    buckets = {dict(labels)["le"]: value for labels, value in first["aegis_took_seconds_bucket"].items()}
    assert buckets == {"0.1": 1, "1.0": 3, "+Inf": 6}
    mine = (("kind", "x"), ("process", "me"))
    assert (first["aegis_took_seconds_count"][mine], first["aegis_took_seconds_sum"][mine]) == (6, 7.5)
    with pytest.raises(OSError):
        scraped(server.port)


def test_processes_share_a_port_and_stand_under_their_names(port, start):
    """The first serves, the others are asked at each scrape; two of one name are told apart by their numbers."""
    (first, does), (second, waits), (third, too) = start("web"), start("collector 1"), start("collector 1")
    assert (does, waits, too) == ("serves", "waits", "waits")
    found = eventually(lambda: set(by_process(found := scraped(port)).values()) == {1.0} and found, "everybody")
    pids = by_process(found, "aegis_test_pid")
    assert sorted(pids.values()) == sorted([first.pid, second.pid, third.pid])
    assert pids["web"] == first.pid
    assert {name.rpartition("-")[0] for name in pids if name != "web"} == {"collector_1"}
    assert set(by_process(found).values()) == {1.0}
    assert len(found["aegis_test_asked_total"]) == 3
    assert set(by_process(found, "aegis_test_true").values()) == {1.0}
    assert list(found["aegis_test_took_bucket"].values()) == [1.0] * 6


def test_a_killed_process_is_gone_and_a_killed_server_is_replaced(port, start):
    """`kill -9`, first of one that is asked, then of the one that serves: the next scrapes show who is left."""
    (server, _), (second, _), (third, _) = start("one"), start("two"), start("three")
    second.kill()
    second.join()
    eventually_up(port, {"one": 1.0, "three": 1.0})
    server.kill()
    server.join()
    found = eventually_up(port, {"three": 1.0})
    assert by_process(found, "aegis_test_pid") == {"three": third.pid}
    late, does = start("four")
    assert does == "waits"
    eventually_up(port, {"three": 1.0, "four": 1.0})
    late.said.close()
    late.join()
    eventually_up(port, {"three": 1.0})


def test_a_process_that_hangs_is_down_and_holds_up_nobody(port, start):
    """Stopped in the middle of its life: the others are there, it stands at 0, and when it goes on it is up again."""
    start("one")
    stopped, _ = start("two")
    os.kill(stopped.pid, signal.SIGSTOP)
    eventually_up(port, {"one": 1.0, "two": 0.0})
    os.kill(stopped.pid, signal.SIGCONT)
    eventually_up(port, {"one": 1.0, "two": 1.0})


def test_a_port_of_somebody_else_is_said(port):
    """Neither waited for nor shared: the program there is none of ours."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(PortTakenError, match=str(port)):
            MetricsServer(list, port).__enter__()
    with MetricsServer(list, port) as server:
        assert server.serving


def test_who_leaves_last_removes_the_directory(port):
    """In whatever order they leave, and also while it serves."""
    with MetricsServer(list, port, process="a") as first, MetricsServer(list, port, process="b"):
        first.close()
        assert meeting_place(port).exists()
    assert not meeting_place(port).exists()
    with MetricsServer(list, port) as again:
        assert again.serving


def test_what_killed_processes_left_is_removed_by_the_next_that_starts(port, start):
    """For whatever port. Where somebody lives, or may be starting, everything stays."""
    killed, _ = start("killed")
    killed.kill()
    killed.join()
    left = meeting_place(port)
    with MetricsServer(list, 0), free_port_server("new"):
        assert left.exists()  # a moment ago somebody came
    with free_port_server("living") as living:
        for settled in (left, meeting_place(living)):
            os.utime(settled, (0, 0))
        with free_port_server("sweeping"):
            assert not left.exists()
            assert by_process(scraped(living)) == {"living": 1.0}


@contextlib.contextmanager
def free_port_server(name):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with MetricsServer(list, free, process=name):
        yield free


def test_a_lock_that_was_removed_makes_nobody_serve(port, monkeypatch):
    """Between opening and locking it, the last of the others left, and somebody new came: there is one server."""
    last, late, new = home_of(port), home_of(port), home_of(port)
    last.listen("1.1-last.sock").close()
    assert last.lead()
    lock = fcntl.flock

    def flock_after_a_change(*arguments):
        monkeypatch.setattr(fcntl, "flock", lock)
        (last.path / "1.1-last.sock").unlink()
        last.leave()
        assert not last.path.exists()
        new.listen("3.1-new.sock").close()
        assert new.lead()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock_after_a_change)
    assert not late.lead()
    new.resign()
    assert late.lead()
    late.resign()


def test_whoever_waits_to_serve_is_not_swept_away(port):
    """The one that served is dead, nobody has taken over yet: who listens stays, what is dead goes."""
    home = home_of(port)
    home.listen("1.1-dead.sock").close()
    with home.listen("2.1-waits.sock"):
        os.utime(home.path, (0, 0))
        sweep()
        assert [path.name for path in home.sockets()] == ["2.1-waits.sock"]
    os.utime(home.path, (0, 0))
    sweep()
    assert not home.path.exists()


def test_a_process_that_forgets_to_leave_leaves_nothing(port):
    """At its exit, it is as if it had."""
    program = f"from aegis.telemetry import MetricsServer; MetricsServer(list, {port}).__enter__()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert not meeting_place(port).exists()


def test_a_directory_that_others_can_enter_is_refused(port):
    """They could answer in our name."""
    meeting_place(port).mkdir()
    meeting_place(port).chmod(0o755)
    with pytest.raises(MetricsDirectoryError, match="mode 0700"):
        MetricsServer(list, port).__enter__()


def test_a_process_whose_numbers_fail_is_down_and_says_why(port, caplog):
    """The scrape goes on without them."""

    def samples():
        raise KeyError

    with MetricsServer(samples, port, process="broken"):
        assert by_process(scraped(port)) == {"broken": 0.0}
    assert "cannot be read" in caplog.text


async def test_numbers_are_read_in_the_thread_of_their_loop(port):
    """And a loop that hangs makes the process down, not the scrape hang."""
    threads = []

    def samples():
        threads.append(threading.current_thread())
        return [Sample("one", "One.", 1)]

    with MetricsServer(on_loop(asyncio.get_running_loop(), samples), port, process="me"):
        await asyncio.to_thread(eventually_up, port, {"me": 1.0})
        assert set(threads) == {threading.current_thread()}
        assert len(on_loop(asyncio.get_running_loop(), samples)()) == 1
        with ThreadPoolExecutor() as elsewhere:
            asked = elsewhere.submit(scraped, port)
            assert by_process(asked.result(20)) == {"me": 0.0}  # the loop hangs in this line: that is the case
