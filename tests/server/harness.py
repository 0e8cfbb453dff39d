"""What the server's tests share: services around real tiny models or scripted ones, and clients for them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from ostinato.engine.config import EngineConfig
from ostinato.engine.loading import load_service
from ostinato.engine.service import Service
from ostinato.engine.text.tokenizer import Tokenizer, find_tokenizer
from ostinato.engine.types import StepPlan
from ostinato.server.app import create_app
from ostinato.server.serve import DrainingServer, open_socket, url_of
from ostinato.server.settings import ServerSettings
from tests.fakes import ScriptedRunner, next_token, scripted_service

GOLDENS = Path(__file__).parent.parent / "goldens"
GLA = GOLDENS / "gla"
NO_TOKENIZER = GOLDENS / "mamba_orig"
TIMEOUT = 30.0


def settings(**changes: Any) -> ServerSettings:
    return ServerSettings(**{"engine": EngineConfig("unused"), "served_model_name": "tiny", **changes})


def real_service(folder: Path = GLA, **config: Any) -> Service:
    """A tiny checkpoint behind the engine as users run it."""
    return load_service(EngineConfig(str(folder), **{"max_batch": 4, "max_queue": 8, "prefix_cache": 0, **config}))


def gla_tokenizer() -> Tokenizer:
    tokenizer = find_tokenizer(GLA)
    assert tokenizer is not None
    return tokenizer


def text_service(
    script: Callable[[list[int]], int] = next_token,
    before_step: Callable[[StepPlan], None] | None = None,
    **sizes: int,
) -> Service:
    """A scripted model with the tokenizer of the GLA checkpoint."""
    tokenizer = gla_tokenizer()
    runner = ScriptedRunner(script, before_step, vocabulary=tokenizer.vocab_size)
    return scripted_service(runner, tokenizer, vocabulary=tokenizer.vocab_size, **sizes)


def recites(text: str, *, after: int) -> Callable[[list[int]], int]:
    """A script that answers prompts of `after` tokens with `text`, over and over."""
    ids = gla_tokenizer().encode(text, add_special_tokens=False)
    return lambda history: ids[(len(history) - after) % len(ids)]


@asynccontextmanager
async def serving(service: Service, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the application directly, without sockets."""
    app = create_app(service, settings(**changes))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://ostinato", timeout=TIMEOUT) as client,
    ):
        await until(lambda: service.ready)
        yield client


@contextmanager
def live_server(service: Service, **changes: Any) -> Iterator[str]:
    """The server as `ostinato serve` runs it, in a thread; gives its URL."""
    listener = open_socket("127.0.0.1", 0)
    ready = threading.Event()
    server = DrainingServer(service, settings(log_level="warning", drain_seconds=0.0, **changes), ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert ready.wait(TIMEOUT), "the server did not become ready"
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "the server did not end"


async def until(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Waits for something that another thread or task does."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {TIMEOUT} s"
        await asyncio.sleep(0.005)


async def idle(service: Service) -> None:
    """Waits until no request holds or waits for a slot."""
    await until(lambda: is_idle(service), f"idle: {service.stats()}")


def is_idle(service: Service) -> bool:
    stats = service.stats()
    return stats.slots_used == stats.running == stats.waiting == 0


async def events(client: httpx.AsyncClient, path: str, **body: Any) -> list[Any]:
    """The events of a stream, decoded; `[DONE]` as it is."""
    async with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        lines = [line async for line in response.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines), lines
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object, which has exactly the four keys of the OpenAI API."""
    body = response.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    error: dict[str, Any] = body["error"]
    assert isinstance(error["message"], str), error
    assert error["message"], "an error without a message"
    return error
