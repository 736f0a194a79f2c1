"""
Prometheus metrics on METRICS_PORT: whatever the given function says, asked for at each scrape, for all processes.

Rooms do not know metrics; they have `stats()`. A registry of our own keeps the process-wide default registry, which
belongs to the application, untouched. How the processes of one host share the port stands in `_peers.py`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from aegis.errors import PortTakenError
from aegis.telemetry._peers import ANSWER_TIMEOUT_S, Peer, Report
from aegis.telemetry._program import program
from aegis.telemetry.sample import PREFIX, Sample

logger = logging.getLogger("aegis.telemetry")

_TAKE_OVER_EVERY_S = 1.0


class MetricsServer:
    """
    `with MetricsServer(samples, port):` answers scrapes until the block is left. Works in threads of its own.

    Of the processes that give the same port, one serves it, with the numbers of all: each under the label `process`,
    beside `aegis_process_up`, which is 0 for one that does not answer. When the serving one ends, another takes over.
    `port` 0 takes any free port for this process alone. `samples` is called in another thread; `on_loop` helps where
    it must not be.

    Raises:
        PortTakenError: a program that is none of ours listens there.
        MetricsDirectoryError: the directory in which the processes find each other belongs to somebody else.
    """

    def __init__(
        self,
        samples: Callable[[], Iterable[Sample]],
        port: int,
        *,
        process: str | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.port, self._host, self._alone = port, host, port == 0
        self._peer = Peer(lambda: list(samples()), process or program(), port)
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._waiter: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"MetricsServer(port={self.port}, serving={self.serving})"

    @property
    def serving(self) -> bool:
        """Whether it is this process that serves the port."""
        return self._server is not None

    def __enter__(self) -> Self:
        if not self._alone:
            self._peer.open()
        try:
            if self._alone or self._peer.lead():
                self._serve()
        except BaseException:
            self._peer.close()
            raise
        if not self.serving:
            self._waiter = threading.Thread(target=self._take_over, name="aegis metrics", daemon=True)
            self._waiter.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering. Idempotent."""
        self._closing.set()
        if self._waiter is not None:
            self._waiter.join()
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.shutdown()
            server.server_close()
            self._thread.join()
        self._peer.close()

    def _serve(self) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Reports(self._peer.own_report if self._alone else self._peer.reports))
        try:
            self._server, self._thread = start_http_server(self.port, self._host, registry)
        except OSError as exc:
            raise PortTakenError("metrics", self.port, exc.strerror or str(exc)) from exc
        self.port = self._server.server_port

    def _take_over(self) -> None:
        """Wait until nobody serves any more, then do it."""
        said = False
        while not self.serving and not self._closing.wait(_TAKE_OVER_EVERY_S):
            if self._peer.lead():
                try:
                    self._serve()
                except PortTakenError as exc:
                    self._peer.resign()
                    if not said:
                        logger.warning("metrics are not served: %s", exc)
                    said = True


def on_loop(loop: asyncio.AbstractEventLoop, samples: Callable[[], Iterable[Sample]]) -> Callable[[], Sequence[Sample]]:
    """
    `samples`, called in the thread of `loop`, where the rooms live, from whatever thread it is asked.

    Raises TimeoutError where the loop hangs for a second.
    """

    async def ask() -> list[Sample]:
        return list(samples())

    def asked() -> Sequence[Sample]:
        if asyncio._get_running_loop() is loop:  # noqa: SLF001 - documented, and gives None elsewhere
            return list(samples())
        question = asyncio.run_coroutine_threadsafe(ask(), loop)
        try:
            return question.result(ANSWER_TIMEOUT_S / 2)
        finally:
            question.cancel()

    return asked


class _Reports(Collector):
    """The reports of all processes as families of metrics."""

    def __init__(self, reports: Callable[[], list[Report]]) -> None:
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        """One family per name, with the samples of all processes."""
        families: dict[str, Metric] = {}
        for report in self._reports():
            up = Sample("process_up", "Whether the process answered this scrape.", report.samples is not None)
            for sample in (up, *(report.samples or ())):
                family = families.get(sample.name)
                if family is None:
                    family = families[sample.name] = Metric(f"{PREFIX}{sample.name}", sample.meaning, sample.kind)
                _add(family, sample, {"process": report.process, **dict(sample.labels)})
        yield from families.values()


def _add(family: Metric, sample: Sample, labels: dict[str, str]) -> None:
    if not sample.buckets:
        family.add_sample(f"{family.name}_total" if sample.total else family.name, labels, float(sample.value))
        return
    for bound, count in sample.buckets:
        family.add_sample(f"{family.name}_bucket", {**labels, "le": "+Inf" if bound == inf else str(bound)}, count)
    family.add_sample(f"{family.name}_count", labels, sample.buckets[-1][1])
    family.add_sample(f"{family.name}_sum", labels, sample.value)
