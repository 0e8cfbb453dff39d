"""The official `openai` client against the server on a real socket."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import psutil
import pytest
import pytest_asyncio

from ostinato.engine.service import Service
from tests.server.harness import TIMEOUT, idle, live_server, real_service

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENTS = 64
SEED = 20_240
WARM_ROUNDS, ROUNDS = 2, 3
MEMORY_BOUND = 8 * 2**20  # bytes; allocators keep some of what they once had


@pytest.fixture(scope="module")
def service() -> Service:
    return real_service(max_batch=16, max_queue=64)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with live_server(service) as address:
        yield address


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=TIMEOUT) as connected:
        yield connected


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "ostinato"


async def test_a_completion_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": "Hello", "max_tokens": 12, "temperature": 0, "logprobs": 2}
    whole = await client.completions.create(**options)
    stream = await client.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.tokens or []) == 12


async def test_a_chat_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Sing."}, {"role": "user", "content": "Hello"}],
        "max_completion_tokens": 12,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 1,
    }
    whole = await client.chat.completions.create(**options)
    chunks = [chunk async for chunk in await client.chat.completions.create(**options, stream=True)]
    message = whole.choices[0].message
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert chunks[0].choices[0].delta.role == message.role == "assistant"
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.content or []) == 12
    followed = [*options["messages"], message.model_dump(), {"role": "user", "content": "And?"}]
    again = await client.chat.completions.create(**{**options, "messages": followed})
    assert again.usage is not None
    assert whole.usage is not None
    assert again.usage.prompt_tokens > whole.usage.total_tokens


async def test_errors_arrive_as_the_clients_own(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await client.completions.create(model="tiny", prompt="Hi", temperature=-1)
    assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError) as missing:
        await client.completions.create(model="gpt-4", prompt="Hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as tools:
        await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Hi"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert tools.value.param == "tools"


def requests() -> list[dict[str, Any]]:
    """64 requests that differ in everything; each is greedy or seeded, so that it can be repeated."""
    draw = random.Random(SEED)
    return [
        {
            "model": "tiny",
            "prompt": "".join(draw.choices("abcdefgh ", k=draw.randint(1, 120))),
            "max_tokens": draw.randint(16, 40),
            "temperature": draw.choice([0.0, 0.7, 1.3]),
            "top_p": draw.choice([1.0, 0.9]),
            "seed": draw.randint(0, 10**6),
            "presence_penalty": draw.choice([0.0, 0.5]),
            "frequency_penalty": draw.choice([0.0, -0.3]),
            "logprobs": draw.choice([None, 0, 3]),
            "extra_body": {"top_k": draw.choice([0, 20]), "ignore_eos": True, "priority": draw.randint(0, 2)},
        }
        for _ in range(CLIENTS)
    ]


async def text_of(client: openai.AsyncOpenAI, request: dict[str, Any]) -> str:
    stream = await client.completions.create(**request, stream=True)
    return "".join([chunk.choices[0].text async for chunk in stream])


async def leave_after(client: openai.AsyncOpenAI, request: dict[str, Any], chunks: int) -> None:
    """Reads so many chunks, then closes the connection."""
    stream = await client.completions.create(**request, stream=True)
    async for _ in stream:
        chunks -= 1
        if not chunks:
            break
    await stream.close()


@pytest.fixture
def collected_here() -> Iterator[None]:
    """The server runs in this process. Were garbage collected in its thread, then the generators that a client has left
    behind would be closed there, while the event loop may be running them.
    """
    gc.disable()
    yield
    gc.enable()


async def one_round(client: openai.AsyncOpenAI) -> list[str]:
    """All requests at once; every second client leaves mid-stream. The texts of the others."""
    gc.collect()
    calls = [
        leave_after(client, {**request, "max_tokens": 10**6}, 1 + i % 7) if i % 2 else text_of(client, request)
        for i, request in enumerate(requests())
    ]
    return [text for text in await asyncio.gather(*calls) if text is not None]


async def meet_all_sizes(client: openai.AsyncOpenAI, service: Service) -> None:
    """oneDNN compiles code for every number of rows that they are padded to, and keeps it: that is no leak, so it comes
    first.

    Prompts of every such length, which is even, for the layers; every number of sequences for the output projection.
    """
    for length in range(2, 514, 2):
        await client.completions.create(model="tiny", prompt=[1] * length, max_tokens=1)
    for choices in range(1, service.info.slots + 1):
        await client.completions.create(model="tiny", prompt=[1], max_tokens=1, n=choices)


@pytest.mark.usefixtures("collected_here")
async def test_64_clients_of_which_half_leave(client: openai.AsyncOpenAI, service: Service) -> None:
    alone = [await text_of(client, request) for request in requests()[::2]]
    await meet_all_sizes(client, service)
    for _ in range(WARM_ROUNDS):
        assert await one_round(client) == alone, f"seed {SEED}"
    before = await memory_at_rest(service)
    for _ in range(ROUNDS):
        assert await one_round(client) == alone, f"seed {SEED}"
    grown = await memory_at_rest(service) - before
    assert grown < MEMORY_BOUND, f"{grown} bytes more than before"
    assert service.stats().finished["aborted"] == (WARM_ROUNDS + ROUNDS) * CLIENTS // 2
    assert not service._streams, "streams are forgotten"


async def memory_at_rest(service: Service) -> int:
    """Bytes of this process, once no request is left."""
    await idle(service)
    gc.collect()
    return int(psutil.Process().memory_info().rss)
