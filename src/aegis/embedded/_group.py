"""Several servers that belong together: asking one, and waiting until they agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aegis.embedded.valkey import EmbeddedValkey
from aegis.errors import ServerStartError

Ask = Callable[..., Any]

STARTS_MAX = 3  #: a port that was free a moment ago may be taken: then all of it once more, with other ports
_LOOK_EVERY_S = 0.05


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
