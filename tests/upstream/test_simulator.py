"""The simulator is strict: it counts arrivals in every sliding window, and a replay file must be right."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import PortTakenError, ReplayError
from aegis.upstream.simulator import Market, Simulator
from aegis.upstream.simulator.quota import Quota

HEADER = "date,code,name,market,open,high,low,close,volume,amount,market_cap,shares\n"
ROOT = Path(__file__).parents[2]
SECOND_NS = 1_000_000_000
ROW = "2026-01-02,005930,삼성전자,KOSPI,100,120,90,110,5,500,1,1\n"


def most(times: list[int]) -> int:
    """By hand: the most in any half-open window of a second."""
    return max(sum(end - SECOND_NS < at <= end for at in times) for end in times)


@given(limit=st.integers(1, 8), gaps=st.lists(st.integers(-900_000_000, 700_000_000), max_size=50))
def test_quota_agrees_with_counting_by_hand(limit, gaps):
    """Accepted if and only if no window then holds more than the limit, in whatever order arrivals are told of."""
    quota, now, accepted, arrived = Quota(limit, 1.0), 10 * SECOND_NS, [], []
    for gap in gaps:
        now += gap
        arrived.append(now)
        room = most([*accepted, now]) <= limit
        assert quota.arrive(now) is room
        if room:
            accepted.append(now)
    worst = most(arrived) if arrived else 0
    assert (quota.requests, quota.accepted, quota.worst_window) == (len(arrived), len(accepted), worst)


def test_a_quota_forgets_what_no_window_can_hold():
    """An hour at 1,000/s leaves two windows of moments behind, not an hour of them."""
    quota = Quota(10, 0.01)
    for at in range(20_000):
        quota.arrive(at * 1_000_000)
    assert quota.worst_window == 10
    assert quota.rejected == 0
    assert len(quota._arrived._times) < 2_000


@pytest.mark.parametrize("phase", [0, 137_000_000, 500_000_000, 999_000_000])
def test_quota_used_does_not_depend_on_where_the_clock_starts(phase):
    """Five at once, every 1.02 s, is 0.98 of 5/s, wherever the measurement begins."""
    quota = Quota(5, 1.0)
    for burst in range(20):
        for _ in range(5):
            quota.arrive(burst * 1_020_000_000)
    since, until = 2_000_000_000 + phase, 12_200_000_000 + phase
    assert quota.used(since, until) == pytest.approx(0.98, abs=0.012)
    assert quota.longest_silence_s(since, until) == pytest.approx(1.02)
    assert quota.longest_silence_s(since, until + 20 * SECOND_NS) > 12


def test_replay_walks_through_open_low_high_close(tmp_path):
    """A day is four points; a halted day stays at its close; gzip or not."""
    path = tmp_path / "bars.csv.gz"
    halted = "2026-01-05,005930,삼성전자,KOSPI,0,0,0,110,0,0,1,1\n"
    path.write_bytes(gzip.compress((HEADER + ROW + halted).encode()))
    market = Market.replayed(path)
    points = [market.look("005930", index * market.point_s).price for index in range(8)]
    assert points == [100, 90, 120, 110, 110, 110, 110, 110]
    assert market.look("000000", 0) is None


@pytest.mark.parametrize(
    ("content", "line", "expected"),
    [
        ("", 1, "columns"),
        ("date,code\n", 1, "missing: name"),
        (HEADER, 1, "at least one row"),
        (HEADER + ROW + ROW.replace("2026-01-02", "tomorrow"), 3, "date like 2026-01-02"),
        (HEADER + ROW.replace("120", "12O"), 2, "column high, got '12O'"),
        (HEADER + ROW.replace("005930", ""), 2, "stock code"),
        (HEADER + "2026-01-02,005930\n", 2, "column open"),
    ],
)
def test_malformed_replay_names_line_and_expectation(tmp_path, content, line, expected):
    """One error: file, line, what was expected."""
    path = tmp_path / "bars.csv"
    path.write_text(content)
    with pytest.raises(ReplayError, match=expected) as raised:
        Market.replayed(path)
    assert raised.value.line == line
    assert str(path) in str(raised.value)


def test_absent_replay_names_the_file(tmp_path):
    """The path is in the error."""
    with pytest.raises(ReplayError, match="nowhere"):
        Market.replayed(tmp_path / "nowhere.csv")


async def ask(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, float, float]:
    """Send a request to Naver on a connection of its own, between two moments; the answer is not read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    before = time.monotonic()
    writer.write(b"GET /api/realtime/domestic/stock/005930 HTTP/1.1\r\nHost: sim\r\nUser-Agent: test\r\n\r\n")
    return reader, writer, before, time.monotonic()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when bytes came in")
async def test_who_is_read_late_is_not_judged_as_late():
    """The simulator is stopped while three requests come in, and reads all at once; what counts is when they came."""
    command = (sys.executable, "-m", "aegis", "sim", "--rule", "naver_per_second=1", "--json", "--exit-with-stdin")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        port = int(json.loads(await process.stdout.readline())["naver"].rpartition(":")[2])
        process.send_signal(signal.SIGSTOP)
        asked = []
        for pause_s in (0.0, 0.1, 0.95):
            await asyncio.sleep(pause_s)
            asked.append(await ask(port))
        process.send_signal(signal.SIGCONT)
        codes = [(await reader.readline()).split()[1] for reader, *_ in asked]
        for _, writer, *_ in asked:
            writer.close()
    finally:
        process.send_signal(signal.SIGCONT)
        process.stdin.close()
        await process.wait()
    assert codes[0] == b"200"
    if asked[1][3] - asked[0][2] < 1:  # a machine that stands still may have sent them further apart
        assert codes[1:] == [b"403", b"200"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when bytes came in")
@pytest.mark.timeout(150)
def test_verdicts_are_right_to_the_millisecond_at_two_thousand_requests_a_second():
    """Also while the process is stopped again and again: every verdict is the oracle's, as the benchmark judges it."""
    command = (sys.executable, "-m", "benchmarks.simulator_pace", "--smoke", "--json")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=140)
    [row] = json.loads(done.stdout)["rows"]
    assert 0 < row["let_through"] < row["requests"] == 4000
    assert (row["let_through_wrongly"], row["refused_wrongly"]) == (0, 0)


async def test_taken_port_is_one_clear_error():
    """It names the port and the remedy."""
    async with Simulator() as simulator:
        port = int(simulator.url.rpartition(":")[2])
        with pytest.raises(PortTakenError, match=f"port {port}.*0 for a free one"):
            async with Simulator(port=port):
                pass
