"""One span for each request, by OpenTelemetry's own exporters, and what a collector receives."""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from ostinato.server.app import create_app
from ostinato.server.telemetry.tracing import Tracing, TracingError, open_tracing
from tests.server.harness import TIMEOUT, events, serving, settings, text_service, until

pytestmark = pytest.mark.asyncio
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # the example of W3C Trace Context, section 3.2
UNSAMPLED = CALLER[:-1] + "0"
GOOD = {"prompt": "Hi", "max_tokens": 3, "ignore_eos": True}


@asynccontextmanager
async def traced(**options: Any) -> Any:
    """A client, and the spans so far."""
    exporter, service = InMemorySpanExporter(), text_service(**options)
    app = create_app(service, settings(), tracing=Tracing(SimpleSpanProcessor(exporter)))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ostinato", timeout=TIMEOUT) as client,
    ):
        await until(lambda: service.ready)
        yield client, exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    spans = exporter.get_finished_spans()
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_request_is_a_span_with_its_phases(stream: bool) -> None:
    async with traced() as (client, exporter):
        if stream:
            await events(client, "/v1/completions", **GOOD)
        else:
            await client.post("/v1/completions", json=GOOD, headers={"x-request-id": "mine"})
        spans = by_name(exporter)
    assert set(spans) == {"POST /v1/completions", "queued", "prefill", "decode"}
    request = spans["POST /v1/completions"]
    assert request.kind is SpanKind.SERVER
    assert request.parent is None
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["gen_ai.usage.output_tokens"] == 3
    assert request.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert stream or request.attributes["ostinato.request_id"] == "mine"
    phases = [spans[name] for name in ("queued", "prefill", "decode")]
    assert all(phase.parent is not None and phase.parent.span_id == request.context.span_id for phase in phases)
    moments = [request.start_time, *(m for phase in phases for m in (phase.start_time, phase.end_time))]
    assert moments == sorted(moments)
    assert phases[-1].end_time <= request.end_time


async def test_a_caller_is_continued() -> None:
    async with traced() as (client, exporter):
        await client.post("/v1/completions", json=GOOD, headers={"traceparent": CALLER})
        await client.post("/v1/completions", json=GOOD, headers={"traceparent": UNSAMPLED})
        request = by_name(exporter)["POST /v1/completions"]
    _, trace, parent, _ = CALLER.split("-")
    assert f"{request.context.trace_id:032x}" == trace
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == parent


@pytest.mark.parametrize("header", ["", "00-0-0-01", "é" * 40, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
async def test_a_caller_that_makes_no_sense_is_not(header: str) -> None:
    async with traced() as (client, exporter):
        answer = await client.get("/v1/models", headers={"traceparent": header.encode()})
        assert answer.status_code == 200
        assert by_name(exporter)["GET /v1/models"].parent is None


async def test_failures_are_marked() -> None:
    def fail(plan: Any) -> None:
        if not plan.chunks[0].sequence.id.startswith("warm-up"):
            raise RuntimeError("boom")

    async with traced(before_step=fail) as (client, exporter):
        await client.post("/v1/completions", json=GOOD)
        await client.post("/v1/completions", json={"prompt": 1})
        bad, invalid = (span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER)
    assert bad.status.status_code is StatusCode.ERROR
    assert bad.attributes is not None
    assert bad.attributes["http.response.status_code"] == 500
    assert invalid.status.status_code is StatusCode.UNSET, "the client's mistake"


class Collector(HTTPServer):
    """Takes what an exporter sends."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.spans: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    data = gzip.decompress(data)
                request = ExportTraceServiceRequest.FromString(data)
                collector.paths.append(self.path)
                for resource in request.resource_spans:
                    collector.spans += [span.name for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
async def test_a_collector_has_all_spans_when_the_server_has_ended(collector: Collector, path: str) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_port}{path}"
    async with serving(text_service(), otlp_endpoint=endpoint) as client:
        assert (await client.post("/v1/completions", json=GOOD)).status_code == 200
    assert set(collector.paths) == {"/v1/traces"}
    assert set(collector.spans) == {"POST /v1/completions", "queued", "prefill", "decode"}


async def test_without_an_address_there_are_no_traces() -> None:
    assert open_tracing(None) is None
    assert open_tracing("") is None


async def test_without_the_packages_the_error_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(TracingError, match=r"ostinato\[otel\]"):
        open_tracing("http://127.0.0.1:4318")
