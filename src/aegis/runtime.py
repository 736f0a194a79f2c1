"""
The only place where rooms are joined: opens them in order, closes them in reverse.

`REDIS_URL=embedded:` and `DATABASE_URL=embedded:` start real servers that live as long as the runtime.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import Self

from pydantic import SecretStr

import aegis
from aegis.config import Config
from aegis.database import Database
from aegis.embedded import EmbeddedPostgres, EmbeddedValkey
from aegis.errors import ClosedError
from aegis.http import HttpClient
from aegis.redis import Cache, PubSub, RateLimiter, Redis
from aegis.telemetry import MetricsServer, Sample, Vitals, on_loop, samples_of

logger = logging.getLogger("aegis.runtime")


class Runtime:
    """
    Every room of one process, configured and open.

    `async with Runtime(Config.load()) as rt:` gives `rt.redis rt.limiter rt.cache rt.bus rt.db rt.http`. What cannot be
    opened raises its own error (`RedisUnavailableError`, `DatabaseUnavailableError`, ...) after everything that was
    already open has been closed again. With `database=False` no PostgreSQL is needed, and `rt.db` raises `ClosedError`.

    `vitals` is a name under which this process tells the dashboard what it is doing: who waits for which limit, what
    the cache served, how requests ended. Without one it tells nothing.
    """

    redis: Redis
    limiter: RateLimiter
    cache: Cache
    bus: PubSub
    http: HttpClient

    def __init__(
        self,
        config: Config | None = None,
        *,
        topic: str = "quotes",
        database: bool = True,
        vitals: str | None = None,
    ) -> None:
        self.config = config if config is not None else Config.load()
        self._vitals = vitals
        self.topic = topic
        self._with_database = database
        self._db: Database | None = None
        self._stack = AsyncExitStack()

    @property
    def db(self) -> Database:
        """The pool of PostgreSQL connections."""
        if self._db is None:
            raise ClosedError("Runtime.db")
        return self._db

    def samples(self) -> Iterator[Sample]:
        """What every room counts, as numbers for metrics."""
        return samples_of(
            redis=self.redis, limiter=self.limiter, cache=self.cache, bus=self.bus, http=self.http, db=self._db
        )

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            servers = stack.enter_context(ExitStack())
            config = await asyncio.to_thread(self._start_embedded, servers)
            self.redis = await stack.enter_async_context(Redis(config.redis))
            self.limiter = RateLimiter(self.redis, prefix=config.key_prefix)
            self.cache = Cache(self.redis, prefix=config.key_prefix)
            self.bus = await stack.enter_async_context(PubSub(self.redis, prefix=config.key_prefix, topic=self.topic))
            if self._with_database:
                self._db = await stack.enter_async_context(Database(config.database))
            self.http = await stack.enter_async_context(HttpClient(config.http))
            if self._vitals is not None:
                await stack.enter_async_context(self._told_as(self._vitals))
            if config.metrics.enabled:
                self._serve_metrics(stack)
            self._stack = stack.pop_all()
        self._log_opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._db = None
        await self._stack.aclose()

    def _told_as(self, name: str) -> Vitals:
        stats: dict[str, Callable[[], object]] = {
            "redis": self.redis.stats,
            "limiter": self.limiter.stats,
            "cache": self.cache.stats,
            "bus": self.bus.stats,
            "http": self.http.stats,
        }
        if self._db is not None:
            stats["db"] = self._db.stats
        return Vitals(self.redis, self.config.key_prefix, name, stats)

    def _serve_metrics(self, stack: AsyncExitStack) -> None:
        """On METRICS_PORT, alone or together with the other processes of this host."""
        settings = self.config.metrics
        samples = on_loop(asyncio.get_running_loop(), self.samples)
        server = MetricsServer(samples, settings.port, process=self.config.process, host=settings.host)
        server.__enter__()
        stack.push_async_callback(asyncio.to_thread, server.close)

    def _log_opened(self) -> None:
        """One line: which configuration this process runs with. Equal fingerprints mean equal configurations."""
        fields = {"version": aegis.__version__, "configuration": self.config.fingerprint(), "env": self.config.env}
        logger.info("aegis %(version)s runs with configuration %(configuration)s (%(env)s)", fields, extra=fields)

    def _start_embedded(self, servers: ExitStack) -> Config:
        """The configuration with real addresses in place of `embedded:`."""
        config = self.config
        if config.redis.enabled and config.redis.embedded:
            valkey = servers.enter_context(EmbeddedValkey())
            config = config.model_copy(update={"redis": config.redis.model_copy(update={"socket": valkey.socket})})
        if self._with_database and config.database.embedded:
            postgres = servers.enter_context(EmbeddedPostgres())
            url = SecretStr(postgres.url)
            config = config.model_copy(update={"database": config.database.model_copy(update={"url": url})})
        return config
