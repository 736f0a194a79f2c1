"""
The processes of one host that share one METRICS_PORT.

One of them serves the port; every one, the server included, answers on a unix socket of its own with the numbers it has
at that moment, and the server asks all of them at each scrape. So every number is fresh and stands under its process, a
process that has died is gone at the next scrape, and one that hangs is reported as down without holding up the others.
When the server dies, its lock is free and another takes the port over within a second. Rejected: a port per process
(collides, and the scraper must know them), SO_REUSEPORT (every scrape meets another process at random), and the files
of prometheus_client's multiprocess mode, which keep the dead and know no numbers that are asked for.

The sockets lie in a directory that only this user can enter; its name holds user and port.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import socket
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import msgspec

from aegis.errors import MetricsDirectoryError
from aegis.telemetry.sample import Sample

logger = logging.getLogger("aegis.telemetry")

ANSWER_TIMEOUT_S = 2.0
_PEERS_MAX = 256
_NAME_MAX = 40  # the path of a unix socket has room for about a hundred characters
_SOCKET = re.compile(r"([0-9.]+)-(.+)\.sock").fullmatch

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
        self._home = Path(tempfile.gettempdir()) / f"aegis-metrics-{os.getuid()}-{port}"
        self._name = re.sub(r"[^A-Za-z0-9_.-]", "_", process)[:_NAME_MAX] or "python"
        self._path = self._home / f"{os.getpid()}.{next(_numbers)}-{self._name}.sock"
        self._listener: socket.socket | None = None
        self._lock: int | None = None

    def open(self) -> None:
        """Answer the server's questions from now on, in a thread of its own."""
        self._home.mkdir(mode=0o700, exist_ok=True)
        seen = self._home.lstat()
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or stat.S_IMODE(seen.st_mode) & 0o077:
            raise MetricsDirectoryError(str(self._home))
        self._path.unlink(missing_ok=True)  # of a process that had our number before
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(16)
        threading.Thread(
            target=self._answer_all, args=(self._listener,), name="aegis metrics peer", daemon=True
        ).start()

    def close(self) -> None:
        """Be found no more, and let somebody else serve."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self._listener.close()
            self._listener = None
        self._path.unlink(missing_ok=True)
        self.resign()

    def lead(self) -> bool:
        """Whether this process is the one that serves: true for one at a time, until it resigns or dies."""
        if self._lock is not None:
            return True
        lock = os.open(self._home / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def resign(self) -> None:
        """Let another process serve."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def reports(self) -> list[Report]:
        """What every living process says, this one included; each under a name that is its own."""
        places = sorted(path for path in self._home.glob("*.sock") if _SOCKET(path.name))[:_PEERS_MAX]
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
        match = _SOCKET(path.name)
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
