"""
The processes of one host that share one METRICS_PORT.

One of them serves the port; every one, the server included, answers on a unix socket of its own with the numbers it has
at that moment, and the server asks all of them at each scrape. So every number is fresh and stands under its process, a
process that has died is gone at the next scrape, and one that hangs is reported as down without holding up the others.
When the server dies, its lock is free and another takes the port over within a second. Rejected: a port per process
(collides, and the scraper must know them), SO_REUSEPORT (every scrape meets another process at random), and the files
of prometheus_client's multiprocess mode, which keep the dead and know no numbers that are asked for.

Where they find each other stands in `_home.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import msgspec

from aegis.telemetry._home import SOCKET_NAME, home_of, sweep
from aegis.telemetry.sample import Sample

logger = logging.getLogger("aegis.telemetry")

ANSWER_TIMEOUT_S = 2.0
_PEERS_MAX = 256
_NAME_MAX = 40  # the path of a unix socket has room for about a hundred characters

_numbers = count(1)  # one process may have several

Samples = Callable[[], Sequence[Sample]]


class Report(msgspec.Struct):
    """What one process says at one scrape."""

    process: str
    samples: Sequence[Sample] | None  #: None where it did not answer in time


class Peer:
    """One process among those of its host: found by the others from `open` to `close`."""

    def __init__(self, samples: Samples, process: str, port: int) -> None:
        self._samples = samples
        self._home = home_of(port)
        self._name = re.sub(r"[^A-Za-z0-9_.-]", "_", process)[:_NAME_MAX] or "python"
        self._path = self._home.path / f"{os.getpid()}.{next(_numbers)}-{self._name}.sock"
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Answer the server's questions from now on, in a thread of its own."""
        sweep()
        self._listener = self._home.listen(self._path.name)
        atexit.register(self.close)
        threading.Thread(
            target=self._answer_all, args=(self._listener,), name="aegis metrics peer", daemon=True
        ).start()

    def close(self) -> None:
        """Be found no more, and let somebody else serve."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        atexit.unregister(self.close)
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        listener.close()
        self._path.unlink(missing_ok=True)
        self._home.leave()

    def lead(self) -> bool:
        """Whether this process is the one that serves: true for one at a time, until it resigns or dies."""
        return self._home.lead()

    def resign(self) -> None:
        """Let another process serve."""
        self._home.resign()

    def reports(self) -> list[Report]:
        """What every living process says, this one included; each under a name that is its own."""
        places = self._home.sockets()[:_PEERS_MAX]
        with ThreadPoolExecutor(max_workers=16, thread_name_prefix="aegis metrics") as pool:
            answers = zip(places, pool.map(self._ask, places), strict=True)
        alive = [(path, report) for path, report in answers if report is not None]
        times = Counter(report.process for _, report in alive)
        for path, report in alive:
            if times[report.process] > 1:
                report.process = f"{report.process}-{path.name.partition('-')[0]}"
        return [report for _, report in alive]

    def own_report(self) -> list[Report]:
        """What this process says."""
        return [Report(self._name, self._own())]

    def _ask(self, path: Path) -> Report | None:
        """What the process behind `path` says; None if it is dead, and now forgotten."""
        match = SOCKET_NAME(path.name)
        assert match is not None
        report = Report(match[2], None)
        if path == self._path:
            report.samples = self._own()
            return report
        try:
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(ANSWER_TIMEOUT_S)
                asking.connect(str(path))
                with asking.makefile("rb") as answer:
                    report.samples = msgspec.msgpack.decode(answer.read(), type=list[Sample])
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return None
        except OSError:
            pass  # it hangs, or died over the answer
        except msgspec.DecodeError as exc:  # nothing at all where its own numbers failed: it has said why
            logger.debug("metrics of %s cannot be read: %s", report.process, exc)
        return report

    def _answer_all(self, listener: socket.socket) -> None:
        while True:
            try:
                asking, _ = listener.accept()
            except OSError:
                return  # closed
            with asking:
                asking.settimeout(ANSWER_TIMEOUT_S)
                own = self._own()
                if own is not None:
                    with contextlib.suppress(OSError):
                        asking.sendall(msgspec.msgpack.encode(own))

    def _own(self) -> Sequence[Sample] | None:
        try:
            return list(self._samples())
        except Exception:
            logger.warning("the numbers of this process cannot be read", exc_info=True)
            return None
