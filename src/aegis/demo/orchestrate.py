"""
Start everything, watch it, end it in order, and judge.

Order of starting: servers, tables, simulator, subscriber, collectors. Order of ending: collectors (each finishes what
it has in hand), subscriber (once it has what was published, or the time for that is over), simulator, servers. Whatever
goes wrong, the same exit path runs: children see their stdin close, servers have their guardians.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from pydantic import SecretStr

from aegis.config import Config, DatabaseConfig, child_environ
from aegis.database import MIGRATIONS, Database
from aegis.demo.report import CacheUse, Report, Upstream
from aegis.embedded import EmbeddedCluster, EmbeddedPostgres, EmbeddedSentinel, EmbeddedValkey
from aegis.errors import DemoError

_READY_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 15.0
_LAST_TICKS_TIMEOUT_S = 5.0
_PROGRESS_EVERY_S = 1.0
#: The first second is left out of the quota that counts: processes are still opening their connections.
_START_UP_S = 1.0
#: In the run where everybody issues a token of his own, the simulator allows one every so many seconds instead of
#: sixty: with the real interval the second process would do nothing for the whole run.
_ALONE_TOKEN_INTERVAL_S = 0.5
_LOG_TAIL_BYTES = 1500
_UPSTREAMS = ("kis", "dart", "naver")


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller of the demo chose."""

    seconds: float = 20.0
    processes: int = 4
    replay: Path | None = None
    shared: bool = True  #: False: every process limits only itself and issues its own token
    settings: Mapping[str, str] = field(default_factory=dict)  #: further variables of the processes
    #: What REDIS_URL leads to, started here: one server, a Sentinel group, or a cluster.
    redis: EmbeddedValkey | EmbeddedSentinel | EmbeddedCluster = field(default_factory=EmbeddedValkey)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, about once a second."""

    elapsed_s: float
    seconds: float
    upstreams: Mapping[str, Upstream]
    tokens_issued: int
    ticks_published: int
    ticks_received: int
    gaps: int
    rows_upserted: int


#: Entered with the configuration of the servers once they run, and left before they end.
Alongside = Callable[[Config], AbstractAsyncContextManager[object]]


async def run(
    options: Options, on_progress: Callable[[Progress], Awaitable[None]], alongside: Alongside = contextlib.nullcontext
) -> Report:
    """
    The whole job once.

    Raises:
        DemoError: a process ended or did not start; says which, and its last words. Nothing is left running.
        ServerStartError: Valkey or PostgreSQL did not start.
    """
    with (
        tempfile.TemporaryDirectory(prefix="aegis-demo-") as logs,
        options.redis as redis,
        EmbeddedPostgres() as postgres,
    ):
        async with contextlib.AsyncExitStack() as stack:
            db = await stack.enter_async_context(
                Database(DatabaseConfig(url=SecretStr(postgres.url), min_conns=1, max_conns=2))
            )
            await db.migrate(MIGRATIONS)
            simulator = await stack.enter_async_context(_simulator(options, Path(logs)))
            urls = {"REDIS_URL": redis.url, "DATABASE_URL": postgres.url}
            job = _Run(options, urls, db, simulator, Path(logs))
            await stack.enter_async_context(
                alongside(Config.load({"AEGIS_PROCESS": "dashboard", **job.settings_of("dashboard")}, env_file=None))
            )
            return await job.run(on_progress)


class Child:
    """One process: its newest record of every kind, and the two things one can tell it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self._process, self._log = name, process, log
        self.records: dict[str, Mapping[str, Any]] = {}
        self._changed = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            record = msgspec.json.decode(line)
            async with self._changed:
                self.records[record.get("kind", "ready")] = record
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()

    async def wait_for(self, kind: str, timeout_s: float) -> Mapping[str, Any]:
        """The first record of `kind`."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(
                    lambda: kind in self.records or self._reading.done() or "error" in self.records
                )
        except TimeoutError:
            raise DemoError(self.name, f"gave no {kind!r} within {timeout_s:g} s", self._log_tail()) from None
        self.check()
        if kind not in self.records:
            raise DemoError(self.name, "ended without a word", self._log_tail())
        return self.records[kind]

    def check(self) -> None:
        """Raise if the process has failed."""
        if "error" in self.records:
            raise DemoError(self.name, str(self.records["error"]["message"]), "")
        if self._process.returncode is not None and "final" not in self.records:
            raise DemoError(self.name, f"ended with exit code {self._process.returncode}", self._log_tail())

    def ask_to_stop(self) -> None:
        """Say `stop`; the child ends in order."""
        if self._process.stdin is not None and self._process.returncode is None:
            self._process.stdin.write(b"stop\n")

    async def end(self) -> None:
        """Let go of it: its stdin closes, so it leaves; if it does not, it is killed."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        finally:
            self._reading.cancel()

    def _log_tail(self) -> str:
        return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()


@asynccontextmanager
async def _child(
    name: str, module: str, args: Iterable[str], environ: Mapping[str, str], logs: Path
) -> AsyncIterator[Child]:
    log = logs / f"{name.replace(' ', '-')}.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *args,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=child_environ({"AEGIS_PROCESS": name, **environ}),
            start_new_session=True,  # Ctrl-C is ours to pass on: children end in order, not in a heap of tracebacks
        )
    child = Child(name, process, log)
    try:
        yield child
    finally:
        await asyncio.shield(child.end())


@asynccontextmanager
async def _simulator(options: Options, logs: Path) -> AsyncIterator[Child]:
    args = ["sim", "--json", "--exit-with-stdin"]
    if options.replay is not None:
        args += ["--replay", str(options.replay)]
    if not options.shared:
        args += ["--rule", f"token_interval_s={_ALONE_TOKEN_INTERVAL_S}"]
    async with _child("simulator", "aegis", args, {}, logs) as simulator:
        await simulator.wait_for("ready", _READY_TIMEOUT_S)
        yield simulator


class _Run:
    """One run between the servers' start and their end."""

    def __init__(self, options: Options, urls: Mapping[str, str], db: Database, simulator: Child, logs: Path) -> None:
        self._options, self._db, self._logs = options, db, logs
        self._upstreams = simulator.records["ready"]
        self._simulator = simulator
        self._settings = {
            **urls,
            "DB_MIN_CONNS": "1",
            "DB_MAX_CONNS": "5",
            "KIS_BASE_URL": self._upstreams["kis"],
            "KIS_APP_KEY": "demo-app-key",
            "KIS_APP_SECRET": "demo-app-secret",
            "DART_BASE_URL": self._upstreams["dart"],
            "DART_API_KEY": "d" * 40,
            "NAVER_BASE_URL": self._upstreams["naver"],
            "NAVER_CHART_URL": self._upstreams["naver"],
            "LOG_LEVEL": "warning",
            "LOG_FORMAT": "json",
            **options.settings,
        }
        self._subscriber: Child | None = None
        self._collectors: list[Child] = []

    async def run(self, on_progress: Callable[[Progress], Awaitable[None]]) -> Report:
        """Subscriber, collectors, the time that was asked for, and the end in order."""
        async with contextlib.AsyncExitStack() as stack, aiohttp.ClientSession() as http:
            self._subscriber = await stack.enter_async_context(
                _child("subscriber", "aegis.demo.subscriber", (), self.settings_of("subscriber"), self._logs)
            )
            await self._subscriber.wait_for("ready", _READY_TIMEOUT_S)
            for index in range(self._options.processes):
                child = _child(
                    f"collector {index}",
                    "aegis.demo.collector",
                    (self._assignment(index),),
                    self.settings_of(f"collector-{index}"),
                    self._logs,
                )
                self._collectors.append(await stack.enter_async_context(child))
                if not self._options.shared:
                    # As an operator would who knows that one token a minute is issued: one process after the other.
                    await self._collectors[-1].wait_for("ready", _READY_TIMEOUT_S)
                    await asyncio.sleep(2 * _ALONE_TOKEN_INTERVAL_S)
            await asyncio.gather(*(c.wait_for("ready", _READY_TIMEOUT_S) for c in self._collectors))
            await self._first_request(http)
            started = time.monotonic()
            end = await self._watch(http, started, on_progress)
            await self._stop_collectors()
            await self._stop_subscriber()
            return await self._report(end, await self._seen(http), time.monotonic() - started)

    def settings_of(self, name: str) -> dict[str, str]:
        """The variables of one process."""
        return {**self._settings, "AEGIS_PREFIX": "demo", "REDIS_CLIENT_NAME": f"aegis-demo-{name}"}

    def _assignment(self, index: int) -> str:
        fields = {"index": index, "processes": self._options.processes, "shared": self._options.shared}
        return msgspec.json.encode(
            {**fields, "codes": self._upstreams["codes"], "day": self._upstreams["day"]}
        ).decode()

    async def _first_request(self, http: aiohttp.ClientSession) -> None:
        """The time that was asked for begins when the first price is asked for."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not (await self._seen(http))["kis"]["requests"]:
            for child in (self._simulator, *self._collectors):
                child.check()
            if time.monotonic() > deadline:
                raise DemoError("collectors", f"asked for no price within {_READY_TIMEOUT_S:g} s")
            await asyncio.sleep(0.02)

    async def _watch(
        self, http: aiohttp.ClientSession, started: float, on_progress: Callable[[Progress], Awaitable[None]]
    ) -> Mapping[str, Any]:
        """Let the time pass; returns what the simulator saw after the first second."""
        await asyncio.sleep(_START_UP_S)
        since = (await self._seen(http))["at"]
        seen: Mapping[str, Any] = {}
        while (left := started + self._options.seconds - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _PROGRESS_EVERY_S))
            seen = await self._seen(http, since)
            for child in (self._simulator, self._subscriber, *self._collectors):
                assert child is not None
                child.check()
            await on_progress(self._progress(time.monotonic() - started, seen))
        return seen

    async def _seen(self, http: aiohttp.ClientSession, since: float = 0.0) -> Mapping[str, Any]:
        async with http.get(f"{self._upstreams['kis']}/_sim/report", params={"since": since}) as response:
            seen: Mapping[str, Any] = await response.json()
            return seen

    def _progress(self, elapsed_s: float, seen: Mapping[str, Any]) -> Progress:
        rows = ("rows_inserted", "rows_updated")
        assert self._subscriber is not None
        received = self._subscriber.records.get("progress", {})
        return Progress(
            elapsed_s,
            self._options.seconds,
            {name: _upstream(seen[name]) for name in _UPSTREAMS},
            seen["tokens_issued"],
            sum(self._of_collectors("ticks_published")),
            received.get("ticks_received", 0),
            received.get("gaps", 0),
            sum(sum(self._of_collectors(row)) for row in rows),
        )

    def _of_collectors(self, field: str) -> list[Any]:
        newest = (c.records.get("final", c.records.get("progress", {})) for c in self._collectors)
        return [record.get(field, 0) for record in newest]

    async def _stop_collectors(self) -> None:
        for collector in self._collectors:
            collector.ask_to_stop()
        await asyncio.gather(*(c.wait_for("final", _STOP_TIMEOUT_S) for c in self._collectors))

    async def _stop_subscriber(self) -> None:
        """Give the last ticks time to arrive; what is missing then is missing in the report."""
        assert self._subscriber is not None
        published, deadline = sum(self._of_collectors("ticks_published")), time.monotonic() + _LAST_TICKS_TIMEOUT_S
        while self._subscriber.records.get("progress", {}).get("ticks_received", 0) < published:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
            self._subscriber.check()
        self._subscriber.ask_to_stop()
        await self._subscriber.wait_for("final", _STOP_TIMEOUT_S)

    async def _report(self, end: Mapping[str, Any], seen: Mapping[str, Any], seconds: float) -> Report:
        assert self._subscriber is not None
        received = self._subscriber.records["final"]
        caches = self._of_collectors("cache")
        inserted, updated = sum(self._of_collectors("rows_inserted")), sum(self._of_collectors("rows_updated"))
        tables = ("quotes", "daily_prices", "disclosures")
        counts = [await self._db.fetch_value(f"select count(*) from {table}") for table in tables]  # noqa: S608 - ours
        # Quota and silence over the time that was asked for; refusals and windows over everything, the ending included.
        timed = {name: _upstream(end[name]) for name in _UPSTREAMS}
        upstreams = {
            name: msgspec.structs.replace(
                _upstream(seen[name]), quota_used=of.quota_used, longest_silence_s=of.longest_silence_s
            )
            for name, of in timed.items()
        }
        return Report(
            seconds=round(seconds, 3),
            processes=self._options.processes,
            **upstreams,
            tokens_issued=seen["tokens_issued"],
            tokens_refused=seen["tokens_refused"],
            cache=CacheUse(**{field: sum(cache[field] for cache in caches) for field in ("hits", "misses", "loads")}),
            ticks_published=sum(self._of_collectors("ticks_published")),
            ticks_received=received["ticks_received"],
            gaps=received["gaps"],
            values_behind=received["values_behind"],
            rows_upserted=inserted + updated,
            rows_inserted=inserted,
            rows_in_table=sum(counts),
            failures=sum(self._of_collectors("failures")),
            violations=tuple(seen["violations"]),
        )


def _upstream(seen: Mapping[str, Any]) -> Upstream:
    """One upstream as the simulator reports it."""
    return Upstream(
        requests=seen["requests"],
        rejected=seen["rejected"],
        quota_used=round(seen["quota_used"], 3),
        worst_window=seen["worst_window"],
        limit=seen["limit"],
        longest_silence_s=round(seen["longest_silence_s"], 3),
    )
