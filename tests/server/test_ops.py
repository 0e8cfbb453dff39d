from __future__ import annotations

import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ostinato.engine.service import Service
from ostinato.engine.text.tokenizer import Tokenizer
from ostinato.server.app import create_app
from tests.fakes import Gate
from tests.server.harness import (
    NO_TOKENIZER,
    error_of,
    events,
    idle,
    real_service,
    serving,
    settings,
    text_service,
    until,
)

pytestmark = pytest.mark.asyncio


async def test_the_model_list_says_what_capacity_planning_needs(client: httpx.AsyncClient, service: Service) -> None:
    (card,) = (await client.get("/v1/models")).json()["data"]
    assert card == {
        "id": "tiny",
        "object": "model",
        "created": card["created"],
        "owned_by": "ostinato",
        "architecture": "GLAForCausalLM",
        "family": service.info.family,
        "vocab_size": 265,
        "dtype": "bfloat16",
        "state_dtype": "float32",
        "bytes_per_state": service.info.bytes_per_state,
        "slots": 4,
        "weight_bytes": service.info.weight_bytes,
        "batch_invariant": True,
        "has_tokenizer": True,
        "initial_states": [],
    }
    assert card["bytes_per_state"] > 0
    assert (await client.get("/v1/models/tiny")).json() == card


@pytest.mark.parametrize("name", ["other", "an/organisation", "tiny/"])
async def test_another_model_is_not_found(client: httpx.AsyncClient, name: str) -> None:
    response = await client.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


async def test_a_model_name_may_hold_slashes(service: Service) -> None:
    async with serving(service, served_model_name="an/organisation") as client:
        assert (await client.get("/v1/models/an/organisation")).status_code == 200


@pytest.mark.parametrize("text", ["Hello, world!", "naïve 日本 🎵", " "])
async def test_tokenize_and_detokenize_are_inverse(client: httpx.AsyncClient, tokenizer: Tokenizer, text: str) -> None:
    bare = (await client.post("/tokenize", json={"prompt": text, "add_special_tokens": False})).json()
    assert bare == {"tokens": tokenizer.encode(text, add_special_tokens=False), "count": len(bare["tokens"])}
    assert (await client.post("/detokenize", json={"tokens": bare["tokens"]})).json() == {"prompt": text}
    full = (await client.post("/tokenize", json={"prompt": text})).json()
    assert full["tokens"] == tokenizer.encode(text)
    assert (await client.post("/detokenize", json={"tokens": full["tokens"]})).json() == {"prompt": "<s>" + text}


async def test_tokenize_takes_a_conversation(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    tokens = (await client.post("/tokenize", json={"messages": messages})).json()["tokens"]
    chat = await client.post(
        "/v1/chat/completions", json={"messages": messages, "max_tokens": 1, "return_token_ids": True}
    )
    assert tokens == chat.json()["choices"][0]["prompt_token_ids"]


async def test_a_long_text_is_tokenized_beside_the_event_loop(client: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    text = "abc " * 5000
    answer = (await client.post("/tokenize", json={"prompt": text})).json()
    assert answer["tokens"] == tokenizer.encode(text)


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})])
async def test_without_a_tokenizer_they_say_so(path: str, body: dict[str, object]) -> None:
    async with serving(real_service(NO_TOKENIZER)) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 400
    assert error_of(response)["code"] == "tokenizer_required"


async def test_ready_and_healthy_follow_the_life_of_the_service() -> None:
    gate = Gate()
    service = text_service(before_step=gate)
    async with serving(service) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/ready")).json() == {"status": "ready"}
        gate.open()
        await service.drain(0)
        draining = await client.get("/ready")
        assert draining.status_code == 503
        assert "shutting down" in error_of(draining)["message"]
        assert (await client.get("/health")).status_code == 200
        await service.stop()
        for path in ("/health", "/ready"):
            stopped = await client.get(path)
            assert stopped.status_code == 503
            assert "not running" in error_of(stopped)["message"]
        refused = await client.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert error_of(refused)["code"] == "engine_stopped"
        assert int(refused.headers["retry-after"]) >= 1


async def test_metrics_count_what_happened(service: Service) -> None:
    async with serving(service) as client:
        await client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 5, "ignore_eos": True})
        await events(client, "/v1/completions", prompt="Hello", max_tokens=7, ignore_eos=True)
        await client.post("/v1/completions", json={"prompt": 1})
        await client.get("/made/up")
        await idle(service)
        text = (await client.get("/metrics")).text
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    route = ("route", "/v1/completions")
    assert values["ostinato_slots",] == 4
    assert values["ostinato_slots_used",] == values["ostinato_queue_depth",] == values["ostinato_running",] == 0
    assert values["ostinato_prompt_tokens_total",] == 12
    assert values["ostinato_generated_tokens_total",] == 12
    assert values["ostinato_time_to_first_token_seconds_count",] == 2
    assert values["ostinato_inter_token_seconds_count",] == 4 + 6
    assert values["ostinato_request_seconds_count", route] == 3
    assert values["ostinato_requests_total", ("outcome", "ok"), route] == 2
    assert values["ostinato_requests_total", ("outcome", "invalid"), route] == 1
    assert values["ostinato_requests_total", ("outcome", "invalid"), ("route", "other")] == 1
    assert values["ostinato_sequences_total", ("reason", "length")] == 2


async def test_two_applications_do_not_share_their_counts() -> None:
    first, second = text_service(), text_service()
    async with serving(first) as client:
        await client.get("/health")
    async with serving(second) as client:
        assert 'route="/health"' not in (await client.get("/metrics")).text


async def test_every_answer_has_a_request_id(client: httpx.AsyncClient) -> None:
    ids = {(await client.get(path)).headers["x-request-id"] for path in ("/health", "/nowhere", "/v1/models")}
    assert len(ids) == 3
    assert all(re.fullmatch("req-[0-9a-f]{32}", request_id) for request_id in ids)
    own = await client.get("/health", headers={"x-request-id": "trace:1.a_b-c"})
    assert own.headers["x-request-id"] == "trace:1.a_b-c"
    unusable = await client.get("/health", headers={"x-request-id": "a b" * 99})
    assert unusable.headers["x-request-id"].startswith("req-")


async def test_the_api_describes_itself(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("/CompletionRequest")
    schemas = document["components"]["schemas"]
    assert "temperature" in schemas["CompletionRequest"]["properties"]
    answers = document["paths"]["/v1/completions"]["post"]["responses"]
    assert set(answers) == set("200 400 401 404 405 409 410 413 415 429 431 500 503 507".split())
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    assert answers["410"]["description"] == "state_damaged"
    assert set(schemas["ErrorObject"]["properties"]) == {"message", "type", "param", "code"}


async def test_a_bug_is_a_500_in_the_same_shape(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(service, settings())

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("secret detail")

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://ostinato") as client:
        response = await client.get("/bug")
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "secret" not in response.text
    assert "secret detail" in caplog.text
    assert response.headers["x-request-id"] in caplog.text


async def test_the_loop_is_warm_before_it_is_ready() -> None:
    service = text_service()
    async with serving(service):
        await until(lambda: service.ready)
        assert service.healthy
