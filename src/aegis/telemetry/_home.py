"""
The directory in which the processes of one METRICS_PORT find each other; its name holds user and port.

It holds a socket per process and the lock of the one that serves. Only this user can enter it. Whoever leaves last
removes it; what killed processes left is removed by the next that starts, for whatever port. Who removes holds the
lock, and who takes the lock looks whether it is still the one at the path: a removed lock makes nobody serve.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import tempfile
import time
from itertools import islice
from pathlib import Path

from aegis.errors import MetricsDirectoryError

#: `number-name.sock`: the process, one of several in it, and what it is called.
SOCKET_NAME = re.compile(r"([0-9.]+)-(.+)\.sock").fullmatch
_LOCK = "server.lock"
_OPEN_TRIES = 20  #: others may remove it between two of our steps
_SWEEP_MAX = 256
_SETTLED_S = 60.0  #: what has just changed may have a process that is starting


class Home:
    """One such directory, and its lock if this process holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def listen(self, name: str) -> socket.socket:
        """A socket of that name, where the others find it; makes the directory."""
        for _ in range(_OPEN_TRIES):
            self.path.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # its last owner has just removed it
                _check(self.path)
                return _listening(self.path / name)
        raise MetricsDirectoryError(str(self.path))

    def sockets(self) -> list[Path]:
        """Those that are there, in order of their names; their owners may be dead."""
        return sorted(path for path in self.path.glob("*.sock") if SOCKET_NAME(path.name))

    def lead(self) -> bool:
        """Whether this process holds the lock: one at a time does, until it resigns or dies."""
        if self._lock is None:
            self._lock = _locked(self.path / _LOCK)
        return self._lock is not None

    def resign(self) -> None:
        """Let another process have the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def leave(self) -> None:
        """Give up the lock; who leaves last removes the directory."""
        for _ in range(2):  # the second time for another that left while we had the lock, and so could not
            if self.lead() and not self.sockets():
                _remove(self.path)
            self.resign()


def home_of(port: int) -> Home:
    """The directory of a port."""
    return Home(Path(tempfile.gettempdir()) / f"{_prefix()}{port}")


def sweep() -> None:
    """Remove the directories of all ports whose processes are dead."""
    for path in islice(Path(tempfile.gettempdir()).glob(f"{_prefix()}*"), _SWEEP_MAX):
        with contextlib.suppress(OSError, MetricsDirectoryError):
            _check(path)
            home = Home(path)
            if time.time() - path.stat().st_mtime > _SETTLED_S and home.lead():  # nobody comes, nobody serves
                for each in home.sockets():
                    if not _alive(each):
                        each.unlink(missing_ok=True)
                home.leave()


def _prefix() -> str:
    return f"aegis-metrics-{os.getuid()}-"


def _check(path: Path) -> None:
    seen = path.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or stat.S_IMODE(seen.st_mode) & 0o077:
        raise MetricsDirectoryError(str(path))


def _listening(path: Path) -> socket.socket:
    """Put at its place only when it listens: one that does not is taken for a dead process's."""
    coming = path.with_suffix(".new")
    coming.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(coming))
        listener.listen(16)
        coming.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener


def _locked(path: Path) -> int | None:
    """The lock, as a file that is open; None if another process has it, or the directory is gone."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _remove(path: Path) -> None:
    """By who holds the lock. Somebody may just be coming: then it stays, without the lock, which they make anew."""
    (path / _LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def _alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(0.0)
        try:
            asking.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # its queue is full: it hangs
    return True
