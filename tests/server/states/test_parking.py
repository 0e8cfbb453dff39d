"""A server that goes down stores what it cannot finish, and another one goes on with the same bits."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from ostinato.engine.types import StepPlan
from tests.server.faults import inject
from tests.server.harness import TIMEOUT, real_service, serving, until
from tests.server.processes import Serving, running

LENGTH = 400
PATIENCE = 120  # seconds, for a process to end on a busy machine
SAMPLED = {"temperature": 0.8, "seed": 3, "ignore_eos": True, "return_token_ids": True}
PROMPTS = ["Hi", "The quick brown fox", "A"]


class Streaming(threading.Thread):
    """A client that reads one streamed answer to its end. begun: its first token has come."""

    def __init__(self, url: str, prompt: str, **body: Any) -> None:
        super().__init__(daemon=True)
        self.url, self.body = url, {"prompt": prompt, "stream": True, "max_tokens": LENGTH, **SAMPLED, **body}
        self.begun = threading.Event()
        self.chunks: list[dict[str, Any]] = []
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", f"{self.url}/v1/completions", json=self.body, timeout=TIMEOUT) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.chunks.append(json.loads(line.removeprefix("data: ")))
                    self.begun.set()

    @property
    def token_ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk["choices"][0]["token_ids"]]


def go_on(url: str, state: str, count: int) -> list[int]:
    body = {"state": state, "max_tokens": count, **SAMPLED}
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=TIMEOUT)
    assert response.status_code == 200, response.text
    ids: list[int] = response.json()["choices"][0]["token_ids"]
    return ids


def whole_answer(server: Serving, prompt: str) -> list[int]:
    body = {"prompt": prompt, "max_tokens": LENGTH, **SAMPLED}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=TIMEOUT)
    ids: list[int] = response.json()["choices"][0]["token_ids"]
    return ids


@pytest.mark.long
def test_conversations_in_flight_go_on_at_another_server(tmp_path: Path) -> None:
    """Two processes that share a folder; the first gets SIGTERM in the middle of three answers."""
    store = ("--state-store", str(tmp_path))
    drain = ("--park-on-drain", "--drain-seconds", "0")
    with running(*store, *drain) as one, running(*store) as two:
        expected = [whole_answer(two, prompt) for prompt in PROMPTS]
        clients = [Streaming(one.url, prompt, store=i == 2) for i, prompt in enumerate(PROMPTS)]
        assert all(client.begun.wait(TIMEOUT) for client in clients)
        one.signal(signal.SIGTERM)
        assert one.process.wait(PATIENCE) == 0
        cuts = []
        for client, whole in zip(clients, expected, strict=True):
            client.join(PATIENCE)
            last, state = client.chunks[-1]["choices"][0], client.chunks[-1]["state"]
            assert last["finish_reason"] == "length"
            assert state["mark"] == "parked"
            cuts.append(len(client.token_ids))
            assert client.token_ids + go_on(two.url, state["id"], LENGTH - cuts[-1]) == whole
        assert min(cuts) > 0
        assert max(cuts) < LENGTH, "nothing was cut"
        records = [httpx.get(f"{two.url}/v1/states/{c.chunks[-1]['state']['id']}").json() for c in clients]
        assert [record["expires"] is None for record in records] == [False, False, True]


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
async def test_every_route_names_the_state_of_a_parked_answer(tmp_path: Path, path: str) -> None:
    service = real_service(prefix_cache=1 << 20)
    asked = {
        "/v1/completions": {"prompt": "Hi", "max_tokens": 10**6},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10**6},
        "/v1/responses": {"input": "Hi", "store": False, "max_output_tokens": 10**6},
    }
    async with serving(service, state_store=(str(tmp_path),), park_on_drain=True) as client:
        request = client.build_request("POST", path, json={**asked[path], "ignore_eos": True, "temperature": 0})
        sent = asyncio.ensure_future(client.send(request))
        await until(lambda: service.stats().generated_tokens_total > 3)
        assert not await service.drain(0, 10)
        answer = (await sent).json()
        assert answer["state"]["mark"] == "parked", answer
        assert answer.get("status", "incomplete") == "incomplete"
        stored = (await client.get(f"/v1/states/{answer['state']['id']}")).json()
        assert stored["tokens"] == answer["usage"]["total_tokens"]


@pytest.mark.asyncio
async def test_what_has_not_begun_is_told_to_go_elsewhere_and_prompts_are_read_to_their_end(tmp_path: Path) -> None:
    """One slot: the first of two is in the middle of its prompt, the second waits."""
    service = real_service(max_batch=1, max_step_tokens=4)
    reads, hold = [], threading.Event()

    def wait(plan: StepPlan) -> None:
        if plan.chunks and not plan.chunks[0].sequence.id.startswith("warm-up"):
            reads.append(plan.chunks[0].length)
            if len(reads) == 2:
                assert hold.wait(TIMEOUT)

    inject(service, before=wait)
    ids = list(range(1, 21))
    body = {"prompt": ids, "max_tokens": 5, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
    async with serving(service, state_store=(str(tmp_path),), park_on_drain=True) as client:
        first = asyncio.ensure_future(client.post("/v1/completions", json=body))
        await until(lambda: len(reads) == 2)
        second = asyncio.ensure_future(client.post("/v1/completions", json=body))
        await until(lambda: service.stats().waiting == 1)
        commands = service._commands.qsize()  # the second request may be among them: the engine's thread is held
        drained = asyncio.ensure_future(service.drain(0, 10))
        await until(lambda: service._commands.qsize() > commands)
        hold.set()
        assert not await drained
        answer, refused = (await first).json(), await second
        assert answer["state"]["tokens"] == len(ids)
        assert answer["choices"][0]["text"] == ""
        assert refused.status_code == 503
    async with serving(real_service(), state_store=(str(tmp_path),)) as client:
        rest = {**body, "state": answer["state"]["id"]}
        del rest["prompt"]
        there = (await client.post("/v1/completions", json=rest)).json()["choices"][0]
        whole = (await client.post("/v1/completions", json=body)).json()["choices"][0]
        assert there["token_ids"] == whole["token_ids"]


@pytest.mark.asyncio
async def test_nothing_is_stored_unless_the_server_is_told_to(tmp_path: Path) -> None:
    service = real_service()
    async with serving(service, state_store=(str(tmp_path),)) as client:
        body = {"prompt": "Hi", "max_tokens": 10**6, "ignore_eos": True}
        sent = asyncio.ensure_future(client.post("/v1/completions", json=body))
        await until(lambda: service.stats().generated_tokens_total > 3)
        assert not await service.drain(0, 10)
        assert (await sent).status_code == 503
        assert (await client.get("/v1/states")).json()["data"] == []
