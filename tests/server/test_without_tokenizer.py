"""A model without a tokenizer: token ids are served, and text is refused in words that help."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from safetensors.torch import load_file

from ostinato.engine.service import Service
from tests.server.harness import NO_TOKENIZER, error_of, events, idle, real_service

pytestmark = pytest.mark.asyncio
PATH = "/v1/completions"


@pytest.fixture
def service() -> Service:
    return real_service(NO_TOKENIZER)


async def test_token_ids_are_served(client: httpx.AsyncClient) -> None:
    golden = load_file(NO_TOKENIZER / "golden.safetensors")
    prompt, greedy = golden["short.input_ids"].tolist(), golden["short.greedy_ids"].tolist()
    body = {"prompt": prompt, "max_tokens": len(greedy), "temperature": 0, "return_token_ids": True, "logprobs": 1}
    answer = (await client.post(PATH, json=body)).json()
    (choice,) = answer["choices"]
    assert choice["text"] == ""
    assert choice["token_ids"] == greedy
    assert choice["logprobs"]["tokens"] == [f"token_id:{token_id}" for token_id in greedy]
    *chunks, _ = await events(client, PATH, **body)
    assert [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]] == greedy


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("prompt", {"prompt": "text"}),
        ("prompt", {"prompt": ["text"]}),
        ("stop", {"prompt": [5], "stop": "x"}),
        ("echo", {"prompt": [5], "echo": True}),
    ],
)
async def test_text_is_refused_and_says_why(
    client: httpx.AsyncClient, service: Service, field: str, body: dict[str, Any]
) -> None:
    response = await client.post(PATH, json=body)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == field
    assert error["code"] == "tokenizer_required"
    assert "tokenizer" in error["message"]
    await idle(service)
