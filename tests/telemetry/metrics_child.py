"""A process with metrics: says through `said` whether it serves or waits, and lives until that is closed."""

from __future__ import annotations

import contextlib
import os
from multiprocessing.connection import Connection

from aegis.telemetry import MetricsServer, Sample
from aegis.telemetry.sample import histogram


def main(port: int, name: str, said: Connection) -> None:
    def samples():
        yield Sample("test_pid", "Its number.", os.getpid())
        yield Sample("test_true", "A truth.", value=True)
        yield Sample("test_asked", "One.", 1, (("who", name),), total=True)
        yield histogram("test_took", "Took.", 0.5, (1.0,), (1, 0))

    with MetricsServer(samples, port, process=name) as server, contextlib.suppress(EOFError):
        said.send("serves" if server.serving else "waits")
        said.recv()
