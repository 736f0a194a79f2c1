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

    `down_after_ms` is how long it must be silent for that. A primary that hears of no replica stops taking writes
    sooner; not so with one replica, because the survivor of a failover could not write at all. `servers[0]` is the
    primary of the beginning; `primary` asks the Sentinels. `start` returns when the Sentinels know each other and every
    replica is in step.
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
        alone = {"min-replicas-to-write": "1", "min-replicas-max-lag": str(max(2, down_after_ms // 1000 - 2))}
        own = {"repl-diskless-sync-delay": "0", "replica-announce-ip": "127.0.0.1", **(alone if replicas > 1 else {})}
        self._options = {**own, **(options or {})}
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
        monitor = {f"sentinel monitor {self.name}": f"127.0.0.1 {port} {self._quorum}"}
        how = {f"sentinel {option} {self.name}": value for option, value in self._how_to_watch().items()}
        source = self._options.get("bind-source-addr")
        return {
            "sentinel announce-ip": "127.0.0.1",  # where it listens, wherever it comes from
            **monitor,
            **how,
            **({"bind-source-addr": source} if source else {}),
        }

    @property
    def _quorum(self) -> int:
        return self._sentinels // 2 + 1

    def _how_to_watch(self) -> dict[str, str]:
        password = self._options.get("requirepass")
        return {
            "down-after-milliseconds": str(self._down_after_ms),
            "failover-timeout": "10000",
            "parallel-syncs": str(self._replicas),
            **({"auth-pass": password} if password else {}),
        }

    # --- looking ---

    @property
    def primary(self) -> EmbeddedValkey:
        """The primary as the first Sentinel sees it that answers."""
        for sentinel in self.sentinels:
            if sentinel.responsive:
                with asking(sentinel) as ask, contextlib.suppress(OSError, redis_error()):
                    port = int(ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])
                    return next((server for server in self.servers if server.port == port), self.servers[0])
        raise ServerStartError("valkey sentinel", "none answers")

    def wait_until_whole(self, timeout_s: float = _FORMED_WITHIN_S) -> None:
        """Return when every running Sentinel sees every running server, and all of them in step."""
        until(self._formed, "the Sentinels to see the whole group", timeout_s)

    def reach_primary_at(self, port: int) -> None:
        """
        Let everybody reach the primary of the beginning at another port: that of a proxy, which can cut it off.

        Replicas and Sentinels are told; clients hear it from these. Returns when the group is whole again.
        """
        for replica in self.servers[1:]:
            with asking(replica, self._options.get("requirepass")) as ask:
                ask("REPLICAOF", "127.0.0.1", port)
        until(self._in_step, "the replicas to be in step", _FORMED_WITHIN_S)
        for sentinel in self.sentinels:
            with asking(sentinel) as ask:
                ask("SENTINEL", "REMOVE", self.name)
                ask("SENTINEL", "MONITOR", self.name, "127.0.0.1", port, self._quorum)
                for option, value in self._how_to_watch().items():
                    ask("SENTINEL", "SET", self.name, option, value)
        self.wait_until_whole()

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
