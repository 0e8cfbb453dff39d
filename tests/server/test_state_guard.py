"""The fields `state_guard`, `state_health` and `state_mitigation`, and what answers and metrics say of states."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from typer.testing import CliRunner

from ostinato.engine.admission import make_sequences
from ostinato.engine.guard import GuardOptions, Reaction
from ostinato.engine.mitigation import Mitigation
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.service import Service
from ostinato.engine.state_pool import StatePool
from ostinato.server.cli.main import app
from tests.server.harness import GLA, GOLDENS, error_of, events, idle, real_service, serving

pytestmark = pytest.mark.asyncio
PROMPT = list(range(10, 40))
GREEDY = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "max_tokens": 20}
CHAT = {"messages": [{"role": "user", "content": "Hello there"}], **GREEDY}


@pytest.fixture
def service() -> Service:
    return real_service(GLA, window_memory=True, prefix_cache=2**22)


@pytest_asyncio.fixture
async def client(tmp_path: Path, service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(service, state_store=(str(tmp_path),)) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, status: int = 200, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


async def complete(client: httpx.AsyncClient, **body: Any) -> Any:
    return await post(client, "/v1/completions", **{"prompt": PROMPT, **GREEDY, **body})


@functools.cache
def norms_of_prompt() -> torch.Tensor:
    """Of the state that has read the prompt, computed without the guard."""
    service = real_service(GLA)
    engine = service._engine
    (sequence,) = make_sequences(
        "s", [PROMPT], SamplingParams(max_tokens=2), vocab_size=service.info.vocab_size, tokenizer=None
    )
    engine.add([sequence])
    engine.step()
    pool: StatePool = engine._runner._pool  # type: ignore[attr-defined]  # the real runner has one
    return pool.tensors["recurrent"][:, sequence.slot].double().flatten(2).norm(dim=-1).flatten()


async def test_health_is_told_for_each_choice_that_asks(client: httpx.AsyncClient) -> None:
    reply = await complete(client, state_health=True, n=2, max_tokens=1)
    norms = norms_of_prompt()
    for choice in reply["choices"]:
        health = choice["state_health"]
        assert health["tokens"] == 30
        assert health["finite"] is True
        assert health["norm"] == pytest.approx(float(norms.max()), rel=1e-6)
        assert health["mean_norm"] == pytest.approx(float(norms.mean()), rel=1e-6)
        assert health["norm_growth"] == 1.0
        assert health["exceeded_at"] is None
    assert "state_health" not in (await complete(client))["choices"][0]


async def test_the_effective_decay_is_told_where_decays_are_added_up(client: httpx.AsyncClient) -> None:
    """The first choice read the prompt. Without a server with that memory, it is null."""
    (choice,) = (await complete(client, state_health=True, cache_prompt=False))["choices"]
    assert 0.0 < choice["state_health"]["effective_decay"] < 1.0
    async with serving(real_service(GLA)) as plain:
        (choice,) = (await complete(plain, state_health=True))["choices"]
        assert choice["state_health"]["effective_decay"] is None


async def test_asking_changes_no_token(client: httpx.AsyncClient) -> None:
    replies = [
        await complete(client, logprobs=2, cache_prompt=False, **extra)
        for extra in ({}, {"state_health": True}, {"state_guard": {"reaction": "stop", "every": 16}})
    ]
    answers = [(reply["choices"][0]["token_ids"], reply["choices"][0]["logprobs"]) for reply in replies]
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]


async def test_chat_and_streams_tell_it_too(client: httpx.AsyncClient) -> None:
    reply = await post(client, "/v1/chat/completions", **CHAT, state_health=True)
    stream = await events(client, "/v1/chat/completions", **CHAT, state_health=True)
    told = [piece["choices"][0]["state_health"] for piece in stream[:-1] if "state_health" in piece["choices"][0]]
    assert [health["norm"] for health in told] == [reply["choices"][0]["state_health"]["norm"]]


@pytest.mark.parametrize("reaction", ["stop", "restore"])
async def test_a_guarded_answer_is_cut_short_and_says_why(
    client: httpx.AsyncClient, service: Service, reaction: str
) -> None:
    limit = float(norms_of_prompt().max()) / 2
    guard = {"reaction": reaction, "norm_limit": limit, "every": 16}
    reply = await complete(client, state_guard=guard, state_health=True, cache_prompt=False)
    (choice,) = reply["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "state_guard")
    assert choice["token_ids"] == []
    assert choice["state_health"]["exceeded_at"] in (16, 30)
    assert choice["state_health"]["norm"] > limit
    await idle(service)
    counted = (await client.get("/metrics")).text
    assert f'ostinato_state_exceeded_total{{reaction="{reaction}"}} 1.0' in counted
    assert 'ostinato_sequences_total{reason="state_guard"} 1.0' in counted


async def test_a_stopped_answer_stores_nothing_and_a_response_is_incomplete(tmp_path: Path) -> None:
    service = real_service(GLA, guard=GuardOptions(Reaction.STOP, 1e-9))
    async with serving(service, state_store=(str(tmp_path),)) as client:
        reply = await complete(client, store=True)
        assert "state" not in reply
        response = await post(client, "/v1/responses", input="Hello", max_output_tokens=4)
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "state_guard"}
        error = error_of(await client.post("/v1/states", json={"prompt": PROMPT}))
        assert error["code"] == "state_guard"
        assert (await client.get("/v1/states")).json()["data"] == []
        free = await complete(client, state_guard="report")
        assert free["choices"][0]["finish_reason"] == "length"
        assert len(free["choices"][0]["token_ids"]) == 20


async def test_a_state_that_is_not_finite_is_seen(client: httpx.AsyncClient, service: Service) -> None:
    """NaN is put into every slot while a long answer is made: the guard ends it before the sampler fails."""
    pool: StatePool = service._engine._runner._pool  # type: ignore[attr-defined]  # the real runner has one
    run, poisoned = service._engine._runner.run, []

    def poison(plan: Any) -> Any:
        result = run(plan)
        if plan.chunks and plan.chunks[0].sequence.num_read == 39:
            poisoned.append(pool.tensors["recurrent"][1, plan.chunks[0].sequence.slot, 0].fill_(math.nan))
        return result

    service._engine._runner.run = poison  # type: ignore[method-assign]  # that is how it breaks
    guard = {"reaction": "restore", "every": 16}
    reply = await complete(client, state_guard=guard, state_health=True, store=True)
    assert poisoned
    (choice,) = reply["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "state_guard")
    assert len(choice["token_ids"]) == 11
    health = choice["state_health"]
    assert (health["finite"], health["norm"], health["norm_growth"]) == (False, None, None)
    assert reply["state"]["tokens"] == 32
    assert "ostinato_state_not_finite_total 0.0" not in (await client.get("/metrics")).text
    broken = await client.post("/v1/completions", json={"prompt": PROMPT, **GREEDY, "cache_prompt": False})
    assert broken.status_code == 500  # without a guard it is an error of the step


async def test_a_stored_state_says_how_it_was_made_and_goes_on_so(client: httpx.AsyncClient) -> None:
    asked = {"forget": 0.99, "clip_norm": 3}
    made = await complete(client, state_mitigation=asked, store=True)
    assert made["state"]["mitigation"] == asked
    head = (await client.get(f"/v1/states/{made['state']['id']}/content")).content
    header = json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])["__metadata__"]["ostinato"]
    assert json.loads(header)["mitigation"] == asked
    refused = await client.post(
        "/v1/completions", json={"prompt": [1], "state": made["state"]["id"], "state_mitigation": {"forget": 0.9}}
    )
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "state_mitigation"
    on = await complete(client, state=made["state"]["id"], prompt=[7, 8], store=True)
    assert on["state"]["mitigation"] == asked
    back = await post(client, f"/v1/states/{made['state']['id']}/rewind", 201, back=25)
    again = await complete(client, state=back["id"], prompt=[7], store=True)
    assert again["state"]["mitigation"] == asked
    assert "mitigation" not in (await complete(client, store=True))["state"]


async def test_every_route_that_reads_takes_a_mitigation(client: httpx.AsyncClient) -> None:
    mitigation = {"forget": 0.9, "window": 16}
    plain, treated = [
        await post(client, "/v1/chat/completions", **CHAT, **extra, logprobs=True)
        for extra in ({}, {"state_mitigation": mitigation})
    ]
    assert plain["choices"][0]["logprobs"] != treated["choices"][0]["logprobs"]
    made = await post(client, "/v1/states", 201, prompt=PROMPT, state_mitigation=mitigation)
    on = await complete(client, state=made["id"], prompt=[5], store=True)
    assert on["state"]["mitigation"] == mitigation
    response = await post(client, "/v1/responses", input="Hello", max_output_tokens=4, state_mitigation=mitigation)
    after = await post(client, "/v1/responses", input="More", max_output_tokens=4, previous_response_id=response["id"])
    assert after["state"]["mitigation"] == mitigation


async def test_the_servers_mitigation_can_be_declined() -> None:
    mitigated = real_service(GLA, mitigation=Mitigation(forget=0.8))
    async with serving(real_service(GLA)) as client:
        plain = (await complete(client))["choices"][0]
        asked = (await complete(client, state_mitigation={"forget": 0.8}))["choices"][0]
    async with serving(mitigated) as client:
        assert (await complete(client))["choices"][0] == asked
        assert (await complete(client, state_mitigation={}))["choices"][0] == plain
    assert asked != plain


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"state_guard": "panic"}, "state_guard", '"report", "stop" or "restore"'),
        ({"state_guard": {"reaction": "stop", "limit": 3}}, "state_guard", "norm_limit"),
        ({"state_guard": {"norm_limit": -1}}, "state_guard", "norm_limit must be above 0"),
        ({"state_guard": {"every": 1}}, "state_guard", "at least 16"),
        ({"state_health": "yes"}, "state_health", "boolean"),
        ({"state_mitigation": {"forgive": 0.9}}, "state_mitigation.forgive", "unknown"),
        ({"state_mitigation": {"forget": "0.9"}}, "state_mitigation.forget", "number"),
        ({"state_mitigation": {"forget": 1.5}}, "state_mitigation", "forget must be in (0, 1]"),
        ({"state_mitigation": {"clip_every": 64}}, "state_mitigation", "needs a clip_norm"),
        ({"state_mitigation": {"window": 8}}, "state_mitigation", "at least 16"),
    ],
)
async def test_what_is_wrong_is_named(client: httpx.AsyncClient, body: dict[str, Any], param: str, words: str) -> None:
    response = await client.post("/v1/completions", json={"prompt": PROMPT, **body})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("folder", "name", "family"),
    [("delta_net", "forget", "DeltaNet"), ("mamba_hf", "window", "Mamba"), ("hgrn", "clip_norm", "HGRN")],
)
async def test_a_mitigation_of_other_families_is_refused_by_name(folder: str, name: str, family: str) -> None:
    value = {"forget": 0.9, "window": 64, "clip_norm": 1.0}[name]
    async with serving(real_service(GOLDENS / folder)) as client:
        response = await client.post("/v1/completions", json={"prompt": PROMPT, "state_mitigation": {name: value}})
        assert response.status_code == 400
        assert f"{name} does not apply to {family}" in error_of(response)["message"]


async def test_metrics_tell_the_norms_of_the_slots_in_use(client: httpx.AsyncClient) -> None:
    await complete(client, max_tokens=100)
    lines = (await client.get("/metrics")).text.splitlines()
    found = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("ostinato_state_")}
    assert found["ostinato_state_looks_total"] >= 1
    assert 0 < found["ostinato_state_norm_mean"] <= found["ostinato_state_norm"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--state-mitigation", "forgive=1"], "forget, remember"),
        (["--state-mitigation", "forget=much"], "forget must be a number"),
        (["--state-mitigation", "forget=0.9", "--state-mitigation", "forget=0.9"], "given once"),
        (["--state-mitigation", "window=1.5"], "window must be a number"),
        (["--state-norm-limit", "-1"], "norm_limit must be above 0"),
        (["--state-guard", "panic"], "--state-guard"),
    ],
)
async def test_options_of_the_server_are_checked(options: list[str], words: str) -> None:
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner(env=environment).invoke(app, ["serve", str(GLA), "--port", "0", *options])
    assert result.exit_code == 2, result.output
    assert words in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--state-mitigation", "forget=0.9"], "forget does not apply to DeltaNet"),
        (["--state-window-memory"], "DeltaNet has no sliding window"),
    ],
)
async def test_a_server_of_another_family_does_not_start(options: list[str], words: str) -> None:
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner(env=environment).invoke(app, ["serve", str(GOLDENS / "delta_net"), "--port", "0", *options])
    assert result.exit_code != 0
    assert words in result.output
