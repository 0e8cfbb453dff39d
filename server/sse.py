"""Server-sent events, and ending work when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ostinato.engine.errors import OstinatoError
from ostinato.server.errors import ClientDisconnectedError, describe, note_outcome

logger = logging.getLogger(__name__)

T = TypeVar("T")

STREAM_HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}  # proxies must not hold back


class SseResponse(Response):
    """Sends each value of an async generator as one event, then `last_frame`.

    The first value is awaited before the status line is sent, so an error until then is an HTTP status like any other.
    A later one is an event with an `error`, and the stream ends. A disconnect closes the generator at once.
    """

    media_type = "text/event-stream"
    last_frame = b"data: [DONE]\n\n"

    def __init__(self, chunks: AsyncGenerator[BaseModel, None]) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self.chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_disconnect(receive, self._send_all(scope, send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async with aclosing(self.chunks):
            first = await anext(self.chunks, None)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._frames(first, scope)) as frames:
                async for frame in frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _frames(self, first: BaseModel | None, scope: Scope) -> AsyncGenerator[bytes, None]:
        try:
            if first is not None:
                yield self.frame(first)
            async for chunk in self.chunks:
                yield self.frame(chunk)
            if self.last_frame:
                yield self.last_frame
        except Exception as error:
            if not isinstance(error, OstinatoError):
                logger.exception("a stream ended early")
            scope["state"]["outcome"] = "error"
            note_outcome(scope, error)
            yield self.error_frame(error)

    def frame(self, chunk: BaseModel) -> bytes:
        return f"data: {chunk.model_dump_json()}\n\n".encode()

    def error_frame(self, error: Exception) -> bytes:
        return f"data: {json.dumps(describe(error))}\n\n".encode()


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. The body must have been read before.

    Raises:
        ClientDisconnectedError: the client went away first.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnectedError
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
