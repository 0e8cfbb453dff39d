"""Requests: bodies, uploads, URLs and headers, sent to the whole application as a server would hand them over."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote_from_bytes, unquote

from starlette.types import Message, Scope

from ostinato.server.app import create_app
from tests.fuzz.request_samples import BODIES, HEADERS, STATE, URLS
from tests.fuzz.samples import Sample, place
from tests.fuzz.state_files import file_samples
from tests.server.harness import real_service, settings

PATIENCE = 1.0  # seconds, after which the client goes away: a request may ask for a very long answer
STARTED = 60.0


class Application:
    """The application on an event loop of its own, with one stored state."""

    def __init__(self) -> None:
        self.state = ""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()  # for as long as the process runs
        self._app = create_app(
            real_service(max_queue=64, prefix_cache=1 << 20), settings(state_store=(str(place("requests")),))
        )
        self._wait(self._start())

    def send(self, method: str, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
        """Status and body. (0, b"") where the client lost its patience."""
        return self._wait(self._send(method, target, headers, body))

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        body = json.dumps({"prompt": "Once upon a time"}).encode()
        async with asyncio.timeout(STARTED):
            status, reply = await self._send("POST", b"/v1/states", [(b"content-type", b"application/json")], body)
        assert status == 201, reply
        self.state = json.loads(reply)["id"]

    async def _send(
        self, method: str, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> tuple[int, bytes]:
        path, _, query = target.partition(b"?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "headers": headers,
            "server": ("ostinato", 80),
            "client": ("client", 1),
        }
        exchange = _Exchange(body)
        task = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        await asyncio.wait({task}, timeout=PATIENCE if self.state else STARTED)
        exchange.gone.set()
        await task
        return exchange.status, bytes(exchange.body)


class _Exchange:
    """The two callables of ASGI for one request."""

    def __init__(self, body: bytes) -> None:
        self.gone = asyncio.Event()
        self.status = 0
        self.body = bytearray()
        self._left = [body]

    async def receive(self) -> Message:
        if self._left:
            return {"type": "http.request", "body": self._left.pop(), "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")


@functools.cache
def application() -> Application:
    return Application()


def bodies() -> Sequence[Sample]:
    return [Sample(f"body {request}", _with_state(json.dumps(body))) for request, body in BODIES]


def uploads() -> Sequence[Sample]:
    return [Sample(f"file PUT /v1/states/{STATE}/content", sample.data) for sample in file_samples()]


def urls() -> Sequence[Sample]:
    return [Sample("url", _with_state(url)) for url in URLS]


def headers() -> Sequence[Sample]:
    return [Sample(f"headers {request}", text.encode()) for request, text in HEADERS]


def send(sample: Sample) -> None:
    """No answer is a server error, and every refusal has the shape of an error."""
    method, target, given, body = _request(sample)
    status, reply = application().send(method, target, given, body)
    assert status < 500, (status, reply[:2000])
    if status >= 400 and method != "HEAD":
        error = json.loads(reply)["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
    assert b'"internal_error"' not in reply, reply[:2000]  # of a stream that had begun


def _request(sample: Sample) -> tuple[str, bytes, list[tuple[bytes, bytes]], bytes]:
    """Method, target, headers and body. The sample is one of them; `of` tells which, and the others."""
    if sample.of == "url":
        method, _, target = sample.data.partition(b" ")
        return method.decode("latin-1"), _quoted(target), [], b""
    kind, method, path = sample.of.split(" ")
    if kind == "headers":
        return method, _with_state(path), _header_lines(sample.data), b""
    if kind == "file":
        digest = hashlib.sha256(sample.data).hexdigest()
        return method, path.replace(STATE, f"st_{digest}").encode(), [], sample.data
    return method, _with_state(path), [(b"content-type", b"application/json")], sample.data


def _header_lines(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names in small letters, as the standard of ASGI has them; servers let no control characters through."""
    lines = (line.partition(b":") for line in data.split(b"\n"))
    return [(name.strip().lower(), value.strip()) for name, _, value in lines if name.strip()]


def _quoted(target: bytes) -> bytes:
    """A target as a server lets it through: ASCII, and it begins with a slash."""
    return b"/" + quote_from_bytes(target.lstrip(b"/"), safe='/?&=%[]{}":,+').encode()


def _with_state(text: str) -> bytes:
    return text.replace(STATE, application().state).encode()
