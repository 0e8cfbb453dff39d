"""Clients of every kind: patient ones, ones that leave, ones that ask nonsense, ones that hardly read.

A client knows how its own request must end. What ends otherwise goes into `Crowd.wrong`, in words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

WORDS = "the king said and in of a to that unto his shall with lord for thou my is be not he it her they".split()
BUSY = 429
SECONDS_TO_END = 120.0  # an accepted request that takes longer counts as never ended
SLOW_BYTES, SLOW_SECONDS = 64, 0.05

Behaviour = Callable[["Crowd", random.Random], Awaitable[str]]

BAD_REQUESTS: tuple[tuple[str, str, bytes], ...] = (
    ("POST", "/v1/completions", b"{"),
    ("POST", "/v1/completions", b"[]"),
    ("POST", "/v1/completions", b'{"prompt": 5}'),
    ("POST", "/v1/completions", b'{"prompt": "x", "max_tokens": -1}'),
    ("POST", "/v1/completions", b'{"prompt": "x", "temperature": "hot"}'),
    ("POST", "/v1/completions", b'{"prompt": "x", "n": 1000000}'),
    ("POST", "/v1/completions", b'{"prompt": "x", "no_such_field": 1}'),
    ("POST", "/v1/completions", b'{"prompt": "x", "model": "no such model"}'),
    ("POST", "/v1/completions", b'{"prompt": [1, 2, 1000000000]}'),
    ("POST", "/v1/completions", b'{"prompt": "x", "state": "st_' + b"0" * 64 + b'"}'),
    ("POST", "/v1/completions", b'{"prompt": "' + b"\xff" * 40 + b'"}'),
    ("POST", "/v1/chat/completions", b'{"messages": [{"role": "stranger", "content": "x"}]}'),
    ("POST", "/v1/chat/completions", b'{"messages": "x"}'),
    ("POST", "/v1/states", b'{"prompt": "x", "messages": []}'),
    ("POST", "/v1/states/st_nothing/fork", b'{"n": 2}'),
    ("DELETE", "/v1/states/st_" + "0" * 64, b""),
    ("GET", "/v1/no/such/route", b""),
    ("PUT", "/v1/completions", b"{}"),
    ("POST", "/v1/completions", b" " * (9 * 2**20)),
)


class WrongEndError(Exception):
    """A request ended in a way that no request of its kind may end."""


class Crowd:
    """tally: what was done and how it ended, `behaviour: outcome`. wrong: what must not have happened."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.address = (host, int(port))
        self.client = client
        self.tally: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def send_one(self, draw: random.Random) -> None:
        """One client of a kind that is drawn, from its request to its end."""
        (behaviour,) = draw.choices(list(SHARES), weights=list(SHARES.values()))
        name = behaviour.__name__
        try:
            self.tally[f"{name}: {await asyncio.wait_for(behaviour(self, draw), SECONDS_TO_END)}"] += 1
        except TimeoutError:
            self.wrong.append(f"{name}: not ended after {SECONDS_TO_END:.0f} s")
        except (WrongEndError, httpx.HTTPError, OSError) as error:
            self.wrong.append(f"{name}: {type(error).__name__}: {error}")

    async def ask(self, path: str, body: dict[str, Any]) -> Any | None:
        """The JSON of an answer; None if the server had no room."""
        return _accepted(await self.client.post(path, json=body))

    @contextlib.asynccontextmanager
    async def streaming(self, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[str] | None]:
        """The lines of a stream; None if the server had no room."""
        async with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                await response.aread()
                _accepted(response)
                yield None
            else:
                yield (line async for line in response.aiter_lines() if line)


def _accepted(response: httpx.Response) -> Any | None:
    if response.status_code == BUSY:
        return None
    if response.status_code not in (200, 201):
        raise WrongEndError(f"{response.request.method} {response.request.url.path} is a {_told(response)}")
    return response.json()


def _told(response: httpx.Response) -> str:
    return f"{response.status_code}: {response.text[:300]}"


def text(draw: random.Random, most: int = 120) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


def completion(draw: random.Random, most: int = 48) -> dict[str, Any]:
    return {"prompt": text(draw), "max_tokens": draw.randint(1, most), "seed": draw.randrange(2**31)}


def chat(draw: random.Random) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text(draw)}], "max_tokens": draw.randint(1, 48)}


def check_end(last: str) -> None:
    if last != "data: [DONE]":
        raise WrongEndError(f"the stream ended with {last[:300]!r}")


async def reads_stream(crowd: Crowd, draw: random.Random) -> str:
    path, body = draw.choice([("/v1/completions", completion(draw)), ("/v1/chat/completions", chat(draw))])
    async with crowd.streaming(path, body) as lines:
        if lines is None:
            return "busy"
        last = ""
        async for line in lines:
            if line.startswith('data: {"error"'):
                raise WrongEndError(line)
            last = line
        check_end(last)
    return "ended"


async def reads_whole(crowd: Crowd, draw: random.Random) -> str:
    answer = await crowd.ask("/v1/completions", {**completion(draw), "n": draw.randint(1, 3)})
    if answer is None:
        return "busy"
    if not all(choice["finish_reason"] in ("stop", "length") for choice in answer["choices"]):
        raise WrongEndError(json.dumps(answer)[:300])
    return "ended"


async def leaves_a_stream(crowd: Crowd, draw: random.Random) -> str:
    left = draw.randint(1, 20)
    async with crowd.streaming("/v1/completions", completion(draw, 400)) as lines:
        if lines is None:
            return "busy"
        async for _ in lines:
            left -= 1
            if not left:
                break
    return "left"


async def leaves_before_the_answer(crowd: Crowd, draw: random.Random) -> str:
    waits = draw.uniform(0.0, 0.1)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(crowd.ask("/v1/completions", completion(draw, 400)), waits)
    return "left"


async def asks_nonsense(crowd: Crowd, draw: random.Random) -> str:
    method, path, content = draw.choice(BAD_REQUESTS)
    response = await crowd.client.request(method, path, content=content, headers={"content-type": "application/json"})
    if not 400 <= response.status_code < 500:
        raise WrongEndError(f"{method} {path} {content[:60]!r} is a {_told(response)}")
    return str(response.status_code)


def _head(length: int) -> bytes:
    fields = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close"
    return f"POST /v1/completions HTTP/1.1\r\n{fields}\r\n\r\n".encode()


@contextlib.asynccontextmanager
async def _raw(crowd: Crowd) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection with as little room for what is not read as the system allows."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, crowd.address)
    reader, writer = await asyncio.open_connection(sock=connection, limit=SLOW_BYTES)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def sends_half_a_body(crowd: Crowd, draw: random.Random) -> str:
    async with _raw(crowd) as (_, writer):
        writer.write(_head(1000) + b'{"prompt": "never')
        await writer.drain()
        await asyncio.sleep(draw.uniform(0.0, 2.0))
    return "left"


async def hardly_reads(crowd: Crowd, draw: random.Random) -> str:
    """A few bytes at a time for a while; then it leaves, or reads the rest and must find an end there."""
    patience, leaves = draw.randint(1, 60), draw.random() < 0.5
    body = json.dumps({**completion(draw, 300), "ignore_eos": True, "stream": True}).encode()
    async with _raw(crowd) as (reader, writer):
        writer.write(_head(len(body)) + body)
        end = await reader.read(SLOW_BYTES)
        if end.startswith(b"HTTP/1.1 429"):
            return "busy"
        if not end.startswith(b"HTTP/1.1 200"):
            raise WrongEndError(f"it begins with {end!r}")
        while received := await reader.read(SLOW_BYTES):
            end = (end + received)[-SLOW_BYTES:]
            patience -= 1
            await asyncio.sleep(SLOW_SECONDS if patience > 0 else 0)
            if patience == 0 and leaves:
                return "left"
        if b"data: [DONE]" not in end or not end.endswith(b"0\r\n\r\n"):
            raise WrongEndError(f"it ends with {end!r}")
    return "ended"


async def keeps_states(crowd: Crowd, draw: random.Random) -> str:
    """Stores a state, forks it, goes on from the forks and back in one of them, and deletes them all."""
    stored = await crowd.ask("/v1/completions", {**completion(draw), "store": {"ttl": 600}})
    if stored is None:
        return "busy"
    root = stored["state"]["id"]
    kept = [root]
    forks = await crowd.ask(f"/v1/states/{root}/fork", {"n": 2})
    assert forks is not None
    kept += [fork["id"] for fork in forks["data"]]
    for state in kept[1:]:
        body = {**completion(draw), "state": state, "store": {"ttl": 600}}
        async with crowd.streaming("/v1/completions", body) as lines:
            found = [line async for line in lines] if lines is not None else []
        kept += [line.split('"state":{"id":"')[1].split('"')[0] for line in found if '"state":{"id":"' in line]
    rewound = await crowd.ask(f"/v1/states/{kept[-1]}/rewind", {"back": 1})
    kept += [] if rewound is None else [rewound["id"]]
    for state in dict.fromkeys(kept):
        _accepted(await crowd.client.delete(f"/v1/states/{state}"))
    return "deleted"


SHARES: dict[Behaviour, int] = {
    reads_stream: 44,
    reads_whole: 12,
    leaves_a_stream: 10,
    leaves_before_the_answer: 6,
    asks_nonsense: 10,
    sends_half_a_body: 3,
    hardly_reads: 5,
    keeps_states: 10,
}
