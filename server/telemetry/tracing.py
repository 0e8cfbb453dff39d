"""Traces by OpenTelemetry: a span for each request, with the time in the queue, in the prompt and in the answer below.

Off by default. The sampler and the resource are those of OpenTelemetry's own environment variables
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). A caller's span is continued by its
`traceparent` (W3C Trace Context).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ostinato.engine.errors import OstinatoError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.util.types import AttributeValue

    from ostinato.server.telemetry.request_record import RequestRecord

TRACES_PATH = "/v1/traces"


class TracingError(OstinatoError):
    """Traces cannot be sent: the packages for it are not installed."""


class Tracing:
    """Makes the spans of requests that have ended, and hands them to a processor."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "ostinato"}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ostinato")
        self._extract = extract

    def record(self, record: RequestRecord, headers: Mapping[str, str]) -> None:
        """One span, a child of the caller's if it sent one, and its phases."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        context = self._extract(headers)
        start, end = (int((moment + record.epoch) * 1e9) for moment in (record.started, record.ended))
        span = self._tracer.start_span(
            f"{record.method} {record.route}", context, SpanKind.SERVER, _attributes(record), start_time=start
        )
        if record.outcome in ("error", "unavailable"):
            span.set_status(Status(StatusCode.ERROR))
        for name, begun, ended in record.phases():
            child = self._tracer.start_span(
                name, set_span_in_context(span), start_time=int((begun + record.epoch) * 1e9)
            )
            child.end(int((ended + record.epoch) * 1e9))
        span.end(end)

    def shutdown(self) -> None:
        """Sends what is left. Blocks for as long as that takes, at most some seconds."""
        self._provider.shutdown()


def open_tracing(endpoint: str | None) -> Tracing | None:
    """Sends to a collector by OTLP over HTTP; None without an address. Raises TracingError."""
    if not endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError("traces need OpenTelemetry: pip install 'ostinato[otel]'") from error
    url = endpoint if endpoint.endswith(TRACES_PATH) else endpoint.rstrip("/") + TRACES_PATH
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))


def _attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    """By the semantic conventions of HTTP and generative AI, as far as they have a name."""
    found: dict[str, AttributeValue] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "ostinato.request_id": record.id,
        "ostinato.outcome": record.outcome,
    }
    if record.submitted is not None:
        found |= {
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.generated_tokens,
            "ostinato.cached_tokens": record.cached_tokens,
            "gen_ai.response.finish_reasons": sorted(record.reasons),
        }
    return found
