from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from ostinato.engine.service import Service
from ostinato.engine.text.chat_template import ChatTemplate
from ostinato.engine.text.config import read_tokenizer_config
from ostinato.engine.text.files import load_tokenizer_json
from ostinato.engine.text.tokenizer import Tokenizer
from tests.fakes import ScriptedRunner, scripted_service
from tests.server.harness import (
    GLA,
    NO_TOKENIZER,
    error_of,
    events,
    real_service,
    recites,
    serving,
    text_service,
)

pytestmark = pytest.mark.asyncio
PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


async def chat(client: httpx.AsyncClient, messages: Sequence[Any] = HELLO, **body: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={"messages": messages, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def prompt_text(client: httpx.AsyncClient, tokenizer: Tokenizer, messages: Sequence[Any]) -> str:
    """The text that the model is given for `messages`."""
    answer = await chat(client, messages, max_tokens=1, return_token_ids=True)
    return tokenizer.decode(answer["choices"][0]["prompt_token_ids"], skip_special_tokens=False)


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


async def test_the_whole_answer_of_a_small_request(client: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    answer = await chat(client, model="tiny", max_tokens=3, temperature=0, response_format={"type": "text"})
    assert answer["id"].startswith("chatcmpl-")
    read = len(tokenizer.encode("User: Hello\n\nAssistant:"))
    assert answer == {
        "id": answer["id"],
        "object": "chat.completion",
        "created": answer["created"],
        "model": "tiny",
        "system_fingerprint": answer["system_fingerprint"],
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": answer["choices"][0]["message"]["content"],
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": 3,
            "total_tokens": read + 3,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_reason": "off"},
        },
    }


async def test_the_default_form_names_the_speakers(client: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Good "}, {"type": "text", "text": "day"}],
            "name": "Ann",
        },
        {"role": "assistant", "content": " Hello!", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "Bye"},
    ]
    expected = "<s>System: Be brief.\n\nUser: Good day\n\nAssistant: Hello!\n\nUser: Bye\n\nAssistant:"
    assert await prompt_text(client, tokenizer, messages) == expected


class TestWithTemplate:
    SOURCE = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )

    @pytest.fixture
    def tokenizer(self) -> Tokenizer:
        config = replace(read_tokenizer_config(GLA), chat_template=ChatTemplate(self.SOURCE, "test"))
        return load_tokenizer_json(GLA / "tokenizer.json", config)

    @pytest.fixture
    def service(self, tokenizer: Tokenizer) -> Service:
        return scripted_service(ScriptedRunner(vocabulary=265), tokenizer, vocabulary=265)

    async def test_it_writes_the_prompt(self, client: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
        messages = [{"role": "developer", "content": "A"}, {"role": "user", "content": "B", "name": "Ann"}]
        assert await prompt_text(client, tokenizer, messages) == "<s>[system]A[user Ann]B[assistant]"

    async def test_what_it_refuses_is_an_error_of_the_request(self, client: httpx.AsyncClient) -> None:
        response = await client.post(PATH, json={"messages": [{"role": "assistant", "content": "x"}]})
        assert response.status_code == 400
        assert error_of(response)["param"] == "messages"


async def test_the_default_form_stops_where_the_user_would_speak() -> None:
    service = text_service(recites(" Fine.\n\nUser: ", after=24))
    async with serving(service) as client:
        answer = await chat(client, temperature=0)
    (choice,) = answer["choices"]
    assert answer["usage"]["prompt_tokens"] == 24
    assert (choice["message"]["content"], choice["finish_reason"]) == (" Fine.", "stop")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 3, "return_token_ids": True},
        {"n": 3, "seed": 4},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
async def test_a_stream_adds_up_to_the_whole_answer(client: httpx.AsyncClient, options: dict[str, Any]) -> None:
    body = {"messages": HELLO, "max_completion_tokens": 20, "temperature": 0.5, "seed": 3, **options}
    whole = await chat(client, **body)
    *chunks, done = await events(client, PATH, **body, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        pieces = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice["index"]]
        assert [piece["delta"].get("role") for piece in pieces] == ["assistant"] + [None] * (len(pieces) - 1)
        assert "".join(piece["delta"].get("content", "") for piece in pieces) == choice["message"]["content"]
        assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + [choice["finish_reason"]]
        scored = [entry for piece in pieces for entry in (piece["logprobs"] or {"content": []})["content"]]
        assert scored == (choice["logprobs"] or {"content": []})["content"]
        ids = [token_id for piece in pieces for token_id in piece.get("token_ids", [])]
        assert ids == choice.get("token_ids", [])


async def test_logprobs_give_text_and_bytes_of_each_token() -> None:
    service = text_service(recites("hé", after=24))
    async with serving(service) as client:
        answer = await chat(client, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "hé"
    for entry in entries:
        assert len(entry["top_logprobs"]) == 2
        best = entry["top_logprobs"][0]
        assert best == {key: entry[key] for key in ("token", "logprob", "bytes")}, "greedy takes the best"


async def test_without_a_bound_the_answer_ends_at_the_documented_one() -> None:
    async with serving(text_service(recites("a", after=24)), chat_max_tokens=40) as client:
        answer = await chat(client, temperature=0)
    assert answer["usage"]["completion_tokens"] == 40
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_without_a_tokenizer_there_is_no_chat() -> None:
    async with serving(real_service(NO_TOKENIZER)) as client:
        response = await client.post(PATH, json={"messages": HELLO})
    assert response.status_code == 400
    assert (error_of(response)["param"], error_of(response)["code"]) == ("messages", "tokenizer_required")
