"""What /v1/responses takes, and what it leaves in the state store."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load

from tests.server.harness import error_of, gla_tokenizer
from tests.server.responses.asking import PATH, respond

pytestmark = pytest.mark.asyncio


def text_of(response: Any) -> str:
    text: str = response["output"][0]["content"][0]["text"]
    return text


async def test_fields_with_the_value_that_changes_nothing_are_taken(client: httpx.AsyncClient) -> None:
    plain = await respond(client, input="Hi")
    nothing = {"tools": [], "include": [], "tool_choice": "none", "parallel_tool_calls": False, "background": False}
    told = {"text": {"format": {"type": "text"}}, "truncation": "disabled", "reasoning": None, "user": "me"}
    answer = await respond(client, input="Hi", **nothing, **told)
    assert text_of(answer) == text_of(plain)
    assert (answer["tool_choice"], answer["parallel_tool_calls"]) == ("none", False)


async def test_all_forms_of_input_are_read_as_chat_reads_them(client: httpx.AsyncClient) -> None:
    parts = [{"type": "input_text", "text": "He"}, {"type": "input_text", "text": "llo"}]
    said = [{"type": "output_text", "text": "Yes?", "annotations": [], "logprobs": []}]
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": parts},
        {"type": "message", "role": "assistant", "content": said, "id": "msg_1", "status": "completed"},
        {"role": "user", "content": "Sing!"},
    ]
    contents = ("system", "Be brief."), ("user", "Hello"), ("assistant", "Yes?"), ("user", "Sing!")
    messages = [{"role": role, "content": content} for role, content in contents]
    chat = await client.post("/v1/chat/completions", json={"messages": messages, "temperature": 0, "max_tokens": 6})
    expected = chat.json()
    for request in ({"input": items}, {"instructions": "Be brief.", "input": items[1:]}):
        answer = await respond(client, **request)
        assert text_of(answer) == expected["choices"][0]["message"]["content"]
        assert answer["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]


async def log_text(client: httpx.AsyncClient, state: str) -> str:
    content = (await client.get(f"/v1/states/{state}/content")).content
    return gla_tokenizer().decode(load(content)["tokens"].tolist(), skip_special_tokens=False)


async def test_instructions_are_read_before_the_new_input_and_stay_in_the_state(client: httpx.AsyncClient) -> None:
    first = await respond(client, input="Hello", instructions="Be brief.")
    second = await respond(client, input="Sing!", previous_response_id=first["id"])
    third = await respond(client, input="Stop.", instructions="Be kind.", previous_response_id=second["id"])
    assert second["instructions"] is None
    text = await log_text(client, third["state"]["id"])
    before, _, after = text.partition("User: Sing!")
    assert before.count("System: Be brief.\n\nUser: Hello") == 1
    assert "System:" not in after.partition("System: Be kind.\n\nUser: Stop.")[0]
    assert after.count("System: Be kind.\n\nUser: Stop.\n\nAssistant:") == 1


async def test_an_incomplete_answer_goes_on_without_input(client: httpx.AsyncClient) -> None:
    whole = await respond(client, input="Hello", max_output_tokens=12, ignore_eos=True)
    part = await respond(client, input="Hello", max_output_tokens=5, ignore_eos=True)
    assert part["incomplete_details"] == {"reason": "max_output_tokens"}
    assert part["status"] == part["output"][0]["status"] == "incomplete"
    assert part["completed_at"] is None
    rest = await respond(client, previous_response_id=part["id"], max_output_tokens=7, ignore_eos=True)
    assert text_of(part) + text_of(rest) == text_of(whole)
    assert rest["usage"]["input_tokens"] == rest["usage"]["input_tokens_details"]["cached_tokens"]


async def test_a_response_is_one_state_with_its_metadata_as_labels(client: httpx.AsyncClient) -> None:
    told = {"input": "Hello", "metadata": {"topic": "sea"}, "store": {"labels": ["mine"], "ttl": 500, "pinned": True}}
    answer, twin = await respond(client, **told), await respond(client, input="Hello")
    assert answer["metadata"] == {"topic": "sea"}
    assert answer["state"]["id"] == f"st_{hashlib.sha256(answer['id'].encode()).hexdigest()}"
    (shown,) = (await client.get("/v1/states", params={"label": "topic=sea"})).json()["data"]
    assert shown["id"] == answer["state"]["id"]
    assert shown["labels"] == ["mine", "topic=sea"]
    assert shown["pinned"] is True
    assert 490 < shown["expires"] - shown["created"] <= 501
    states = (await client.get("/v1/states")).json()["data"]
    assert {state["id"] for state in states} == {answer["state"]["id"], twin["state"]["id"]}
    assert len({state["content"] for state in states}) == 1, "the same content is kept once"
    by_state = await respond(client, input="Go on", state=answer["state"]["id"], store=False)
    by_response = await respond(client, input="Go on", previous_response_id=answer["id"], store=False)
    assert text_of(by_state) == text_of(by_response)


async def test_a_deleted_response_takes_its_content_along(client: httpx.AsyncClient, tmp_path: Path) -> None:
    answer, twin = await respond(client, input="Hello"), await respond(client, input="Hello")
    for each, left in ((answer, 1), (twin, 0)):
        deleted = await client.delete(f"{PATH}/{each['id']}")
        assert deleted.json() == {"id": each["id"], "object": "response", "deleted": True}
        assert len(list(tmp_path.glob("content/*"))) == left
    again = await client.delete(f"{PATH}/{answer['id']}")
    assert (again.status_code, error_of(again)["code"]) == (404, "response_not_found")
