"""Headers: a bound on those that come, and those that keep browsers from making more of an answer than it is."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ostinato.server.errors import BY_STATUS, error_body

MAX_HEADER_BYTES = 64 * 1024  # of a request's line and headers together

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
"""What OWASP's REST security cheat sheet asks of an API whose answers are private and are never shown as a page."""


class HeaderGuard:
    """Pure ASGI middleware: answers headers over the bound with 431, and adds `SAFE_HEADERS` where none is set.

    `connections.py` ends requests whose headers are too large before they are complete; those that arrive complete in
    one piece come here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if _header_bytes(scope) > MAX_HEADER_BYTES:
            message = f"The request's line and headers have more than {MAX_HEADER_BYTES} bytes."
            await JSONResponse(error_body(message, BY_STATUS[431]), 431)(scope, receive, send_safe)
        else:
            await self.app(scope, receive, send_safe)


def _header_bytes(scope: Scope) -> int:
    line = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    return line + sum(len(name) + len(value) for name, value in scope["headers"])
