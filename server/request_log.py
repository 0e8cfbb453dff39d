"""The outermost layer of every request: its id, its record in the metrics, and the last catch."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ostinato.server.errors import ClientDisconnectedError, error_response
from ostinato.server.metrics import Metrics

logger = logging.getLogger(__name__)

CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestLog:
    """Pure ASGI middleware. Returns `x-request-id` (the client's own, where it sent a plain one), counts and times the
    request, and turns what nobody caught into a 500 in the usual shape; the traceback goes to the log.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        request_id = _request_id(scope)
        state = scope["state"] = {**scope.get("state", {}), "outcome": None}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message["headers"])["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnectedError:
            state["outcome"] = "disconnected"
        except Exception as error:
            logger.exception("request %s failed", request_id)
            state["outcome"] = "error"
            if status:
                raise
            await error_response(error)(scope, receive, send_with_id)
        finally:
            outcome = state["outcome"] or _outcome(status)
            self.metrics.request_ended(_route(scope), outcome, time.perf_counter() - started)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if CLIENT_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def _route(scope: Scope) -> str:
    """The route's pattern: a label must not grow with what clients type."""
    return getattr(scope.get("route"), "path", "other")


def _outcome(status: int) -> str:
    named = {429: "queue_full", 503: "unavailable"}
    return named.get(status) or {2: "ok", 4: "invalid"}.get(status // 100, "error")
