"""
Is the simulator strict to the millisecond at 2,000 requests/s?

An open loop sends requests on connections of its own, one at a time on each, evenly or in bursts, and brackets every
send with the monotonic clock: the request came in between the two. A verdict is wrong if no arrival within its bracket,
widened by the tolerance, allows it:

let through  though it is one of more than the limit within a second less the tolerance;
refused      though fewer than the limit were let through within a second plus the tolerance.

The oracle is that count, by hand, over all verdicts. `pauses` stops the simulator's process (SIGSTOP) for a while again
and again, which is what a starved machine does: it may answer late, but it may not judge late.

    python -m benchmarks.simulator_pace [--smoke] [--json] [--rate 2000] [--seconds 10] [--limit 1000]
"""

from __future__ import annotations

import bisect
import contextlib
import json
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks._report import options, report, show

TOLERANCE_NS = 1_000_000
SECOND_NS = 1_000_000_000
CONNECTIONS = 512
BURST = 50
PAUSE_EVERY_S, PAUSE_S = 0.5, 0.1
REQUEST = b"GET /api/realtime/domestic/stock/005930 HTTP/1.1\r\nHost: simulator\r\nUser-Agent: benchmark\r\n\r\n"


@dataclass
class Sent:
    """One request: it came in between `before_ns` and `after_ns`."""

    before_ns: int
    after_ns: int
    accepted: bool = False
    answered_ns: int = 0


@contextlib.contextmanager
def simulator(limit: int) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The simulator in a process of its own, with that limit for Naver."""
    command = (sys.executable, "-m", "aegis", "sim", "--json", "--exit-with-stdin", "--rule")
    process = subprocess.Popen(
        [*command, f"naver_per_second={limit}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield int(json.loads(process.stdout.readline())["naver"].rpartition(":")[2]), process
        process.stdin.close()


def drive(port: int, due_s: list[float], process: subprocess.Popen[str], *, pauses: bool) -> list[Sent]:
    """Send at those moments, read every answer; returns what was sent, in order."""
    selector, sent, waiting = selectors.DefaultSelector(), [], 0
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
    for connection in idle:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ, [])
    connections, began = list(idle), time.monotonic()
    toggles = pause_times(due_s[-1]) if pauses else []
    while len(sent) < len(due_s) or waiting:
        now = time.monotonic() - began
        while toggles and now >= toggles[0][0]:
            process.send_signal(toggles.pop(0)[1])
        while idle and len(sent) < len(due_s) and due_s[len(sent)] <= now:
            connection = idle.pop()
            before = time.monotonic_ns()
            connection.send(REQUEST)
            one = Sent(before, time.monotonic_ns())
            sent.append(one)
            waiting += 1
            selector.get_key(connection).data[:] = [one]
        until = due_s[len(sent)] - now if idle and len(sent) < len(due_s) else 0.05
        for key, _ in selector.select(max(0.0, min(until, 0.05))):
            answer = key.fileobj.recv(65_536)
            if answer.startswith(b"HTTP/1.1 "):
                [one] = key.data
                one.accepted, one.answered_ns = answer[9:12] == b"200", time.monotonic_ns()
                idle.append(key.fileobj)
                waiting -= 1
    for connection in connections:
        connection.close()
    return sent


def pause_times(seconds: float) -> list[tuple[float, signal.Signals]]:
    """When to stop the simulator and when to let it go on."""
    starts = [PAUSE_EVERY_S * number for number in range(1, int(seconds / PAUSE_EVERY_S))]
    return [moment for at in starts for moment in ((at, signal.SIGSTOP), (at + PAUSE_S, signal.SIGCONT))]


def judge(sent: list[Sent], limit: int) -> dict[str, int]:
    """The oracle: how many verdicts are wrong by more than the tolerance."""
    accepted = [one for one in sent if one.accepted]
    too_many = sum(
        last.after_ns - first.before_ns < SECOND_NS - TOLERANCE_NS
        for first, last in zip(accepted, accepted[limit:], strict=False)
    )
    before, after = [one.before_ns for one in accepted], [one.after_ns for one in accepted]
    too_strict = 0
    for one in sent:
        if not one.accepted:
            oldest = bisect.bisect_right(after, one.before_ns - SECOND_NS - TOLERANCE_NS)
            newest = bisect.bisect_right(before, one.after_ns + TOLERANCE_NS)
            too_strict += newest - oldest < limit
    return {"let_through_wrongly": too_many, "refused_wrongly": too_strict}


def run(rate: int, seconds: float, limit: int, *, burst: int, pauses: bool) -> dict[str, float | int]:
    """One run on a simulator of its own."""
    due = [index // burst * burst / rate for index in range(int(rate * seconds))]
    with simulator(limit) as (port, process):
        sent = drive(port, due, process, pauses=pauses)
    took = sorted(one.answered_ns - one.before_ns for one in sent)
    lasted_s = (sent[-1].after_ns - sent[0].before_ns) / SECOND_NS
    return {
        "burst": burst,
        "pauses": pauses,
        "requests": len(sent),
        "requests_per_s": round((len(sent) - burst) / lasted_s),
        "let_through": sum(one.accepted for one in sent),
        **judge(sent, limit),
        "answer_p50_us": took[len(took) // 2] // 1000,
        "answer_p99_us": took[len(took) * 99 // 100] // 1000,
    }


def main() -> None:
    """Read the options, measure, say it."""
    parser = options(__doc__, smoke="one short run, with pauses", seconds=10.0)
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--limit", type=int, default=1000)
    args = parser.parse_args()
    seconds, runs = (2.0, ((1, True),)) if args.smoke else (args.seconds, ((1, False), (BURST, False), (1, True)))
    rows = [run(args.rate, seconds, args.limit, burst=burst, pauses=pauses) for burst, pauses in runs]
    question = "verdicts that are wrong by more than a millisecond"
    show(report(question, rows, ("aiohttp",), rate=args.rate, limit_per_s=args.limit), as_json=args.json)


if __name__ == "__main__":
    main()
