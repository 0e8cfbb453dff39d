"""The bound on request bodies, in bytes."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ostinato.server.errors import BY_STATUS, error_body


class BodyLimit:
    """Pure ASGI middleware: a body over the bound is answered with 413, by its announced length where it has one, else
    as soon as the bytes read exceed the bound. Nothing beyond the bound is kept in memory.

    max_bytes: of a body; max_state_bytes: of one that is the file of a state.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_state_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_state_bytes = max_state_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        file = scope["method"] == "PUT" and scope["path"].startswith("/v1/states/")
        bound = self.max_state_bytes if file else self.max_bytes
        message = _message(bound, "--max-state" if file else "--max-body")
        if _announced_bytes(scope) > bound:
            await JSONResponse(error_body(message, BY_STATUS[413]), 413)(scope, receive, send)
        else:
            await self.app(scope, _bounded(receive, bound, message), send)


def _bounded(receive: Receive, bound: int, complaint: str) -> Receive:
    taken = 0

    async def receive_bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > bound:
            raise HTTPException(413, complaint)
        return message

    return receive_bounded


def _message(bound: int, option: str) -> str:
    return f"The body is larger than the {bound} bytes that this server reads ({option})."


def _announced_bytes(scope: Scope) -> int:
    """0 where the length is absent or not a number: then the bytes are counted as they come."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length[:18]) if length.isascii() and length.isdigit() else 0  # more digits are too large anyway
