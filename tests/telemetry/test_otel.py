"""OpenTelemetry: spans and instruments of real calls, read back from the real SDK."""

from __future__ import annotations

import asyncio
import time

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from aegis.backoff import Backoff
from aegis.errors import HttpConnectionError
from aegis.http import HttpClient, RetryPolicy
from aegis.telemetry import Sample
from aegis.telemetry.otel import SampleMeter, measure_http, trace_http


@pytest.fixture
async def flaky():
    """A server that answers 503 first and 200 afterwards."""
    answers = iter([b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nok"])

    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            if (answer := next(answers, None)) is None:
                break
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.fixture
async def http():
    async with HttpClient() as client:
        yield client.with_retry(RetryPolicy(backoff=Backoff(0.001, 0.002)))


def read(reader):
    """Every number as `{name: [(attributes, value)]}`, and the unit of each name."""
    found, units = {}, {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                units[metric.name] = metric.unit
                found[metric.name] = [
                    (dict(point.attributes), getattr(point, "value", None)) for point in metric.data.data_points
                ]
    return found, units


async def test_a_call_is_a_span_and_each_request_a_client_span_under_it(flaky, http):
    """With the caller's span as parent, durations that nest, masked URLs, and errors where there were any."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_http(http, provider)
    with provider.get_tracer("test").start_as_current_span("mine") as mine:
        await http.get(f"{flaky}/p?token=s3cret")
    spans = exporter.get_finished_spans()
    first, second, whole, _ = spans
    assert [span.kind for span in (first, second)] == [SpanKind.CLIENT] * 2
    assert whole.parent.span_id == mine.get_span_context().span_id
    assert first.parent.span_id == second.parent.span_id == whole.context.span_id
    port = int(flaky.rpartition(":")[2])
    assert dict(second.attributes) | {"aegis.http.permit_wait": 0} == {
        "server.address": "127.0.0.1",
        "server.port": port,
        "http.request.method": "GET",
        "url.full": f"{flaky}/p?token=***",
        "aegis.http.outcome": "ok",
        "aegis.http.permit_wait": 0,
        "http.response.body.size": 2,
        "http.request.resend_count": 1,
        "http.response.status_code": 200,
    }
    assert "http.request.resend_count" not in first.attributes
    assert (first.attributes["error.type"], first.status.status_code) == ("transient", StatusCode.ERROR)
    assert second.status.status_code == whole.status.status_code == StatusCode.UNSET
    assert whole.start_time <= first.start_time < first.end_time <= second.start_time < second.end_time
    assert second.end_time <= whole.end_time
    assert (whole.attributes["aegis.http.attempts"], whole.name) == (2, f"GET 127.0.0.1:{port}")
    exporter.clear()
    with pytest.raises(HttpConnectionError):
        await http.without_retry().get("http://me:s3cret@127.0.0.1:1/?appkey=s3cret")
    failed = exporter.get_finished_spans()[-1]
    assert (failed.attributes["error.type"], failed.status.status_code) == ("HttpConnectionError", StatusCode.ERROR)
    assert "s3cret" not in str([span.to_json() for span in (*spans, *exporter.get_finished_spans())])


async def test_the_duration_of_requests_is_the_conventional_histogram(flaky, http):
    """One point per status and kind of failure; seconds."""
    reader = InMemoryMetricReader()
    measure_http(http, MeterProvider([reader]))
    await http.get(flaky)
    found, units = read(reader)
    points = [attributes for attributes, _ in found["http.client.request.duration"]]
    assert sorted((point["http.response.status_code"], point.get("error.type")) for point in points) == [
        (200, None),
        (503, "transient"),
    ]
    assert units["http.client.request.duration"] == "s"


def test_every_sample_is_an_instrument_and_new_ones_join():
    """Names and units as OpenTelemetry has them, labels as attributes; what appears later is exported later."""
    samples = [
        Sample("http_requests", "Requests.", 3, (("upstream", "h"), ("outcome", "ok")), total=True),
        Sample("http_permit_wait_seconds", "Waited.", 1.5, total=True),
        Sample("cache_local_bytes", "Bytes.", 7),
        Sample("redis_up", "Up.", value=True),
    ]
    reader = InMemoryMetricReader()
    SampleMeter(lambda: samples, MeterProvider([reader]))
    found, units = read(reader)
    assert found == {
        "aegis.http.requests": [({"upstream": "h", "outcome": "ok"}, 3)],
        "aegis.http.permit_wait": [({}, 1.5)],
        "aegis.cache.local": [({}, 7)],
        "aegis.redis.up": [({}, 1)],
    }
    assert (units["aegis.http.permit_wait"], units["aegis.cache.local"]) == ("s", "By")
    samples.append(Sample("redis_errors", "Errors.", 1, (("kind", "OOM"),), total=True))
    deadline = time.monotonic() + 20
    while "aegis.redis.errors" not in found and time.monotonic() < deadline:
        time.sleep(0.1)  # the numbers of one moment serve for half a second
        found, _ = read(reader)
    assert found["aegis.redis.errors"] == [({"kind": "OOM"}, 1)]
