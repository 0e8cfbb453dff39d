"""Requests that must be refused: each by name, with its status, the field at fault and what the message says.

After each of them the server still answers a good request, and no slot is in use.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from ostinato.engine.service import Service
from tests.server.harness import error_of, idle, real_service, serving

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BODY_LIMIT = 20_000
USER = {"role": "user", "content": "Hi"}
TEXT = {"type": "text", "text": "a"}


@dataclass(frozen=True)
class Bad:
    """One bad request. `body`: JSON to be, or the bytes themselves."""

    name: str
    path: str
    body: Any
    param: str | None
    message: str
    status: int = 400
    method: str = "POST"
    content_type: str | None = "application/json"


def completion(name: str, param: str | None, message: str, /, **fields: Any) -> Bad:
    """A completion request with these fields besides a good prompt."""
    return Bad(name, COMPLETIONS, {"prompt": "Hi", **fields}, param, message)


def chat(name: str, param: str | None, message: str, /, **fields: Any) -> Bad:
    return Bad(name, CHAT, {"messages": [USER], **fields}, param, message)


def raw(name: str, body: bytes, message: str, param: str | None = None, **other: Any) -> Bad:
    return Bad(name, COMPLETIONS, body, param, message, **other)


PROMPTS = [
    Bad("prompt-missing", COMPLETIONS, {}, "prompt", "required"),
    completion("prompt-null", "prompt", "required", prompt=None),
    completion("prompt-number", "prompt", "must be a string, a list", prompt=5),
    completion("prompt-object", "prompt", "must be a string, a list", prompt={"text": "Hi"}),
    completion("prompt-empty-list", "prompt", "not empty", prompt=[]),
    completion("prompt-empty-ids", "prompt", "empty", prompt=[[1], []]),
    completion("prompt-empty-text", "prompt", "empty", prompt="", add_special_tokens=False),
    completion("prompt-mixed-list", "prompt", "must be a string, a list", prompt=["a", 1]),
    completion("prompt-float-ids", "prompt", "must be a string, a list", prompt=[1.5]),
    completion("prompt-boolean-ids", "prompt", "must be a string, a list", prompt=[True]),
    completion("prompt-deep-list", "prompt", "must be a string, a list", prompt=[[[1]]]),
    completion("prompt-id-negative", "prompt", "-1 is not in the vocabulary", prompt=[1, -1]),
    completion("prompt-id-too-large", "prompt", "265 is not in the vocabulary", prompt=[265]),
    completion("prompt-id-enormous", "prompt", "not in the vocabulary", prompt=[10**30]),
    completion("prompts-beyond-the-queue", None, "never|queue", prompt=[[1]] * 13),
]

VALUES = [
    Bad("model-unknown", COMPLETIONS, {"prompt": "a", "model": "x"}, "model", "does not exist here", status=404),
    completion("model-number", "model", "string", model=4),
    completion("temperature-text", "temperature", "number", temperature="hot"),
    completion("temperature-number-as-text", "temperature", "number", temperature="0.5"),
    completion("temperature-boolean", "temperature", "number", temperature=True),
    completion("temperature-negative", "temperature", r"\[0, 100\]", temperature=-0.1),
    completion("temperature-enormous", "temperature", "number", temperature=10**400),
    completion("top_p-zero", "top_p", r"\(0, 1\]", top_p=0),
    completion("top_p-above-one", "top_p", r"\(0, 1\]", top_p=1.01),
    completion("top_k-negative", "top_k", "top_k must be in", top_k=-1),
    completion("top_k-float", "top_k", "integer", top_k=1.5),
    completion("min_p-above-one", "min_p", "min_p must be in", min_p=2),
    completion("repetition_penalty-zero", "repetition_penalty", "must be in", repetition_penalty=0),
    completion("presence_penalty-too-large", "presence_penalty", r"\[-2, 2\]", presence_penalty=2.5),
    completion("frequency_penalty-too-small", "frequency_penalty", r"\[-2, 2\]", frequency_penalty=-3),
    completion("max_tokens-negative", "max_tokens", "max_tokens must be in", max_tokens=-1),
    completion("max_tokens-enormous", "max_tokens", "max_tokens must be in", max_tokens=2**40),
    completion("min_tokens-above-max_tokens", "min_tokens", r"\[0, 4\]", min_tokens=5, max_tokens=4),
    completion("seed-text", "seed", "integer", seed="1"),
    completion("seed-enormous", "seed", "seed must be in", seed=2**64),
    completion("n-zero", "n", "greater than or equal to 1", n=0),
    completion("n-too-large", "n", "less than or equal to 128", n=129),
    completion("n-beyond-the-queue", "n", "never|queue", n=13),
    completion("best_of-below-n", "best_of", "at least n", n=3, best_of=2),
    completion("best_of-streamed", "best_of", "cannot be combined with stream", best_of=2, stream=True),
    completion("best_of-stored", "best_of", "cannot be combined with store", best_of=2, store=True),
    completion("state-no-id", "state", "64 hex digits", state="st_1"),
    completion("state-path", "state", "64 hex digits", state="../../etc/passwd"),
    completion("store-text", "store", "true, a time to live", store="yes"),
    completion("store-negative", "store", "true, a time to live", store=-1),
    completion("store-unknown", "store", "true, a time to live", store={"forever": True}),
    completion("store-nowhere", "store", "keeps no states", store=True),
    completion("checkpoint-beyond", "checkpoints", "beyond the prompt", prompt=[1, 2], checkpoints=[3]),
    completion("checkpoint-zero", "checkpoints", "a list of at most", checkpoints=[0]),
    completion("checkpoint-twice", "checkpoints", "at the same place", prompt=[1, 2], checkpoints=[1, 1]),
    completion("checkpoint-prompts", "checkpoints", "single prompt", prompt=[[1], [2]], checkpoints=[1]),
    completion("suffix", "suffix", "unknown or not supported", suffix="end"),
    completion("unknown-field", "temprature", "unknown or not supported", temprature=1),
    completion("logprobs-too-many", "logprobs", "logprobs must be in", logprobs=21),
    completion("logprobs-boolean", "logprobs", "integer", logprobs=True),
    completion("echoed-logprobs-too-many", "logprobs", "logprobs must be in", logprobs=21, echo=True),
    completion("prompt_logprobs-negative", "prompt_logprobs", "prompt_logprobs must be in", prompt_logprobs=-1),
    completion("stop-number", "stop", "string or a list", stop=5),
    completion("stop-too-many", "stop", "at most 16", stop=["x"] * 17),
    completion("stop-empty-string", "stop", "empty", stop=["a", ""]),
    completion("stop_token_ids-text", "stop_token_ids[1]", "integer", stop_token_ids=[1, "2"]),
    completion("stop_token_ids-unknown", "stop_token_ids", "999 is not in the vocabulary", stop_token_ids=[999]),
    completion("logit_bias-list", "logit_bias", "an object from token ids", logit_bias=[1]),
    completion("logit_bias-key-not-a-number", "logit_bias", "an object from token ids", logit_bias={"a": 1}),
    completion("logit_bias-key-of-other-digits", "logit_bias", "an object from token ids", logit_bias={"\u0661": 1}),
    completion("logit_bias-unknown-token", "logit_bias", "265 is not in the vocabulary", logit_bias={"265": 1}),
    completion("logit_bias-too-strong", "logit_bias", r"\[-100, 100\]", logit_bias={"5": 101}),
    completion("stream-text", "stream", "boolean", stream="yes"),
    completion("stream_options-without-stream", "stream_options", "stream: true", stream_options={}),
    completion("stream_options-unknown", "stream_options.x", "unknown", stream=True, stream_options={"x": 1}),
    completion("priority-enormous", "priority", "less than", priority=2**31),
    completion("streamed-bad-id", "prompt", "not in the vocabulary", stream=True, prompt=[999]),
]

CHATS = [
    Bad("messages-missing", CHAT, {}, "messages", "at least one"),
    chat("messages-empty", "messages", "at least one", messages=[]),
    chat("messages-text", "messages", "list", messages="Hi"),
    chat("message-text", "messages[0]", "object|dictionary", messages=["Hi"]),
    chat("role-missing", "messages[0].role", "required", messages=[{"content": "Hi"}]),
    chat("role-tool", "messages[1].role", "'system'", messages=[USER, {"role": "tool", "content": "4"}]),
    chat("content-missing", "messages[0].content", "required", messages=[{"role": "user"}]),
    chat("content-number", "messages[0].content", "string", messages=[{"role": "user", "content": 4}]),
    chat(
        "content-image",
        "messages[0].content[1].type",
        "'text'",
        messages=[{"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": "x"}}]}],
    ),
    chat("message-field-unknown", "messages[0].audio", "not supported", messages=[{**USER, "audio": {"id": "1"}}]),
    chat("tools", "tools", "not supported", tools=[{"type": "function", "function": {"name": "f"}}]),
    chat("tool_choice", "tool_choice", "not supported", tool_choice="none"),
    chat("functions", "functions", "not supported", functions=[]),
    chat("modalities", "modalities", "not supported", modalities=["text", "audio"]),
    chat("response_format-json", "response_format.type", "'text'", response_format={"type": "json_object"}),
    chat("top_logprobs-alone", "top_logprobs", "needs logprobs", top_logprobs=2),
    chat("top_logprobs-too-many", "top_logprobs", "top_logprobs must be in", logprobs=True, top_logprobs=21),
    chat("logprobs-number", "logprobs", "boolean", logprobs=2),
    chat("both-bounds", "max_completion_tokens", "same bound", max_tokens=1, max_completion_tokens=2),
    chat(
        "max_completion_tokens-negative",
        "max_completion_tokens",
        "max_completion_tokens must",
        max_completion_tokens=-1,
    ),
    chat("echo-in-chat", "echo", "not supported", echo=True),
]

BODIES = [
    raw("body-empty", b"", "JSON object"),
    raw("body-list", b"[]", "JSON object"),
    raw("body-text", b'"prompt"', "JSON object"),
    raw("body-half", b'{"prompt": "a', "not valid JSON"),
    raw("body-not-json", b"prompt=a", "not valid JSON"),
    raw("body-nan", b'{"prompt": "a", "temperature": NaN}', "not valid JSON"),
    raw("body-infinity", b'{"prompt": "a", "temperature": -Infinity}', "not valid JSON"),
    raw("body-overflowing-float", b'{"prompt": "a", "temperature": 1e999}', "finite|number", "temperature"),
    raw("body-many-digits", b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
    raw("body-deep", b"[" * 9000, "not valid JSON"),
    raw("body-deep-in-a-field", b'{"prompt": ' + b'{"a":' * 2000 + b"1" + b"}" * 2001, "not valid JSON"),
    raw("body-latin-1", '{"prompt": "é"}'.encode("latin-1"), "not valid JSON"),
    raw("body-half-surrogate", b'{"prompt": "\\ud800"}', "not valid JSON"),
    raw("body-without-type", b'{"prompt": "a"}', "content-type", status=415, content_type=None),
    raw("body-form", b"prompt=a", "content-type", status=415, content_type="application/x-www-form-urlencoded"),
    raw("body-plain-text", b'{"prompt": "a"}', "content-type", status=415, content_type="text/plain"),
    raw("body-too-large", b" " * (BODY_LIMIT + 1), "20000 bytes", status=413),
]

OTHERS = [
    Bad("route-unknown", "/v1/embeddings", {}, None, "no route POST /v1/embeddings", status=404),
    Bad("route-with-slash", COMPLETIONS + "/", {}, None, "no route", status=404),
    Bad("method-wrong", COMPLETIONS, None, None, "method", status=405, method="GET"),
    Bad("tokenize-nothing", "/tokenize", {}, "prompt", "either prompt or messages"),
    Bad("tokenize-both", "/tokenize", {"prompt": "a", "messages": [USER]}, "prompt", "either"),
    Bad("tokenize-number", "/tokenize", {"prompt": 1}, "prompt", "string"),
    Bad("tokenize-other-model", "/tokenize", {"prompt": "a", "model": "x"}, "model", "does not exist", status=404),
    Bad("detokenize-missing", "/detokenize", {}, "tokens", "required"),
    Bad("detokenize-text", "/detokenize", {"tokens": "1"}, "tokens", "list"),
    Bad("detokenize-unknown-id", "/detokenize", {"tokens": [265]}, "tokens", "0 to 264"),
    Bad("detokenize-negative-id", "/detokenize", {"tokens": [-1]}, "tokens", "0 to 264"),
]

CASES = [*PROMPTS, *VALUES, *CHATS, *BODIES, *OTHERS]


@pytest.fixture(scope="module")
def service() -> Service:
    return real_service()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(service, max_body_bytes=BODY_LIMIT) as connected:
        yield connected


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
async def test_bad_request(client: httpx.AsyncClient, service: Service, bad: Bad) -> None:
    response = await send(client, bad)
    assert response.status_code == bad.status, response.text
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    if bad.param is not None:
        assert error["param"] == bad.param
    assert re.search(bad.message, error["message"]), error["message"]
    await still_serves(client, service)


async def send(client: httpx.AsyncClient, bad: Bad) -> httpx.Response:
    content = bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
    headers = {} if bad.content_type is None else {"content-type": bad.content_type}
    return await client.request(bad.method, bad.path, content=content, headers=headers)


async def still_serves(client: httpx.AsyncClient, service: Service) -> None:
    good = await client.post(COMPLETIONS, json={"prompt": "Hi", "max_tokens": 2, "ignore_eos": True})
    assert good.status_code == 200, good.text
    assert good.json()["usage"]["completion_tokens"] == 2
    await idle(service)


def test_the_names_are_distinct_and_many() -> None:
    names = [bad.name for bad in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 40
