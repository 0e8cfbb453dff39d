"""Connections as uvicorn serves them, with bounds: how many, how large their headers, how long they keep it waiting.

uvicorn itself waits for the first request of a connection for ever, and answers what is not HTTP in plain text.
"""

from __future__ import annotations

import asyncio
import json
import sys

import h11
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from ostinato.server.errors import BY_STATUS, INVALID, SERVER, Answer, error_body

REFUSED_POLITELY = 100  # connections beyond the bound that still get an answer; those beyond are closed at once
TOO_MANY = error_body("The server has as many connections as it takes.", Answer(503, SERVER, "too_many_connections"))
NOT_HTTP = Answer(400, INVALID, "invalid_http")
LINGER_SECONDS = 2.0  # for one that sends on after the answer that ends its connection
LINGER = object()


class GuardedProtocol(H11Protocol):
    """One connection. `max_connections`, `header_seconds` and `body_seconds` are those of `ServerSettings`."""

    max_connections: int
    header_seconds: float
    body_seconds: float

    _deadline: asyncio.TimerHandle | None = None
    _waits_for: object = None  # the deadline is for this part of a request, or LINGER

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        excess = len(self.connections) - self.max_connections
        if excess > REFUSED_POLITELY:
            transport.abort()
            return
        if excess > 0:
            self.app = _refuse
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_watch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._waits_for is LINGER:
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:  # of a next request that was sent already; else the connection is idle
            self._watch()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn while it handles h11's error, which knows the better status."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # an answer has begun: there is no place for another
            return
        answer = BY_STATUS.get(status, NOT_HTTP) if status != 400 else NOT_HTTP
        body = json.dumps(error_body(msg, answer)).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=answer.status, headers=headers, reason=STATUS_PHRASES[answer.status]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._close_for_one_who_sends_on()

    def _close_for_one_who_sends_on(self) -> None:
        """Our half first: a socket that is closed with bytes unread is reset, and the answer may never be seen.

        As RFC 9112, section 9.6 has it: read until the other side closes too, but not for ever.
        """
        if not self.transport.can_write_eof():  # TLS ends both halves at once
            self.transport.close()
            return
        self.transport.write_eof()
        self._set_deadline(LINGER, LINGER_SECONDS)

    def _watch(self) -> None:
        """Headers have one deadline for all of them; a body a new one with each piece."""
        if self._waits_for is LINGER:
            return
        state = self.conn.their_state
        if state is h11.IDLE and self._waits_for is not h11.IDLE:
            self._set_deadline(state, self.header_seconds)
        elif state is h11.SEND_BODY:
            self._set_deadline(state, self.body_seconds)
        elif state is not h11.IDLE:
            self._end_watch()

    def _set_deadline(self, waits_for: object, seconds: float) -> None:
        self._end_watch()
        self._waits_for = waits_for
        self._deadline = self.loop.call_later(seconds, self._on_deadline)

    def _end_watch(self) -> None:
        self._waits_for = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        if self._waits_for is h11.SEND_BODY and self.flow.read_paused:
            self._set_deadline(h11.SEND_BODY, self.body_seconds)  # it is the server that does not read
            return
        self._end_watch()
        self.transport.close()


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of a connection too many."""
    headers = {"connection": "close", "retry-after": "1"}
    await JSONResponse(TOO_MANY, 503, headers=headers)(scope, receive, send)


def guarded_protocol(max_connections: int, header_seconds: float, body_seconds: float) -> type[H11Protocol]:
    """The protocol with these bounds, as a class: uvicorn makes one for every connection."""
    bounds = {"max_connections": max_connections, "header_seconds": header_seconds, "body_seconds": body_seconds}
    return type("BoundedProtocol", (GuardedProtocol,), bounds)
