"""Several servers that belong together: their beginning and end, asking one, and waiting until they agree."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from aegis.embedded._block import Block
from aegis.embedded.valkey import EmbeddedValkey
from aegis.errors import ServerStartError

Ask = Callable[..., Any]

_STARTS_MAX = 3  #: a port that was free a moment ago may be taken: then all of it once more, with other ports
_LOOK_EVERY_S = 0.05


class EmbeddedGroup(Block):
    """Servers that are started and stopped together. Kill, pause and restart single ones as you like."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    @property
    @abstractmethod
    def url(self) -> str:
        """What REDIS_URL must be to use this group; a password of the options is yours to add."""

    def start(self) -> None:
        """
        Start all of them and wait until the group is whole.

        Raises:
            ServerStartError: one did not start, or they did not find each other; nothing is left running.
        """
        for attempt in range(1, _STARTS_MAX + 1):
            try:
                self._start()
            except ServerStartError:
                self.stop()
                if attempt == _STARTS_MAX:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                return

    def stop(self) -> None:
        """Stop every one of them. Idempotent."""
        for server in self._members():
            server.stop()

    @abstractmethod
    def _start(self) -> None:
        """Make the servers, start them, and form the group."""

    @abstractmethod
    def _members(self) -> Iterable[EmbeddedValkey]:
        """Everything that runs, in the order in which it is stopped."""


def places(servers: Iterable[EmbeddedValkey]) -> str:
    """Where they listen, as in a URL."""
    return ",".join(f"127.0.0.1:{server.port}" for server in servers)


@contextmanager
def asking(server: EmbeddedValkey, password: str | None = None) -> Iterator[Ask]:
    """A function that sends one command to `server` and returns the reply as it came: no translation, 5 s."""
    import redis  # noqa: PLC0415 - half a second that single servers need not pay

    connection: Any = redis.Connection(  # type: ignore[no-untyped-call]
        host="127.0.0.1", port=server.port or 0, password=password, socket_timeout=5.0, protocol=2
    )

    def ask(*command: str | int | bytes) -> Any:
        connection.send_command(*command)
        return connection.read_response()

    try:
        yield ask
    finally:
        connection.disconnect()


def until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """
    Return when `condition()` holds.

    Raises:
        ServerStartError: it does not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ServerStartError("valkey", f"waited {timeout_s:g} s for {what}")
        time.sleep(_LOOK_EVERY_S)


def redis_error() -> type[Exception]:
    """What redis-py raises when it cannot ask, or is refused."""
    import redis  # noqa: PLC0415 - as above

    return redis.RedisError
