"""A real Valkey primary with replicas and Sentinels on the loopback: `with EmbeddedSentinel() as group: group.url`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from aegis.embedded._group import EmbeddedGroup, asking, places, redis_error, until
from aegis.embedded.valkey import EmbeddedValkey
from aegis.errors import ServerStartError

_FORMED_WITHIN_S = 30.0


class EmbeddedSentinel(EmbeddedGroup):
    """
    One primary, `replicas` replicas, and `sentinels` Sentinels that replace the primary when a majority misses it.

    `down_after_ms` is how long it must be silent for that. `servers[0]` is the primary of the beginning; `primary` asks
    the Sentinels. `start` returns when the Sentinels know each other and every replica is in step.
    """

    def __init__(
        self,
        replicas: int = 2,
        sentinels: int = 3,
        *,
        name: str = "aegis",
        down_after_ms: int = 3000,
        options: Mapping[str, str] | None = None,
    ) -> None:
        if replicas < 1 or sentinels < 1:
            raise ValueError(f"{sentinels} Sentinels over {replicas} replicas cannot replace anybody")
        self.name, self._down_after_ms = name, down_after_ms
        self._options = {"repl-diskless-sync-delay": "0", **(options or {})}
        self._replicas, self._sentinels = replicas, sentinels
        self.servers: list[EmbeddedValkey] = []
        self.sentinels: list[EmbeddedValkey] = []

    @property
    def url(self) -> str:
        """What REDIS_URL must be to use this group; a password of the options is yours to add."""
        return f"redis+sentinel://{places(self.sentinels)}/{self.name}"

    # --- beginning and end ---

    def _members(self) -> Iterable[EmbeddedValkey]:
        return (*self.sentinels, *self.servers)

    def _start(self) -> None:
        primary = EmbeddedValkey(port=0, options=self._options)
        following = {**self._options, "replicaof": f"127.0.0.1 {primary.port}"}
        self.servers = [primary, *(EmbeddedValkey(port=0, options=following) for _ in range(self._replicas))]
        watching = self._watching(primary.port or 0)
        self.sentinels = [EmbeddedValkey(port=0, options=watching, sentinel=True) for _ in range(self._sentinels)]
        with ThreadPoolExecutor(len(self.servers) + len(self.sentinels)) as threads:
            list(threads.map(EmbeddedValkey.start, self.servers))
            # A Sentinel looks at replicas every 10 s only: in step first, then watched.
            until(self._in_step, "the replicas to be in step", _FORMED_WITHIN_S)
            list(threads.map(EmbeddedValkey.start, self.sentinels))
        until(self._formed, "the Sentinels to see the whole group", _FORMED_WITHIN_S)

    def _watching(self, port: int) -> dict[str, str]:
        name = self.name
        settings = {
            f"sentinel monitor {name}": f"127.0.0.1 {port} {self._sentinels // 2 + 1}",
            f"sentinel down-after-milliseconds {name}": str(self._down_after_ms),
            f"sentinel failover-timeout {name}": "10000",
            f"sentinel parallel-syncs {name}": str(self._replicas),
        }
        if password := self._options.get("requirepass"):
            settings |= {f"sentinel auth-pass {name}": password}
        return settings

    # --- looking ---

    @property
    def primary(self) -> EmbeddedValkey:
        """The primary as the first Sentinel sees it that answers."""
        for sentinel in self.sentinels:
            if sentinel.responsive:
                with asking(sentinel) as ask, contextlib.suppress(OSError, redis_error()):
                    port = int(ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])
                    return next(server for server in self.servers if server.port == port)
        raise ServerStartError("valkey sentinel", "none answers")

    def wait_until_whole(self, timeout_s: float = _FORMED_WITHIN_S) -> None:
        """Return when every running Sentinel sees every running server, and all of them in step."""
        until(self._formed, "the Sentinels to see the whole group", timeout_s)

    def _in_step(self) -> bool:
        for replica in self.servers[1:]:
            with asking(replica, self._options.get("requirepass")) as ask:
                if b"master_link_status:up" not in ask("INFO", "replication"):
                    return False
        return True

    def _formed(self) -> bool:
        followers = len([server for server in self.servers if server.responsive]) - 1
        others = len([sentinel for sentinel in self.sentinels if sentinel.responsive]) - 1
        for sentinel in self.sentinels:
            if not sentinel.responsive:
                continue
            with asking(sentinel) as ask:
                primary = _fields(ask("SENTINEL", "MASTER", self.name))
                replicas = [_fields(reply) for reply in ask("SENTINEL", "REPLICAS", self.name)]
            if primary["flags"] != "master" or int(primary["num-other-sentinels"]) < others:
                return False
            in_step = [r for r in replicas if r["flags"] == "slave" and r["master-link-status"] == "ok"]
            if len(in_step) < followers:
                return False
        return True


def _fields(reply: list[bytes]) -> dict[str, str]:
    texts = [part.decode() for part in reply]
    return dict(zip(texts[::2], texts[1::2], strict=True))
