"""The bound on request bodies, in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ostinato.server.errors import BY_STATUS, error_body

AT_ONCE = {False: 16, True: 2}  # bodies of the largest size, by whether they are files of states


class BodyLimit:
    """Pure ASGI middleware: a body over the bound is answered with 413, by its announced length where it has one, else
    as soon as the bytes read exceed the bound. Nothing beyond the bound is kept in memory.

    max_bytes: of a body; max_state_bytes: of one that is the file of a state. All requests in progress together may
    have AT_ONCE times as much; what comes beyond is answered with 429.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_state_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_state_bytes = max_state_bytes
        self.taken = {False: 0, True: 0}  # bytes of the requests in progress, by whether they are files

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
            with self._counted(file) as taken:
                await self.app(scope, self._bounded(receive, taken, bound, message), send)

    @contextmanager
    def _counted(self, file: bool) -> Iterator[_Taken]:
        """What a request takes in counts until it has ended."""
        taken = _Taken(file)
        try:
            yield taken
        finally:
            self.taken[file] -= taken.bytes

    def _bounded(self, receive: Receive, taken: _Taken, bound: int, complaint: str) -> Receive:
        async def receive_bounded() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            taken.bytes += size
            self.taken[taken.file] += size
            if taken.bytes > bound:
                raise HTTPException(413, complaint)
            if self.taken[taken.file] > AT_ONCE[taken.file] * bound:
                raise HTTPException(429, "The bodies of the requests in progress are too large together: try again.")
            return message

        return receive_bounded


@dataclass(slots=True)
class _Taken:
    """Bytes of one request's body so far. file: of a state."""

    file: bool
    bytes: int = 0


def _message(bound: int, option: str) -> str:
    return f"The body is larger than the {bound} bytes that this server reads ({option})."


def _announced_bytes(scope: Scope) -> int:
    """0 where the length is absent or not a number: then the bytes are counted as they come."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length[:18]) if length.isascii() and length.isdigit() else 0  # more digits are too large anyway
