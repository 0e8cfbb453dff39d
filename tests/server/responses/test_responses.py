"""/v1/responses with the official `openai` client, against servers on real sockets that share a state store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from safetensors.torch import load

from ostinato.engine.service import Service
from tests.engine.store.backends import place, redis_url, s3_endpoint, s3_url
from tests.server.harness import TIMEOUT, live_server, real_service

__all__ = ["place", "redis_url", "s3_endpoint", "s3_url"]

pytestmark = pytest.mark.asyncio(loop_scope="module")
DEMO = Path(__file__).parents[3] / "models" / "demo" / "rwkv7"
TOLD: dict[str, Any] = {"model": "tiny", "temperature": 0.8, "max_output_tokens": 10, "extra_body": {"seed": 5}}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


@asynccontextmanager
async def connected(url: str, key: str = "mine") -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=TIMEOUT) as client:
        yield client


@pytest.fixture(scope="module")
def service() -> Service:
    return real_service(DEMO)


@pytest.fixture(scope="module")
def url(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_server(service, state_store=(str(tmp_path_factory.mktemp("states")),)) as address:
        yield address


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with connected(url) as client:
        yield client


def state_of(response: Response) -> dict[str, Any]:
    """Our own field of a response."""
    state: dict[str, Any] = response.model_extra["state"] if response.model_extra else {}
    return state


async def log_of(client: openai.AsyncOpenAI, response: Response) -> list[int]:
    """The tokens that the state of a response has read."""
    file = await client.get(f"/states/{state_of(response)['id']}/content", cast_to=httpx.Response)
    tokens: list[int] = load(file.content)["tokens"].tolist()
    return tokens


async def check_by_reading_anew(client: openai.AsyncOpenAI, response: Response) -> None:
    """Its answer is what the model answers to all that the response stands on, read as one prompt."""
    assert response.usage is not None
    log = await log_of(client, response)
    prompt, answer = log[: response.usage.input_tokens], log[response.usage.input_tokens :]
    assert len(answer) == response.usage.output_tokens > 0
    own = {"return_token_ids": True, "stop": ["\n\nUser:", "\n\nSystem:"], **TOLD["extra_body"]}
    anew = await client.completions.create(
        model="tiny", prompt=prompt, temperature=0.8, max_tokens=len(answer), extra_body=own
    )
    assert anew.usage is not None
    assert anew.usage.prompt_tokens == len(prompt)
    assert anew.choices[0].model_dump()["token_ids"] == answer


async def test_every_turn_reads_what_is_new_also_after_a_restart(place: str) -> None:
    previous, known = None, 0
    for turn in range(3):
        service = real_service(DEMO)
        with live_server(service, state_store=(place,)) as url:
            async with connected(url) as client:
                before = service.stats().read_tokens_total
                response = await client.responses.create(
                    **TOLD, input=f"And on day {turn}?", previous_response_id=previous
                )
                state, usage = state_of(response), response.usage
                assert usage is not None
                assert service.stats().read_tokens_total - before == state["tokens"] - known
                assert usage.input_tokens_details.cached_tokens == known
                assert usage.total_tokens == usage.input_tokens + usage.output_tokens == state["tokens"]
                assert response.previous_response_id == previous
                await check_by_reading_anew(client, response)
        previous, known = response.id, state["tokens"]


async def test_a_response_of_one_server_goes_on_at_another(tmp_path: Path) -> None:
    with (
        live_server(real_service(DEMO), state_store=(str(tmp_path),)) as here,
        live_server(real_service(DEMO), state_store=(str(tmp_path),)) as there,
    ):
        async with connected(here) as one, connected(there) as other:
            response = await one.responses.create(**TOLD, input="Who is there?")
            for turn, client in enumerate((other, one, other)):
                known = state_of(response)["tokens"]
                response = await client.responses.create(**TOLD, input=f"{turn}", previous_response_id=response.id)
                assert response.usage is not None
                assert response.usage.input_tokens_details.cached_tokens == known
            await check_by_reading_anew(one, response)


async def test_two_continuations_of_one_response_are_two_conversations(client: openai.AsyncOpenAI) -> None:
    async def conversation(*inputs: str) -> list[Response]:
        turns = [await client.responses.create(**TOLD, input=inputs[0])]
        for text in inputs[1:]:
            turns.append(await client.responses.create(**TOLD, input=text, previous_response_id=turns[-1].id))
        return turns

    (root, *sea), (_, *town) = [await conversation("Hello", text, "Go on.") for text in ("The sea?", "A town?")]

    async def branch(text: str) -> list[Response]:
        second = await client.responses.create(**TOLD, input=text, previous_response_id=root.id)
        third = await client.responses.create(**TOLD, input="Go on.", previous_response_id=second.id)
        return [second, third]

    forked = await asyncio.gather(branch("The sea?"), branch("A town?"), branch("The sea?"))
    texts = [[turn.output_text for turn in turns] for turns in (*forked, sea, town)]
    assert texts[0] == texts[2] == texts[3]
    assert texts[1] == texts[4] != texts[0]
    for turns in forked:
        assert state_of(turns[0])["parent"] == state_of(root)["id"]
        await check_by_reading_anew(client, turns[1])


async def test_a_stream_adds_up_to_the_whole(client: openai.AsyncOpenAI) -> None:
    told = {**TOLD, "input": "Tell me", "instructions": "Sing.", "metadata": {"topic": "song"}, "max_output_tokens": 24}
    whole = await client.responses.create(**told)
    events = [event async for event in await client.responses.create(**told, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    for event in events:
        EVENT.validate_python(event.model_dump())
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 4
    last = events[-1]
    assert last.type == "response.incomplete"
    assert "".join(deltas) == last.response.output_text == whole.output_text
    differing = {"id", "created_at", "output", "state"}
    assert last.response.model_dump(exclude=differing) == whole.model_dump(exclude=differing)
    followed = await client.responses.create(**TOLD, input="More", previous_response_id=last.response.id)
    assert state_of(followed)["parent"] == state_of(last.response)["id"] != state_of(whole)["id"]


async def test_the_clients_own_stream_helper(client: openai.AsyncOpenAI) -> None:
    """`ends` is what the model says at some point: it ends the text there, so that the response is complete."""
    told = {**TOLD, "input": "Once upon", "max_output_tokens": 24}
    whole = await client.responses.create(**told)
    ends = whole.output_text.split()[4]
    own = {**TOLD["extra_body"], "stop": [ends]}
    async with client.responses.stream(**{**told, "extra_body": own}) as stream:
        pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert final.status == "completed"
    assert final.incomplete_details is None
    assert "".join(pieces) == final.output_text == whole.output_text.partition(ends)[0]


async def test_a_response_has_openais_shape(client: openai.AsyncOpenAI) -> None:
    told = {**TOLD, "instructions": "Be kind.", "metadata": {"a": "b"}, "user": "me", "top_p": 0.9}
    raw = await client.responses.with_raw_response.create(**told, input="Hi", tools=[], truncation="disabled")
    body = raw.http_response.json()
    response = Response.model_validate(body)
    assert response.id.startswith("resp_")
    assert (response.status, response.model, response.error) == ("incomplete", "tiny", None)
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    (message,) = response.output
    assert message.type == "message"
    assert message.id.startswith("msg_")
    assert (message.status, message.role) == ("incomplete", "assistant")
    assert message.content[0].model_dump(exclude={"text"}) == {
        "type": "output_text",
        "annotations": [],
        "logprobs": [],
    }
    assert (response.instructions, response.metadata, response.user) == ("Be kind.", {"a": "b"}, "me")
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0.8, 0.9, 10)
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 0
    assert body["store"] is True
    assert body["text"] == {"format": {"type": "text"}}
    assert set(body["state"]) >= {"id", "parent", "tokens", "bytes"}


async def test_an_answer_can_be_sent_back_as_input(client: openai.AsyncOpenAI, service: Service) -> None:
    """As clients do that keep the conversation themselves."""
    first = await client.responses.create(**TOLD, input="Who are you?")
    history: list[Any] = [{"role": "user", "content": "Who are you?"}, *first.output]
    whole = await client.responses.create(**TOLD, input=[*history, {"role": "user", "content": "Really?"}])
    assert service.tokenizer is not None
    read = service.tokenizer.decode(await log_of(client, whole))
    assert f"Assistant: {first.output_text.strip()}\n\nUser: Really?" in read


async def test_what_is_not_there_is_the_clients_not_found(client: openai.AsyncOpenAI, url: str) -> None:
    kept = await client.responses.create(**TOLD, input="Hi")
    unkept = await client.responses.create(**TOLD, input="Hi", store=False)
    deleted = await client.responses.create(**TOLD, input="Hi")
    child = await client.responses.create(**TOLD, input="And?", previous_response_id=deleted.id)
    await client.responses.delete(deleted.id)
    async with connected(url, key="another's") as stranger:
        for asker, wanted in ((client, unkept), (client, deleted), (stranger, kept)):
            with pytest.raises(openai.NotFoundError) as missing:
                await asker.responses.create(**TOLD, input="And?", previous_response_id=wanted.id)
            assert (missing.value.code, missing.value.param) == ("previous_response_not_found", "previous_response_id")
            with pytest.raises(openai.NotFoundError) as missing:
                await asker.responses.delete(wanted.id)
            assert missing.value.code == "response_not_found"
    again = await client.responses.create(**TOLD, input="And?", previous_response_id=kept.id)
    assert again.output_text == child.output_text, "the kept response has the deleted one's content"
    await client.responses.create(**TOLD, input="On", previous_response_id=child.id)
