"""What /v1/responses refuses: by the name of the field, before anything is read or stored."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from ostinato.engine.service import Service
from tests.server.harness import error_of, serving
from tests.server.responses.asking import GREEDY, PATH, respond

pytestmark = pytest.mark.asyncio


MESSAGE = {"role": "user", "content": "Hi"}
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "input-missing": ({"input": None}, "input", "Field required"),
    "input-number": ({"input": 5}, "input", "valid string"),
    "input-empty-list": ({"input": []}, "input", "at least one"),
    "item-of-other-type": (
        {"input": [MESSAGE, {"type": "function_call_output", "call_id": "c", "output": "1"}]},
        "input[1].type",
        "'message'",
    ),
    "item-role": ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "'user'"),
    "item-without-content": ({"input": [{"role": "user"}]}, "input[0].content", "required"),
    "image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b.png"}]}]},
        "input[0].content[0].type",
        "'input_text'",
    ),
    "annotations": (
        {"input": [{"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": [{}]}]}]},
        "input[0].content[0].annotations",
        "empty list",
    ),
    "tools": ({"tools": [{"type": "web_search"}]}, "tools", "calls no tools"),
    "tool_choice": ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
    "include": ({"include": ["message.output_text.logprobs"]}, "include", "empty list"),
    "background": ({"background": True}, "background", "false"),
    "truncation": ({"truncation": "auto"}, "truncation", "disabled"),
    "text-format": ({"text": {"format": {"type": "json_object"}}}, "text.format.type", "'text'"),
    "text-verbosity": ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
    "metadata-number": ({"metadata": {"a": 1}}, "metadata", "strings"),
    "metadata-too-many": ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "at most 16"),
    "metadata-too-long": ({"metadata": {"a": "x" * 513}}, "metadata", "at most 512"),
    "max_output_tokens": ({"max_output_tokens": -1}, "max_output_tokens", "max_output_tokens must be in"),
    "temperature": ({"temperature": "hot"}, "temperature", "number"),
    "store": ({"store": "yes"}, "store", "time to live"),
    "state-and-response": ({"state": f"st_{'0' * 64}", "previous_response_id": "resp_0"}, "state", "send one"),
    "state-id": ({"state": "resp_0"}, "state", "st_ and 64 hex digits"),
    **{
        name: ({name: value}, name, "not supported")
        for name, value in {
            "reasoning": {"effort": "low"},
            "conversation": "conv_1",
            "context_management": [],
            "prompt": {"id": "p"},
            "max_tool_calls": 3,
            "top_logprobs": 2,
            "service_tier": "flex",
            "prompt_cache_key": "k",
            "stream_options": {"include_obfuscation": True},
            "max_tokens": 5,
            "messages": [MESSAGE],
            "n": 2,
        }.items()
    },
}


async def test_what_is_not_supported_is_refused_by_its_name(client: httpx.AsyncClient) -> None:
    for name, (fields, param, message) in BAD.items():
        response = await client.post(PATH, json={**GREEDY, "input": "Hi", **fields})
        assert response.status_code == 400, name
        error = error_of(response)
        assert error["param"] == param, f"{name}: {error}"
        assert error["code"] == "invalid_value", name
        assert message in error["message"], f"{name}: {error}"
    assert (await client.get("/v1/states")).json()["data"] == []


async def test_an_unstored_response_leaves_nothing(client: httpx.AsyncClient) -> None:
    answer = await respond(client, input="Hello", store=False)
    assert answer["store"] is False
    assert "state" not in answer
    assert (await client.get("/v1/states")).json()["data"] == []
    response = await client.post(PATH, json={"input": "Hi", "previous_response_id": answer["id"]})
    assert response.status_code == 404
    assert error_of(response)["code"] == "previous_response_not_found"
    odd = await client.post(PATH, json={"input": "Hi", "previous_response_id": "../../\u00e4\n"})
    assert error_of(odd)["code"] == "previous_response_not_found"


async def test_a_server_without_a_store_answers_but_does_not_go_on(service: Service) -> None:
    async with serving(service) as client:
        answer = await respond(client, input="Hello")
        assert answer["store"] is False
        for fields, param in (
            ({"previous_response_id": answer["id"]}, "previous_response_id"),
            ({"store": True}, "store"),
        ):
            response = await client.post(PATH, json={"input": "Hi", **fields})
            assert response.status_code == 400
            assert error_of(response)["param"] == param
            assert "--state-store" in error_of(response)["message"]


async def test_a_response_cannot_be_read_back(client: httpx.AsyncClient) -> None:
    answer = await respond(client, input="Hello")
    assert (await client.get(f"{PATH}/{answer['id']}")).status_code == 405
