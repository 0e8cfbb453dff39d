"""The server on a real socket: streams arrive as they are made, and a client that goes away frees its slot."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from ostinato.engine.types import StepPlan
from tests.server.harness import TIMEOUT, idle, live_server, text_service, until

pytestmark = pytest.mark.asyncio
BODIES = {
    "/v1/completions": {"prompt": "Hi", "max_tokens": 10**6, "temperature": 0},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10**6, "temperature": 0},
}


class Steps:
    """A `before_step` that lets the engine take only the steps that the test grants."""

    def __init__(self) -> None:
        self.granted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.asked = self.taken = 0

    def grant(self, count: int) -> None:
        for _ in range(count):
            self.granted.put(None)

    def __call__(self, plan: StepPlan) -> None:
        if not plan.chunks[0].sequence.id.startswith("warm-up"):
            self.asked += 1
            self.granted.get(timeout=TIMEOUT)
            self.taken += 1


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=TIMEOUT) as connected:
        yield connected


async def test_each_token_is_sent_in_the_step_that_made_it(client: httpx.AsyncClient) -> None:
    steps = Steps()
    service = text_service(before_step=steps, max_step_tokens=64)
    body = {"prompt": "Hi", "max_tokens": 5, "temperature": 0, "stream": True, "return_token_ids": True}
    with live_server(service) as url:
        steps.grant(1)
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["transfer-encoding"] == "chunked"
            seen = 0
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    break
                if line:
                    seen += len(json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"])
                    assert seen == steps.taken, "no step was granted before its predecessor's token had arrived"
                    steps.grant(1)
        assert seen == 5
        await idle(service)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_client_that_leaves_frees_its_slot_within_one_step(
    client: httpx.AsyncClient, path: str, stream: bool
) -> None:
    steps = Steps()
    service = text_service(before_step=steps, max_step_tokens=64)
    with live_server(service) as url:
        steps.grant(3)
        request = asyncio.ensure_future(client.post(url + path, json={**BODIES[path], "stream": stream}))
        await until(lambda: steps.asked == 4)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await until(lambda: not service._commands.empty(), "the abort in the engine's queue")
        steps.grant(1)
        await idle(service)
        assert steps.taken == 4
        text = (await client.get(f"{url}/metrics")).text
        assert f'ostinato_requests_total{{outcome="disconnected",route="{path}"}} 1.0' in text
        assert 'ostinato_sequences_total{reason="aborted"} 1.0' in text


async def test_a_client_that_leaves_while_it_waits_leaves_the_queue(client: httpx.AsyncClient) -> None:
    steps = Steps()
    service = text_service(before_step=steps, slots=1, max_step_tokens=64)
    with live_server(service) as url:
        first = asyncio.ensure_future(
            client.post(f"{url}/v1/completions", json={"prompt": "Hi", "max_tokens": 4, "temperature": 0})
        )
        await until(lambda: steps.asked == 1)
        second = asyncio.ensure_future(client.post(f"{url}/v1/completions", json=BODIES["/v1/completions"]))
        await until(lambda: service.stats().waiting == 1)
        second.cancel()
        await until(lambda: service._commands.qsize() == 2, "its arrival and its abort in the engine's queue")
        steps.grant(4)
        assert (await first).json()["usage"]["completion_tokens"] == 4
        await idle(service)
        assert service.stats().finished == {"length": 1, "aborted": 1}
        assert steps.taken == 4


async def test_a_client_that_does_not_read_does_not_hold_up_others(client: httpx.AsyncClient) -> None:
    service = text_service()
    with live_server(service) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps({"prompt": "Hi", "max_tokens": 20_000, "stream": True, "ignore_eos": True}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await reader.readexactly(1)
        other = await client.post(f"{url}/v1/completions", json={"prompt": "Hi", "max_tokens": 3, "ignore_eos": True})
        assert other.json()["usage"]["completion_tokens"] == 3
        writer.close()
        await idle(service)


async def test_a_body_that_never_comes_is_ended_with_the_connection(client: httpx.AsyncClient) -> None:
    service = text_service()
    with live_server(service) as url:
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        writer.write(b'content-length: 1000\r\n\r\n{"prompt"')
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        good = await client.post(f"{url}/v1/completions", json={"prompt": "Hi", "max_tokens": 1})
        assert good.status_code == 200


async def test_a_body_over_the_limit_is_answered_on_the_wire(client: httpx.AsyncClient) -> None:
    with live_server(text_service(), max_body_bytes=10_000) as url:
        response = await client.post(f"{url}/v1/completions", content=b" " * 10_001)
        assert response.status_code == 413
        assert (await client.get(f"{url}/health")).status_code == 200
