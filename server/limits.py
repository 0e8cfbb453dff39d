"""The bound on request bodies, in bytes."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ostinato.server.errors import BY_STATUS, error_body


class BodyLimit:
    """Pure ASGI middleware: a body over `max_bytes` is answered with 413, by its announced length where it has one,
    else as soon as the bytes read exceed the bound. Nothing beyond the bound is kept in memory.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif _announced_bytes(scope) > self.max_bytes:
            await JSONResponse(error_body(self._message(), BY_STATUS[413]), 413)(scope, receive, send)
        else:
            await self.app(scope, self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        taken = 0

        async def receive_bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_bytes:
                raise HTTPException(413, self._message())
            return message

        return receive_bounded

    def _message(self) -> str:
        return f"The body is larger than the {self.max_bytes} bytes that this server reads (--max-body)."


def _announced_bytes(scope: Scope) -> int:
    """0 where the length is absent or not a number: then the bytes are counted as they come."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length[:18]) if length.isascii() and length.isdigit() else 0  # more digits are too large anyway
