"""One request of `ostinato bench serve`: sent to any server with OpenAI's API, streamed, and timed as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from ostinato.engine.errors import OstinatoError

MOST_SHOWN = 200  # characters of a server's complaint


class BenchError(OstinatoError):
    """The server cannot be measured: it is not there, or it refuses the first request."""


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked, and how. url: of the API, `http://host:8000/v1`; extra: more fields of every body.

    usage: whether the server is asked for its own counts of tokens.
    """

    url: str
    model: str
    chat: bool = False
    usage: bool = True
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def route(self) -> str:
        return self.url + ("/chat/completions" if self.chat else "/completions")

    def body(self, prompt: str, new_tokens: int) -> dict[str, object]:
        body: dict[str, object] = {"model": self.model, "max_tokens": new_tokens, "stream": True}
        if self.chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.usage:
            body["stream_options"] = {"include_usage": True}
        return {**body, **self.extra}


def api_url(url: str) -> str:
    """The API's address: with `/v1` where the URL has no path. Raises ValueError: not an http URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is no URL: write for example http://127.0.0.1:8000")
    return url.rstrip("/") if parsed.path.strip("/") else url.rstrip("/") + "/v1"


@dataclass(slots=True)
class Exchange:
    """One request and what became of it. Times are in seconds by the loop's clock; None: it did not come to that.

    due: when it should have been sent; chunks: when each chunk with text came; usage: (prompt, generated) tokens as the
    server counts them; error: the kind, None if the answer came to its end; complaint: the same in words.
    """

    due: float
    words: int
    sent: float = 0.0
    chunks: list[float] = field(default_factory=list)
    ended: float = 0.0
    usage: tuple[int, int] | None = None
    finished: bool = False
    error: str | None = None
    complaint: str = ""

    @property
    def prompt_tokens(self) -> int:
        """Where the server does not say, the prompt's words."""
        return self.usage[0] if self.usage else self.words

    @property
    def new_tokens(self) -> int:
        """Where the server does not say, the chunks that had text."""
        return self.usage[1] if self.usage else len(self.chunks)


class StreamError(Exception):
    """A stream that does not say what it should. kind: as in `Exchange.error`."""

    def __init__(self, kind: str, complaint: str) -> None:
        super().__init__(complaint)
        self.kind = kind


async def exchange(client: httpx.AsyncClient, target: Target, prompt: str, new_tokens: int, due: float) -> Exchange:
    """Sends one request and reads its answer to the end. Never raises for what a server or a network does."""
    clock = asyncio.get_running_loop().time
    told = Exchange(due, words=prompt.count(" ") + 1, sent=clock())
    try:
        await _converse(client, target, target.body(prompt, new_tokens), told)
    except StreamError as error:
        told.error, told.complaint = error.kind, str(error)
    except httpx.TimeoutException as error:
        told.error, told.complaint = "timeout", str(error) or type(error).__name__
    except httpx.ConnectError as error:
        told.error, told.complaint = "not_connected", str(error)
    except httpx.RequestError as error:
        told.error, told.complaint = "cut_off", str(error) or type(error).__name__
    told.ended = clock()
    return told


async def _converse(client: httpx.AsyncClient, target: Target, body: dict[str, object], told: Exchange) -> None:
    """Fills in what comes. Raises StreamError, and httpx.RequestError where the connection fails."""
    clock = asyncio.get_running_loop().time
    async with client.stream("POST", target.route, json=body) as response:
        if response.status_code != 200:
            raise StreamError(f"http_{response.status_code}", _complaint(await response.aread()))
        async for event in _events(response):
            _take(event, clock(), told)
    if not told.finished:
        raise StreamError("cut_off", "the stream ended before the answer did")


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream, up to `[DONE]`. What follows that is read, too: the connection can be used again.

    Raises:
        StreamError: not JSON, not an object, or an error.
    """
    over = False
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        over = over or data == "[DONE]"
        if over or not line.startswith("data:"):
            continue
        try:
            event = json.loads(data)
        except ValueError:
            raise StreamError("not_understood", f"not JSON: {data[:MOST_SHOWN]}") from None
        if not isinstance(event, dict):
            raise StreamError("not_understood", f"not an object: {data[:MOST_SHOWN]}")
        if event.get("error"):
            raise StreamError("error_in_stream", _complaint(data.encode()))
        yield event


def _take(event: dict[str, Any], now: float, told: Exchange) -> None:
    """Raises StreamError: not the shape of the API."""
    try:
        for choice in event.get("choices") or ():
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            if text:
                told.chunks.append(now)
            told.finished = told.finished or choice.get("finish_reason") is not None
        if usage := event.get("usage"):
            told.usage = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise StreamError("not_understood", f"an event of another shape: {json.dumps(event)[:MOST_SHOWN]}") from None


def _complaint(content: bytes) -> str:
    """What a server says is wrong: the error's message where it has OpenAI's shape, else the beginning of the text."""
    text = content.decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:MOST_SHOWN]
