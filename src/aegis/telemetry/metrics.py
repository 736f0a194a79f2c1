"""
Prometheus metrics on METRICS_PORT: whatever the given function says, asked for at each scrape.

Rooms do not know metrics; they have `stats()`. A registry of our own keeps the process-wide default registry, which
belongs to the application, untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aegis.errors import PortTakenError


class Sample(NamedTuple):
    """One number. `total` marks one that only grows."""

    name: str  #: without prefix and suffix: `http_requests`
    meaning: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()
    total: bool = False


class MetricsServer:
    """
    `with MetricsServer(samples, port):` answers scrapes on the loopback until the block is left.

    Raises:
        PortTakenError: somebody else listens there.
    """

    def __init__(self, samples: Callable[[], Iterable[Sample]], port: int) -> None:
        self._samples, self.port = samples, port

    def __enter__(self) -> Self:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Samples(self._samples))
        try:
            self._server, self._thread = start_http_server(self.port, "127.0.0.1", registry)
        except OSError as exc:
            raise PortTakenError("metrics", self.port, exc.strerror or str(exc)) from exc
        self.port = self._server.server_port
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Samples(Collector):
    def __init__(self, samples: Callable[[], Iterable[Sample]]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for sample in self._samples():
            name, labels = f"aegis_{sample.name}", dict(sample.labels)
            if name not in families:
                kind = CounterMetricFamily if sample.total else GaugeMetricFamily
                families[name] = kind(name, sample.meaning, labels=list(labels))
            families[name].add_metric(list(labels.values()), sample.value)
        yield from families.values()
