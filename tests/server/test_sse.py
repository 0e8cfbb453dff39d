from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from ostinato.engine.types import StepPlan
from ostinato.server.errors import ClientDisconnectedError
from ostinato.server.sse import SseResponse, until_disconnect
from tests.server.harness import error_of, idle, serving, text_service

pytestmark = pytest.mark.asyncio
PATH = "/v1/completions"


class Number(BaseModel):
    value: int


class Client:
    """The other end of an ASGI connection: keeps what is sent, and goes away when told to."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Numbers:
    """Counts up; remembers whether it was closed."""

    def __init__(self, count: int, then: Callable[[], Any] | None = None) -> None:
        self.closed = False
        self.count = count
        self.then = then

    async def chunks(self) -> AsyncGenerator[Number, None]:
        try:
            for value in range(self.count):
                yield Number(value=value)
            if self.then is not None:
                await self.then()
        finally:
            self.closed = True


async def fail() -> None:
    raise ZeroDivisionError("secret")


async def answer(client: Client, numbers: Numbers) -> None:
    scope = {"type": "http", "state": {"outcome": None}}
    await SseResponse(numbers.chunks())(scope, client.receive, client.send)


async def test_every_value_is_an_event_and_done_is_the_last() -> None:
    client = Client()
    await answer(client, Numbers(2))
    assert client.sent[0]["status"] == 200
    headers = dict(client.sent[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"].startswith(b"no-cache")
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers
    assert client.body == b'data: {"value":0}\n\ndata: {"value":1}\n\ndata: [DONE]\n\n'
    assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_an_error_before_the_first_value_sends_nothing() -> None:
    client, numbers = Client(), Numbers(0, fail)
    with pytest.raises(ZeroDivisionError):
        await answer(client, numbers)
    assert client.sent == []
    assert numbers.closed


async def test_a_later_error_is_the_last_event_and_keeps_its_secrets(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    await answer(client, Numbers(1, fail))
    first, last = client.body.decode().strip().split("\n\n")
    assert first == 'data: {"value":0}'
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert "secret" not in last
    assert "secret" in caplog.text


@pytest.mark.parametrize("values", [0, 3], ids=["before-the-first", "in-the-middle"])
async def test_a_disconnect_closes_the_generator(values: int) -> None:
    client, numbers = Client(), Numbers(values, asyncio.Event().wait)
    running = asyncio.ensure_future(answer(client, numbers))
    while len(client.sent) < values + bool(values):
        await asyncio.sleep(0)
    client.gone.set()
    with pytest.raises(ClientDisconnectedError):
        await running
    assert numbers.closed


async def test_work_that_ends_first_gives_its_result_and_stops_watching() -> None:
    client = Client()

    async def work() -> int:
        return 7

    before = asyncio.all_tasks()
    assert await until_disconnect(client.receive, work()) == 7
    assert asyncio.all_tasks() == before


async def test_cancelling_from_outside_cancels_the_work() -> None:
    client, started, ended = Client(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.ensure_future(until_disconnect(client.receive, work()))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


def failing_after(steps: int) -> Callable[[StepPlan], None]:
    """A `before_step` that raises in the step after so many, once."""
    count = 0

    def before_step(plan: StepPlan) -> None:
        nonlocal count
        if not plan.chunks[0].sequence.id.startswith("warm-up"):
            count += 1
            if count == steps + 1:
                raise RuntimeError("boom")

    return before_step


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_failing_first_step_is_a_500_for_its_request_only(stream: bool) -> None:
    service = text_service(before_step=failing_after(0))
    async with serving(service) as client:
        failed = await client.post(PATH, json={"prompt": "Hi", "stream": stream})
        assert failed.status_code == 500
        assert error_of(failed) == {
            "message": "engine step failed: boom",
            "type": "server_error",
            "param": None,
            "code": "step_failed",
        }
        good = await client.post(PATH, json={"prompt": "Hi", "max_tokens": 2, "ignore_eos": True})
        assert good.json()["usage"]["completion_tokens"] == 2
        await idle(service)


@pytest.mark.parametrize("path", [PATH, "/v1/chat/completions"])
async def test_a_failing_later_step_is_an_event_and_ends_the_stream(path: str) -> None:
    service = text_service(before_step=failing_after(3), max_step_tokens=64)
    async with serving(service) as client:
        body = {"prompt": "Hi"} if path == PATH else {"messages": [{"role": "user", "content": "Hi"}]}
        async with client.stream(
            "POST", path, json={**body, "stream": True, "max_tokens": 9, "temperature": 0}
        ) as response:
            assert response.status_code == 200
            lines = [line async for line in response.aiter_lines() if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "step_failed"
        assert "data: [DONE]" not in lines
        await idle(service)
        text = (await client.get("/metrics")).text
    assert f'ostinato_requests_total{{outcome="error",route="{path}"}} 1.0' in text


async def test_a_full_queue_is_a_429_that_says_when_to_come_back() -> None:
    held = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(plan: StepPlan) -> None:
        if not plan.chunks[0].sequence.id.startswith("warm-up"):
            asyncio.run_coroutine_threadsafe(held.wait(), loop).result(30)

    service = text_service(before_step=hold, slots=1, max_queue=1)
    async with serving(service) as client:
        body = {"prompt": "Hi", "max_tokens": 1}
        accepted = [asyncio.ensure_future(client.post(PATH, json=body)) for _ in range(2)]
        while service.stats().running + service.stats().waiting < 2:
            await asyncio.sleep(0.005)
        for stream in (False, True):
            refused: httpx.Response = await client.post(PATH, json={**body, "stream": stream})
            assert refused.status_code == 429
            assert error_of(refused)["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
        held.set()
        assert [response.status_code for response in await asyncio.gather(*accepted)] == [200, 200]
        await idle(service)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_what_a_drain_aborts_is_told_so(stream: bool) -> None:
    service = text_service(before_step=lambda plan: None)
    async with serving(service) as client:
        body = {"prompt": "Hi", "max_tokens": 10**6, "temperature": 0, "stream": stream}
        running = asyncio.ensure_future(client.post(PATH, json=body))
        while service.stats().generated_tokens_total < 3:
            await asyncio.sleep(0.005)
        assert not await service.drain(0)
        response = await running
    if stream:
        last = response.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_stopped"
    else:
        assert response.status_code == 503
        assert error_of(response)["code"] == "engine_stopped"
        assert int(response.headers["retry-after"]) >= 1
