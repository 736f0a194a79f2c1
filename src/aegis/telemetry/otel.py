"""
OpenTelemetry, for those who have it: `pip install aegis-infra[otel]`.

Traces: a span per call of the HTTP client and, under it, one client span per request on the wire, by OpenTelemetry's
semantic conventions; made when the call has ended, from the record that observers get, so the hot path knows nothing of
it, and with the span that was current in the caller's task as parent. URLs are the masked ones. Metrics: every sample
that Prometheus would get, under the same meaning (`aegis_http_requests_total` is `aegis.http.requests`), and the
duration of requests as a histogram. Only the API is needed here; exporters belong to the program.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, TracerProvider
from opentelemetry.util.types import Attributes, AttributeValue

import aegis
from aegis.http import Attempt, CallRecord, HttpClient
from aegis.http.records import ELAPSED_BOUNDS_S
from aegis.telemetry.sample import Sample

_FRESH_S = 0.5  # one collection asks every instrument, and all of them get the numbers of one moment


def trace_http(http: HttpClient, tracer_provider: TracerProvider | None = None) -> None:
    """Spans of every call of `http` and all clients that share its pool, from now on."""
    tracer = trace.get_tracer("aegis", aegis.__version__, tracer_provider)
    http.observe(lambda call: _trace(tracer, call))


def measure_http(http: HttpClient, meter_provider: MeterProvider | None = None) -> None:
    """`http.client.request.duration` of every request on the wire, in seconds."""
    meter = metrics.get_meter("aegis", aegis.__version__, meter_provider)
    duration = meter.create_histogram(
        "http.client.request.duration",
        unit="s",
        description="Duration of HTTP client requests.",
        explicit_bucket_boundaries_advisory=list(ELAPSED_BOUNDS_S),
    )
    http.observe(lambda call: _measure(duration, call))


class SampleMeter:
    """
    Exports the samples of `samples` as observable instruments, from now on.

    `samples` is called in the thread of whatever collects; `aegis.telemetry.on_loop` leads it to the rooms. A number
    that is first seen in one collection is exported from the next one on. Histograms are left out: OpenTelemetry has
    no observable ones (see `measure_http`).
    """

    def __init__(self, samples: Callable[[], Iterable[Sample]], meter_provider: MeterProvider | None = None) -> None:
        self._samples = samples
        self._meter = metrics.get_meter("aegis", aegis.__version__, meter_provider)
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._newest: dict[str, list[Sample]] = {}
        self._taken_at = float("-inf")
        self._register(self._now())

    def _now(self) -> dict[str, list[Sample]]:
        """The samples by name, asked for once per collection."""
        with self._lock:
            if time.monotonic() - self._taken_at > _FRESH_S:
                newest: dict[str, list[Sample]] = {}
                for sample in self._samples():
                    if not sample.buckets:
                        newest.setdefault(sample.name, []).append(sample)
                self._newest, self._taken_at = newest, time.monotonic()
            return self._newest

    def _register(self, newest: dict[str, list[Sample]]) -> None:
        for name, (first, *_) in newest.items():
            with self._lock:
                if name in self._known:
                    continue
                self._known.add(name)
            kind = "counter" if first.total else "gauge"
            create = getattr(self._meter, f"create_observable_{kind}")
            spelled, unit = _spelled(name)
            create(spelled, callbacks=[self._observing(name)], unit=unit, description=first.meaning)

    def _observing(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> list[Observation]:
            newest = self._now()
            if newest.keys() - self._known:
                # The provider holds its lock while it collects, so new instruments wait for the end of it elsewhere.
                threading.Thread(target=self._register, args=(newest,), daemon=True).start()
            return [Observation(float(one.value), dict(one.labels)) for one in newest.get(name, ())]

        return observe


def _spelled(name: str) -> tuple[str, str]:
    """A name and its unit as OpenTelemetry has them: `http_permit_wait_seconds` is `aegis.http.permit_wait` in s."""
    room, _, rest = name.partition("_")
    for suffix, unit in (("_seconds", "s"), ("_bytes", "By")):
        if rest.endswith(suffix):
            return f"aegis.{room}.{rest.removesuffix(suffix)}", unit
    return f"aegis.{room}.{rest}", "1"


def _trace(tracer: Tracer, call: CallRecord) -> None:
    ended_ns = time.time_ns()
    began_ns = ended_ns - _ns(call.elapsed_s)
    attributes: dict[str, AttributeValue] = {
        **_server(call.upstream),
        "http.request.method": call.method,
        "aegis.http.outcome": call.outcome,
        "aegis.http.attempts": len(call.attempts),
    }
    if call.error:
        attributes["error.type"] = call.error
    whole = tracer.start_span(f"{call.method} {call.upstream}", attributes=attributes, start_time=began_ns)
    if call.error:
        whole.set_status(Status(StatusCode.ERROR, call.error))
    under = trace.set_span_in_context(whole)
    for resent, attempt in enumerate(call.attempts):
        start_ns = began_ns + _ns(attempt.started_s)
        span = tracer.start_span(
            call.method,
            under,
            kind=SpanKind.CLIENT,
            attributes=_of_attempt(call, attempt, resent),
            start_time=start_ns,
        )
        if attempt.outcome not in _GOOD:
            span.set_status(Status(StatusCode.ERROR, attempt.reason))
        span.end(start_ns + _ns(attempt.elapsed_s))
    whole.end(ended_ns)


_GOOD = frozenset({"ok", "empty", "redirect"})


def _of_attempt(call: CallRecord, attempt: Attempt, resent: int) -> Attributes:
    attributes: dict[str, AttributeValue] = {
        **_server(call.upstream),
        "http.request.method": call.method,
        "url.full": call.url,
        "aegis.http.outcome": attempt.outcome,
        "aegis.http.permit_wait": attempt.permit_wait_s,
        "http.response.body.size": attempt.body_bytes,
    }
    if resent:
        attributes["http.request.resend_count"] = resent
    return attributes | _ended(attempt)


def _measure(duration: Histogram, call: CallRecord) -> None:
    for attempt in call.attempts:
        attributes = {**_server(call.upstream), "http.request.method": call.method, **_ended(attempt)}
        duration.record(attempt.elapsed_s, attributes)


def _ended(attempt: Attempt) -> dict[str, AttributeValue]:
    """Status and, where it is no success, the kind of failure."""
    attributes: dict[str, AttributeValue] = {}
    if attempt.status is not None:
        attributes["http.response.status_code"] = attempt.status
    if attempt.outcome not in _GOOD:
        attributes["error.type"] = attempt.outcome
    return attributes


def _server(upstream: str) -> dict[str, AttributeValue]:
    host, colon, port = upstream.rpartition(":")
    if colon and port.isdigit():
        return {"server.address": host, "server.port": int(port)}
    return {"server.address": upstream}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
