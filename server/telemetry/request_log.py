"""The outermost layer of every request: its id, its line in the log, its record in the metrics, and the last catch."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ostinato.server.errors import ClientDisconnectedError, error_response
from ostinato.server.telemetry.log_format import as_text
from ostinato.server.telemetry.metrics import Metrics
from ostinato.server.telemetry.request_record import RequestRecord, begin_record
from ostinato.server.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)

CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PROBES = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds: logged at the level debug
LONGEST_PATH = 200


class RequestLog:
    """Pure ASGI middleware. Returns `x-request-id` (the client's own, where it sent a plain one), logs, counts, times
    and traces the request, and turns what nobody caught into a 500 in the usual shape; the traceback goes to the log.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope), scope["method"], scope["path"][:LONGEST_PATH])
        begin_record(record)
        state = scope["state"] = {**scope.get("state", {}), "outcome": None}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(raw=message["headers"])["x-request-id"] = record.id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnectedError:
            state["outcome"] = "disconnected"
        except Exception as error:
            logger.exception("request %s failed", record.id)
            state["outcome"] = "error"
            if record.status:
                raise
            await error_response(error)(scope, receive, send_with_id)
        finally:
            record.outcome, record.route = state["outcome"] or _outcome(record.status), _route(scope)
            self._ended(record, Headers(scope=scope))

    def _ended(self, record: RequestRecord, headers: Headers) -> None:
        record.ended = time.perf_counter()
        self.metrics.request_ended(record.route, record.outcome, record.ended - record.started)
        level = logging.DEBUG if record.route in PROBES and record.outcome == "ok" else logging.INFO
        if logger.isEnabledFor(level):
            fields = record.fields()
            logger.log(level, "%s", as_text(fields), extra={"fields": fields})
        if self.tracing is not None:
            self.tracing.record(record, headers)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if CLIENT_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def _route(scope: Scope) -> str:
    """The route's pattern: a label must not grow with what clients type."""
    return getattr(scope.get("route"), "path", "other")


def _outcome(status: int) -> str:
    named = {429: "queue_full", 503: "unavailable"}
    return named.get(status) or {2: "ok", 4: "invalid"}.get(status // 100, "error")
