"""A process with metrics: `metrics_child.py PORT NAME`. Says what it is, and lives until its standard input ends."""

from __future__ import annotations

import os
import sys

from aegis.telemetry import MetricsServer, Sample
from aegis.telemetry.sample import histogram

port, name = int(sys.argv[1]), sys.argv[2]


def samples():
    yield Sample("test_pid", "Its number.", os.getpid())
    yield Sample("test_true", "A truth.", value=True)
    yield Sample("test_asked", "One.", 1, (("who", name),), total=True)
    yield histogram("test_took", "Took.", 0.5, (1.0,), (1, 0))


with MetricsServer(samples, port, process=name) as server:
    sys.stdout.write("serves\n" if server.serving else "waits\n")
    sys.stdout.flush()
    sys.stdin.read()
