"""What one client can make the server remember is bounded, and more is refused before it is there."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from ostinato.engine.admission import MOST_SCORES, make_sequences
from ostinato.engine.errors import CapacityError
from ostinato.engine.event_stream import EventStream
from ostinato.engine.events import Fault, FinishReason, TokenEvent, TokenLogprobs
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.store.state_store import StateStore
from ostinato.engine.types import Sequence
from ostinato.server.security.body_limit import AT_ONCE
from ostinato.server.serve import open_socket
from tests.server.harness import error_of, idle, live_server, real_service, serving, text_service, until

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "Hi", "best_of": 10**9}, "best_of"),
        ({"prompt": [[1]] * 100_000, "n": 128}, "n"),
        ({"prompt": [1] * 100_000, "prompt_logprobs": 20, "max_tokens": 0}, "prompt_logprobs"),
    ],
)
async def test_requests_that_could_never_be_served_are_refused_at_once(body: dict[str, object], field: str) -> None:
    async with serving(text_service()) as client:
        response = await client.post("/v1/completions", json=body)
        assert response.status_code == 400
        assert error_of(response)["param"] == field


async def test_a_prefix_cache_beyond_the_memory_is_refused_at_the_start() -> None:
    with pytest.raises(CapacityError, match="prefix_cache"):
        real_service(prefix_cache=10**18)


async def test_as_many_log_probabilities_as_are_allowed_are_admitted() -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=3)
    (sequence,) = make_sequences("r", [[1] * (MOST_SCORES // 4)], params, vocab_size=256, tokenizer=None)
    assert len(sequence.prompt) == MOST_SCORES // 4


async def test_bodies_in_progress_share_a_bound() -> None:
    """Uploads that are never completed hold what they have sent; what one more sends is refused."""
    limit = 10_000
    service, held = text_service(), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b" " * (limit - 10)
        await held.wait()
        yield b"{}"

    async with serving(service, max_body_bytes=limit) as client:
        headers = {"content-type": "application/json"}
        slow = [
            asyncio.ensure_future(client.post("/v1/completions", content=endless(), headers=headers))
            for _ in range(AT_ONCE[False])
        ]
        await asyncio.sleep(0.2)
        refused = await client.post("/v1/completions", json={"prompt": "Hi" * 200})
        assert refused.status_code == 429
        assert error_of(refused)["code"] == "queue_full"
        held.set()
        assert {(await task).status_code for task in slow} == {400}
        assert (await client.post("/v1/completions", json={"prompt": "Hi" * 200})).status_code == 200


async def test_states_that_wait_to_be_stored_share_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for three: a request that ends and has a checkpoint takes two, as long as the store keeps it waiting."""
    service, opened = real_service(max_batch=3, max_queue=0), threading.Event()
    monkeypatch.setattr("ostinato.server.context.LEAST_ROOM", 0)
    put = StateStore.put

    def slow(*arguments: object, **named: object) -> object:
        assert opened.wait(30)
        return put(*arguments, **named)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr(StateStore, "put", slow)
    async with serving(service, state_store=(str(tmp_path),)) as client:
        too_many = {"prompt": [1, 2, 3, 4], "max_tokens": 1, "checkpoints": [1, 2, 3], "store": True}
        response = await client.post("/v1/completions", json=too_many)
        assert response.status_code == 400
        assert error_of(response)["param"] == "checkpoints"
        body = {**too_many, "checkpoints": [2]}
        waiting = asyncio.ensure_future(client.post("/v1/completions", json=body))
        await until(lambda: service.stats().generated_tokens_total > 0)
        assert (await client.post("/v1/completions", json=body)).status_code == 429
        assert (await client.post("/v1/completions", json={"prompt": [1], "max_tokens": 1})).status_code == 200
        opened.set()
        assert (await waiting).status_code == 200
        assert (await client.post("/v1/completions", json=body)).status_code == 200


def sequence(name: str) -> Sequence:
    return Sequence(name, (1,), SamplingParams(), 0)


async def test_a_stream_that_nobody_reads_is_given_up_at_its_bound() -> None:
    aborted: list[str] = []
    stream = EventStream([sequence("a"), sequence("b")], lambda each: aborted.append(each.id), most=10)
    for number in range(10):
        stream.deliver(TokenEvent("a", token_ids=(number,)))
    assert not aborted
    stream.deliver(TokenEvent("b", index=1, token_ids=(7,)))
    assert aborted == ["a", "b"]
    for _ in range(1000):
        stream.deliver(TokenEvent("a", token_ids=(99,)))
    for name in "ab":
        stream.deliver(TokenEvent(name, finish_reason=FinishReason.ABORTED))
    found = [event async for event in stream]
    assert [event.fault for event in found] == [Fault.SLOW_READER] * 2, "what nobody has read does not stay"


async def test_log_probabilities_count_as_what_they_take() -> None:
    aborted: list[str] = []
    stream = EventStream([sequence("a")], lambda each: aborted.append(each.id), most=40)
    scored = TokenLogprobs(1, -1.0, tuple((i, -1.0) for i in range(20)))
    stream.deliver(TokenEvent("a", token_ids=(1,), logprobs=(scored,)))
    assert not aborted
    stream.deliver(TokenEvent("a", token_ids=(1,), logprobs=(scored,)))
    assert aborted == ["a"]


def small_socket(host: str, port: int) -> socket.socket:
    """What it accepts has its small buffer: the system's own would take thousands of tokens."""
    listener = open_socket(host, port)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listener


async def test_a_client_that_never_reads_loses_its_answer_and_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its socket is full, so its tokens wait in the server: up to the bound, not up to a million."""
    monkeypatch.setattr(EventStream.__init__, "__defaults__", (500,))
    monkeypatch.setattr("tests.server.harness.open_socket", small_socket)
    service = text_service()
    with live_server(service) as url, socket.socket() as stuck:
        host, port = url.removeprefix("http://").split(":")
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect((host, int(port)))
        body = json.dumps({"prompt": "Hi", "max_tokens": 10**6, "stream": True, "ignore_eos": True}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        stuck.sendall(head.encode() + b"\r\n\r\n" + body)
        async with httpx.AsyncClient(timeout=30) as client:
            await until(lambda: service.stats().generated_tokens_total > 10)
            other = await client.post(
                f"{url}/v1/completions", json={"prompt": "Hi", "max_tokens": 3, "ignore_eos": True}
            )
            assert other.json()["usage"]["completion_tokens"] == 3
            await idle(service)
            assert service.stats().generated_tokens_total < 10_000
            assert service.stats().finished == {"length": 1, "aborted": 1}
