"""The stream of /v1/responses as bytes: named events, numbered, ended by the last of them or by an error."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from ostinato.engine.types import StepPlan
from tests.server.harness import error_of, idle, serving, text_service
from tests.server.responses.asking import PATH

pytestmark = pytest.mark.asyncio
BODY = {"input": "Hi", "stream": True, "temperature": 0}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


async def stream(client: httpx.AsyncClient, **body: Any) -> list[Any]:
    """The events, each checked against OpenAI's types, with their names."""
    response = await client.post(PATH, json={**BODY, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    found = []
    for number, frame in enumerate(response.text.removesuffix("\n\n").split("\n\n")):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENT.validate_python(event)
        found.append(event)
    return found


async def test_the_events_of_an_answer_that_ends_by_itself() -> None:
    async with serving(text_service(max_step_tokens=64)) as client:
        whole = (await client.post(PATH, json={**BODY, "stream": False, "max_output_tokens": 12})).json()
        text = whole["output"][0]["content"][0]["text"]
        stop = text[8:10]
        events = await stream(client, max_output_tokens=12, stop=[stop])
    created, in_progress, item, part, *deltas, done, part_done, item_done, completed = events
    assert [event["type"].removeprefix("response.") for event in (created, in_progress, item, part)] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
    ]
    assert created["response"] == in_progress["response"]
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    assert created["response"]["usage"] is None
    assert item["item"]["content"] == []
    assert part["part"]["text"] == ""
    assert {event["type"] for event in deltas} == {"response.output_text.delta"}
    assert len(deltas) > 1
    assert "".join(event["delta"] for event in deltas) == done["text"] == text.partition(stop)[0]
    assert part_done["part"] == item_done["item"]["content"][0]
    assert part_done["part"]["text"] == done["text"]
    assert completed["type"] == "response.completed"
    assert completed["response"]["output"] == [item_done["item"]]
    assert completed["response"]["status"] == item_done["item"]["status"] == "completed"
    assert completed["response"]["completed_at"] >= completed["response"]["created_at"]
    assert completed["response"]["id"] == created["response"]["id"]
    items = {event["item_id"] for event in (part, *deltas, done, part_done)}
    assert items == {item["item"]["id"]} == {item_done["item"]["id"]}


async def test_a_later_failure_is_the_last_event() -> None:
    steps = 0

    def fail_later(plan: StepPlan) -> None:
        nonlocal steps
        steps += not plan.chunks[0].sequence.id.startswith("warm-up")
        if steps == 4:
            raise RuntimeError("boom")

    service = text_service(before_step=fail_later, max_step_tokens=64)
    async with serving(service) as client:
        *_, last = await stream(client, max_output_tokens=20)
        await idle(service)
    assert last == {
        "type": "error",
        "sequence_number": last["sequence_number"],
        "code": "step_failed",
        "message": "engine step failed: boom",
        "param": None,
    }


async def test_a_request_that_is_not_accepted_gets_no_stream() -> None:
    async with serving(text_service()) as client:
        response = await client.post(PATH, json={**BODY, "logit_bias": {"9999": 1}})
    assert response.status_code == 400
    assert error_of(response)["param"] == "logit_bias"
