"""
Run one server so that it cannot outlive the process that wanted it.

States and owners: the owner (your process) starts a guardian (this module run with `python -m`), the guardian starts
the server. The owner holds the write end of the guardian's stdin and nothing else. When that pipe closes, for whatever
reason (a clean stop, Ctrl-C, an exception, `kill -9` of the owner), the guardian stops the server and removes its
directory. The guardian runs in a session of its own, so Ctrl-C in the owner's terminal reaches the server through the
owner only. Should the guardian itself be killed, the kernel ends the server (Linux: parent-death signal).

Rejected: atexit and signal handlers (they do not run on `kill -9`), a parent-death signal alone (it fires when the
starting *thread* ends, does not exist outside Linux, and leaves the directory behind).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from aegis.errors import ServerStartError

_PR_SET_PDEATHSIG = 1
_LOG_TAIL_BYTES = 2000
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Spec:
    """What the guardian needs to know: the server's command, where it lives, how it stops, who it runs as."""

    command: tuple[str, ...]
    directory: str
    stop_signal: int
    stop_timeout_s: float
    uid: int | None


def private_directory(name: str) -> Path:
    """A fresh directory that only its owner can enter; short, because a unix socket's path must fit 107 bytes."""
    return Path(tempfile.mkdtemp(prefix=f"aegis-{name}-"))


def unprivileged_uid() -> int | None:
    """
    The user to run a server as that refuses to run as root; None when we are not root.

    `nobody` exists on every system that we know of; initdb needs a user with a name.
    """
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


class GuardedServer:
    """
    One server with its guardian and its directory.

    `start` returns when `ready()` is true; `stop` returns when the server is gone and its directory removed.
    """

    def __init__(self, name: str, spec: Spec) -> None:
        self.name, self.spec = name, spec
        self.log_path = Path(spec.directory) / "server.log"
        self._guardian: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    def __repr__(self) -> str:
        state = f"pid={self._pid}" if self._guardian else "stopped"
        return f"<GuardedServer {self.name} {state}>"

    @property
    def pid(self) -> int:
        """The server's own process id, for tests that stop or kill it."""
        if self._pid is None:
            raise ServerStartError(self.name, "it is not running")
        return self._pid

    def start(self, ready: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """
        Start the server and wait until it answers.

        Raises:
            ServerStartError: it exited or did not answer in time; nothing is left running.
        """
        # The guardian's own imports must not depend on the working directory or on the user's environment switches.
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-c", _GUARDIAN_MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        stdin, stdout = self._pipes()
        try:
            stdin.write(json.dumps({**asdict(self.spec), "path": sys.path}).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
            if not line.strip().isdigit():
                raise ServerStartError(self.name, line.decode().strip() or "its guardian died", self._log_tail())
            self._pid = int(line)
            deadline = time.monotonic() + timeout_s
            while not ready():
                if select.select([stdout], [], [], _POLL_S)[0]:
                    raise ServerStartError(self.name, "it exited while starting", self._log_tail())
                if time.monotonic() > deadline:
                    raise ServerStartError(self.name, f"no answer within {timeout_s:g} s", self._log_tail())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and remove its directory. Idempotent."""
        guardian, self._guardian, self._pid = self._guardian, None, None
        if guardian is None:
            shutil.rmtree(self.spec.directory, ignore_errors=True)
            return
        assert guardian.stdin is not None
        assert guardian.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            guardian.stdin.close()
        guardian.wait()
        guardian.stdout.close()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._guardian is not None
        assert self._guardian.stdin is not None
        assert self._guardian.stdout is not None
        return self._guardian.stdin, self._guardian.stdout

    def _log_tail(self) -> str:
        try:
            return self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="backslashreplace")
        except OSError:
            return ""


def run_as(uid: int | None, command: Sequence[str], *, timeout_s: float) -> None:
    """
    Run a preparing command (such as initdb) to its end, as `uid` where one is given.

    Raises:
        ServerStartError: it failed or took longer than `timeout_s`.
    """
    name = Path(command[0]).name
    group, groups = (None, None) if uid is None else (pwd.getpwuid(uid).pw_gid, ())
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
            cwd="/",
            user=uid,
            group=group,
            extra_groups=groups,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ServerStartError(name, str(exc)) from exc
    if done.returncode != 0:
        tail = done.stdout[-_LOG_TAIL_BYTES:].decode(errors="backslashreplace")
        raise ServerStartError(name, f"exit code {done.returncode}", tail)


# --- the guardian's side: one thread, standard library only -----------------------------------------------------------

_GUARDIAN_MAIN = """
import json, sys
spec = json.loads(sys.stdin.buffer.readline())
sys.path[:] = spec.pop("path")
from aegis.embedded._process import guard
guard(spec)
"""


def guard(raw: dict[str, object]) -> None:
    """Start the server, print its pid, wait until the owner or the server is gone, then clean up."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # the pipe alone decides, so that cleaning up cannot be cut short
    raw["command"] = tuple(raw["command"])  # type: ignore[arg-type] # JSON knows lists only
    spec = Spec(**raw)  # type: ignore[arg-type] # written by GuardedServer.start
    try:
        _guard(spec)
    finally:
        shutil.rmtree(spec.directory, ignore_errors=True)


def _guard(spec: Spec) -> None:
    with (Path(spec.directory) / "server.log").open("ab") as log:
        try:
            server = subprocess.Popen(
                spec.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=spec.directory,
                preexec_fn=lambda: _become(spec.uid),  # noqa: PLW1509 - this process has one thread
            )
        except (OSError, subprocess.SubprocessError) as exc:
            print(f"cannot run {spec.command[0]}: {exc}", flush=True)  # noqa: T201 - the owner reads it
            return
    print(server.pid, flush=True)  # noqa: T201 - the owner reads it
    exited = os.pidfd_open(server.pid) if hasattr(os, "pidfd_open") else None
    watched = [sys.stdin.fileno(), *([exited] if exited is not None else [])]
    while server.poll() is None:
        readable, _, _ = select.select(watched, [], [], None if exited is not None else 0.2)
        if sys.stdin.fileno() in readable:
            break
    if server.poll() is None:
        server.send_signal(signal.SIGCONT)  # a stopped server cannot obey
        server.send_signal(spec.stop_signal)
        try:
            server.wait(spec.stop_timeout_s)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        return
    # The server died by itself. Tell the owner (EOF on our stdout), keep its log until the owner lets go.
    os.close(sys.stdout.fileno())
    select.select([sys.stdin.fileno()], [], [])


def _become(uid: int | None) -> None:
    """In the child: give up root where asked, then ask the kernel to end us with the guardian (the order matters)."""
    os.setsid()
    if uid is not None:
        os.setgroups([])
        os.setgid(pwd.getpwuid(uid).pw_gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
