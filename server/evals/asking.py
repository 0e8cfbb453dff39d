"""Asking a model by HTTP: a running server, or one without a socket in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from ostinato.server.evals.errors import AskError

if TYPE_CHECKING:
    from ostinato.engine.config import EngineConfig
    from ostinato.engine.service import Service

LONGEST_ANSWER_SECONDS = 600.0  # behind a queue of others, on a slow machine
TRIES = 10  # while the server says that its queue is full
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Tokens of the prompt count every reading; `cached_tokens` of them came from a state."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Server:
    """A server that answers completion requests. `client` has its base URL, which ends in `/v1`."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self.model = model
        self._client = client

    async def ask(self, fields: Mapping[str, object], max_tokens: int, *, cache: bool) -> Answer:
        """The rest of the line that follows the prompt, by greedy decoding.

        cache: whether states of the prefix cache may be used, and kept. Raises AskError.
        """
        body = {
            **fields,
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stop": "\n",
            "cache_prompt": cache,
        }
        reply = await self._post(body)
        try:
            usage = reply["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            return Answer(reply["choices"][0]["text"], usage["prompt_tokens"], cached, usage["completion_tokens"])
        except (KeyError, IndexError, TypeError) as error:
            raise AskError(f"{self._client.base_url} does not answer as an Ostinato server does: {reply}") from error

    async def _post(self, body: Mapping[str, object]) -> Any:  # JSON
        for _ in range(TRIES):
            response = await _send(self._client, "POST", "completions", json=body)
            if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                return _checked(response)
            await asyncio.sleep(float(response.headers.get("retry-after", 1)))
        raise AskError(f"{self._client.base_url} has been busy {TRIES} times: lower --concurrency")


async def _send(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> httpx.Response:
    try:
        return await client.request(method, path, **options)
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise AskError(f"{client.base_url} cannot be asked: {reason}") from error


def _checked(response: httpx.Response) -> Any:  # JSON
    """Raises AskError: what the server says is wrong."""
    try:
        reply = response.json()
    except ValueError:
        raise AskError(f"{response.url} answers {response.status_code} without JSON") from None
    if not response.is_success:
        error = reply.get("error") if isinstance(reply, dict) else None
        raise AskError(f"{response.url} answers {response.status_code}: {error.get('message') if error else reply}")
    return reply


@asynccontextmanager
async def running_server(url: str, model: str | None, api_key: str | None) -> AsyncIterator[Server]:
    """The server at `url`, which ends in `/v1`. Without a name of a model, the one that it serves. Raises AskError."""
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    try:
        client = httpx.AsyncClient(base_url=url, headers=headers, timeout=LONGEST_ANSWER_SECONDS)
    except (httpx.InvalidURL, UnicodeEncodeError) as error:
        raise AskError(f"{url!r} is no URL, or the key is no header: {error}") from error
    async with client:
        if model is None:
            served = _checked(await _send(client, "GET", "models"))
            model = served["data"][0]["id"]
        yield Server(client, model)


@asynccontextmanager
async def own_server(service: Service, engine: EngineConfig, name: str) -> AsyncIterator[Server]:
    """A server in this process, around a loaded model. Nothing listens."""
    from ostinato.server.app import create_app
    from ostinato.server.settings import ServerSettings

    app = create_app(service, ServerSettings(engine=engine, served_model_name=name))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://ostinato/v1", timeout=None) as client,
    ):
        while not service.ready:
            await asyncio.sleep(POLL_SECONDS)
        yield Server(client, name)
