"""`repeat`: the forms of JRT-Prompt, what they read, and how they go on from states."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from ostinato.engine.service import Service
from tests.server.harness import error_of, events, real_service, serving

pytestmark = pytest.mark.asyncio
CONTEXT = "The king had three daughters and a horse."
QUESTION = "Who had a horse?"
OTHER = "How many daughters?"
GREEDY = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "max_tokens": 5}
BEGINS = 1  # <s>


@pytest.fixture
def service() -> Service:
    return real_service(prefix_cache=1 << 24)


@pytest_asyncio.fixture
async def client(tmp_path: Path, service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(service, state_store=(str(tmp_path),)) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.is_success, response.text
    return response.json()


async def complete(client: httpx.AsyncClient, **body: Any) -> Any:
    return await post(client, "/v1/completions", **{**GREEDY, **body})


async def preview(client: httpx.AsyncClient, **body: Any) -> Any:
    (prompt,) = (await post(client, "/v1/prompts/preview", **body))["prompts"]
    return prompt


async def ids_of(client: httpx.AsyncClient, text: str, *, special: bool = True) -> list[int]:
    found = await post(client, "/tokenize", prompt=text, add_special_tokens=special)
    ids: list[int] = found["tokens"]
    return ids


def read_of(answer: Any) -> int:
    """Prompt tokens that `usage` says were read."""
    usage = answer["usage"]
    read: int = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    return read


def about(question: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": CONTEXT, "part": "context"},
        {"role": "user", "content": question, "part": "question"},
    ]


def unmarked(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in message.items() if key != "part"} for message in messages]


@pytest.mark.parametrize("times", [2, 3, 8])
@pytest.mark.parametrize("prompt", [CONTEXT, "et"])  # of "etet" the tokenizer makes "e", "te", "t"
async def test_a_repeated_text_has_the_tokens_of_the_text_written_out(
    client: httpx.AsyncClient, prompt: str, times: int
) -> None:
    repeated = await complete(client, prompt=prompt, repeat=times, cache_prompt=False)
    written = await complete(client, prompt=prompt * times, cache_prompt=False)
    assert repeated["choices"] == written["choices"]
    assert repeated["usage"] == written["usage"]
    ids = repeated["choices"][0]["prompt_token_ids"]
    assert ids.count(BEGINS) == 1, "a special token between the readings"
    if prompt == "et":
        assert len(ids) != 1 + times * (len(await ids_of(client, prompt)) - 1), "this case tests nothing"


async def test_repeated_token_ids_are_those_ids_again(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt=[[BEGINS, 70, 71], [72]], repeat=3)
    given = [choice["prompt_token_ids"] for choice in answer["choices"]]
    assert given == [[BEGINS, 70, 71] * 3, [72, 72, 72]]
    assert answer["usage"]["prompt_tokens"] == 12


async def test_once_is_as_without(client: httpx.AsyncClient) -> None:
    told = {"prompt": CONTEXT, "cache_prompt": False}
    assert (await complete(client, repeat=1, **told))["choices"] == (await complete(client, **told))["choices"]


async def test_repeated_messages_are_the_messages_sent_again(client: httpx.AsyncClient) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    told = {**GREEDY, "cache_prompt": False}
    repeated = await post(client, "/v1/chat/completions", messages=messages, repeat=2, **told)
    written = await post(client, "/v1/chat/completions", messages=messages * 2, **told)
    assert repeated["choices"] == written["choices"]
    told = {"temperature": 0, "max_output_tokens": 5, "instructions": "Be brief.", "input": QUESTION}
    response = await post(client, "/v1/responses", repeat=2, store=False, ignore_eos=True, **told)
    assert response["output"][0]["content"][0]["text"] == written["choices"][0]["message"]["content"]
    assert response["usage"]["input_tokens"] == written["usage"]["prompt_tokens"]


# Written out from the paper's figure and from the templates of its experiments.
FORMS = [
    ({}, "C? Q!\nC? Q!"),
    ({"times": 1}, "C? Q!"),
    ({"times": 3, "separator": "\n\n"}, "C? Q!\n\nC? Q!\n\nC? Q!"),
    ({"order": "cqcq", "times": 2, "join": "/", "separator": "|"}, "C?/Q!|C?/Q!"),
    ({"order": "qccq"}, "Q! C?\nC? Q!"),
    ({"order": "qccq", "opening": "Information about Q."}, "Information about Q. C?\nC? Q!"),
    ({"order": "cqcq", "opening": "P:", "join": "", "separator": ""}, "C?P:C?Q!"),
    ({"order": "ccq"}, "C?\nC? Q!"),
    ({"order": "qcq"}, "Q! C?\nQ!"),
    ({"order": "qcqcq", "opening": "P"}, "P C?\nP C?\nQ!"),
]


@pytest.mark.parametrize(("options", "text"), FORMS)
async def test_the_forms(client: httpx.AsyncClient, options: dict[str, Any], text: str) -> None:
    repeat = {"context": "C?", "question": "Q!", **options}
    assert (await preview(client, repeat=repeat))["text"] == "<s>" + text
    formed = await complete(client, repeat=repeat, cache_prompt=False, echo=True)
    written = await complete(client, prompt=text, cache_prompt=False, echo=True)
    assert formed["choices"] == written["choices"]
    assert formed["usage"] == written["usage"]


@pytest.mark.parametrize(("order", "expected"), [("cqcq", "cqcq"), ("qccq", "qccq"), (None, "cqcqcq")])
async def test_the_forms_of_marked_messages(client: httpx.AsyncClient, order: str | None, expected: str) -> None:
    system = {"role": "system", "content": "Be brief."}
    context, question = about(QUESTION)
    parts = dict(zip("cq", unmarked([context, question]), strict=True))
    repeat = {"times": 3} if order is None else {"order": order}
    told = {**GREEDY, "cache_prompt": False}
    marked = [system, context, question]
    formed = await post(client, "/v1/chat/completions", messages=marked, repeat=repeat, **told)
    written = [system, *(parts[letter] for letter in expected)]
    plain = await post(client, "/v1/chat/completions", messages=written, **told)
    assert formed["choices"] == plain["choices"]
    response = await post(client, "/v1/responses", input=marked, repeat=repeat, store=False, max_output_tokens=1)
    assert response["usage"]["input_tokens"] == plain["usage"]["prompt_tokens"]


@pytest.mark.parametrize("order", ["ccq", "cqcq", "cqccq"])
async def test_the_prefix_cache_keeps_the_first_reading(
    client: httpx.AsyncClient, service: Service, order: str
) -> None:
    first = await complete(client, repeat={"order": order, "context": CONTEXT, "question": QUESTION})
    assert read_of(first) == first["usage"]["prompt_tokens"]
    told = {"repeat": {"order": order, "context": CONTEXT, "question": OTHER}}
    before = service.stats().read_tokens_total
    second = await complete(client, **told, max_tokens=1)
    context = len(await ids_of(client, CONTEXT))
    assert service.stats().read_tokens_total - before == read_of(second)
    assert second["usage"]["prompt_tokens_details"] == {"cached_tokens": context, "cache_reason": "hit"}
    if order == "ccq":
        again = await ids_of(client, f"\n{CONTEXT} {OTHER}", special=False)
        assert read_of(second) == len(again), "it is not the question and the context"
    fresh = await complete(client, **told, max_tokens=1, cache_prompt=False)
    assert second["choices"] == fresh["choices"]


async def test_the_first_reading_of_a_number_and_of_messages_is_kept(client: httpx.AsyncClient) -> None:
    assert read_of(await complete(client, prompt="et", repeat=2)) == 4
    third = await complete(client, prompt="et", repeat=3, max_tokens=1)
    assert third["usage"]["prompt_tokens_details"] == {"cached_tokens": 2, "cache_reason": "hit"}, "not before 'te'"
    told = {**GREEDY, "max_tokens": 1, "repeat": {"order": "ccq"}}
    await post(client, "/v1/chat/completions", messages=about(QUESTION), **told)
    second = await post(client, "/v1/chat/completions", messages=about(OTHER), **told)
    context = len(await ids_of(client, f"User: {CONTEXT}\n\n"))
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == context
    fresh = await post(client, "/v1/chat/completions", messages=about(OTHER), **told, cache_prompt=False)
    assert second["choices"] == fresh["choices"]


async def test_what_may_not_be_cached_is_not_kept(client: httpx.AsyncClient, service: Service) -> None:
    told = {"order": "ccq", "context": CONTEXT, "question": QUESTION}
    await complete(client, repeat=told, cache_prompt=False)
    assert service.stats().cache_states == 0
    await complete(client, repeat=told)
    assert service.stats().cache_states == 3, "first reading, prompt, answer"


@pytest.mark.parametrize("sends_context", [True, False])
@pytest.mark.parametrize("order", ["ccq", "cqcq"])
async def test_many_questions_from_one_stored_state_in_one_batch(
    client: httpx.AsyncClient, service: Service, order: str, sends_context: bool
) -> None:
    state = await post(client, "/v1/states", prompt=CONTEXT)
    questions = [QUESTION, OTHER, "Why?"]
    repeat = {"order": order, "question": questions, "from_state": True}
    if sends_context:
        repeat["context"] = CONTEXT
    before, told = service.stats(), {"max_tokens": 1, "cache_prompt": False}
    asked = await complete(client, state=state["id"], repeat=repeat, **told)
    after = service.stats()
    read = after.read_tokens_total - before.read_tokens_total
    assert after.steps_total - before.steps_total == 1, "they were not read together"
    context = len(await ids_of(client, CONTEXT, special=False))
    again = [len(await ids_of(client, f" {question}", special=False)) for question in questions]
    assert read == read_of(asked) == sum(1 + context + order.count("q") * length for length in again)
    assert asked["usage"]["prompt_tokens_details"] == {"cached_tokens": 3 * state["tokens"], "cache_reason": "state"}
    whole = await complete(client, repeat={**repeat, "from_state": False, "context": CONTEXT}, **told)
    assert [c["token_ids"] for c in asked["choices"]] == [c["token_ids"] for c in whole["choices"]]
    begins = await ids_of(client, CONTEXT)
    for rest, all_of_it in zip(asked["choices"], whole["choices"], strict=True):
        assert begins + rest["prompt_token_ids"] == all_of_it["prompt_token_ids"]
    assert asked["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


async def test_a_token_across_the_end_of_the_context_is_no_beginning_of_the_text(client: httpx.AsyncClient) -> None:
    state = (await post(client, "/v1/states", prompt="set"))["id"]
    repeat = {"order": "cqcq", "question": "e?", "join": "", "from_state": True}
    refused = error_of(
        await client.post("/v1/completions", json={"state": state, "repeat": {**repeat, "context": "set"}})
    )
    assert refused["param"] == "repeat.context"
    assert "part after 3 tokens" in refused["message"]
    rest = await preview(client, state=state, repeat=repeat)
    assert rest["text"] == "e?\nsete?"
    assert rest["prompt_tokens"] == rest["state_tokens"] + len(rest["token_ids"])


async def test_a_private_state_needs_the_context_and_checks_it(client: httpx.AsyncClient) -> None:
    state = (await post(client, "/v1/states", prompt=CONTEXT, private=True))["id"]
    repeat = {"order": "ccq", "question": QUESTION, "from_state": True}
    told = {"state": state, "max_tokens": 2, "temperature": 0, "return_token_ids": True}
    for context in ({}, {"context": "The queen."}):
        refused = await client.post("/v1/completions", json={**told, "repeat": {**repeat, **context}})
        assert error_of(refused)["param"] == "repeat.context"
    asked = await complete(client, state=state, repeat={**repeat, "context": CONTEXT})
    whole = await complete(client, repeat={"order": "ccq", "context": CONTEXT, "question": QUESTION})
    assert asked["choices"][0]["token_ids"] == whole["choices"][0]["token_ids"]


async def test_messages_behind_a_state_that_has_read_the_context(client: httpx.AsyncClient, service: Service) -> None:
    messages = about(QUESTION)
    state = await post(client, "/v1/states", messages=unmarked(messages)[:1])
    repeat, told = {"order": "cqcq"}, {**GREEDY, "cache_prompt": False}
    before = service.stats().read_tokens_total
    behind = {"messages": messages, "state": state["id"], "repeat": {**repeat, "from_state": True}}
    asked = await post(client, "/v1/chat/completions", **behind, **{**told, "max_tokens": 1})
    whole = await post(client, "/v1/chat/completions", messages=messages, repeat=repeat, **{**told, "max_tokens": 1})
    assert asked["choices"][0]["token_ids"] == whole["choices"][0]["token_ids"]
    given = [answer["choices"][0]["prompt_token_ids"] for answer in (asked, whole)]
    assert given[1][state["tokens"] :] == given[0]
    assert read_of(asked) == len(given[0])
    assert service.stats().read_tokens_total - before == len(given[0]) + len(given[1])
    response = await post(
        client,
        "/v1/responses",
        input=messages,
        state=state["id"],
        repeat={**repeat, "from_state": True},
        max_output_tokens=1,
    )
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == state["tokens"]
    assert response["usage"]["input_tokens"] == whole["usage"]["prompt_tokens"]


async def test_without_from_state_the_whole_form_follows_the_state(client: httpx.AsyncClient) -> None:
    state = await post(client, "/v1/states", prompt="Once.")
    formed = await complete(client, state=state["id"], repeat={"context": " C", "question": "Q"})
    written = await complete(client, state=state["id"], prompt=" C Q\n C Q")
    assert formed["choices"] == written["choices"]
    twice = await complete(client, state=state["id"], prompt=" C", repeat=2)
    assert twice["choices"] == (await complete(client, state=state["id"], prompt=" C C"))["choices"]


async def test_a_marked_checkpoint_is_stored_once(client: httpx.AsyncClient) -> None:
    context, question = about(QUESTION)
    told = {"messages": [{**context, "checkpoint": "read"}, question], "repeat": {"order": "cqcq"}, "store": True}
    answer = await post(client, "/v1/chat/completions", max_tokens=1, **told)
    (mark,) = answer["checkpoints"]
    assert mark["mark"] == "read"
    shown = await preview(client, messages=told["messages"], repeat=told["repeat"])
    assert mark["tokens"] == shown["first_reading"]


async def test_streams_read_the_same(client: httpx.AsyncClient) -> None:
    told = {"repeat": {"context": CONTEXT, "question": QUESTION}, "cache_prompt": False, **GREEDY}
    whole = await complete(client, **told)
    stream = await events(client, "/v1/completions", **told, stream_options={"include_usage": True})
    assert stream[-2]["usage"] == whole["usage"]
    assert [i for e in stream[:-2] for i in e["choices"][0]["token_ids"]] == whole["choices"][0]["token_ids"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "x", "repeat": 0}, "repeat"),
    ({"prompt": "x", "repeat": 9}, "repeat"),
    ({"prompt": "x", "repeat": True}, "repeat"),
    ({"prompt": "x", "repeat": {"question": "q", "context": "c"}}, "prompt"),
    ({"repeat": {"times": 9, "question": "q", "context": "c"}}, "repeat.times"),
    ({"repeat": {"question": "q"}}, "repeat.context"),
    ({"repeat": {"context": "c"}}, "repeat.question"),
    ({"repeat": {"context": "c", "question": ""}}, "repeat.question"),
    ({"repeat": {"context": "c", "question": []}}, "repeat.question"),
    ({"repeat": {"context": "", "question": "q"}}, "repeat.context"),
    *(
        ({"repeat": {"context": "c", "question": "q", "order": order}}, "repeat.order")
        for order in ("", "q", "cc", "cqc", "cqqcq", "cxcq", "c" * 9 + "q", "cq\n")
    ),
    ({"repeat": {"context": "c", "question": "q", "order": "ccq", "times": 3}}, "repeat.times"),
    ({"repeat": {"context": "c", "question": "q", "order": "ccq", "opening": "p"}}, "repeat.opening"),
    ({"repeat": {"context": "c", "question": ["q", "r"], "opening": "p"}}, "repeat.opening"),
    ({"repeat": {"context": "c", "question": "q", "from_state": True}}, "repeat.from_state"),
    ({"repeat": {"context": "c", "question": "q", "more": 1}}, "repeat.more"),
]


@pytest.mark.parametrize(("body", "param"), WRONG)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/prompts/preview"])
async def test_what_makes_no_sense_is_refused(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param


SAID = {"role": "user", "content": "hi"}
WRONG_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": about("q")}, "messages"),
    ({"messages": about("q"), "repeat": 2}, "messages"),
    ({"messages": [SAID], "repeat": {"times": 2}}, "messages"),
    ({"messages": about("q")[:1], "repeat": {"times": 2}}, "messages"),
    ({"messages": [*about("q"), SAID], "repeat": {"times": 2}}, "messages"),
    ({"messages": about("q"), "repeat": {"context": "c"}}, "repeat.context"),
    ({"messages": about("q"), "repeat": {"separator": "\n"}}, "repeat.separator"),
    ({"messages": about("q"), "repeat": {"from_state": True}}, "repeat.from_state"),
    ({"messages": [], "repeat": 2}, "repeat"),
    ({"messages": [{**SAID, "part": "answer"}], "repeat": 2}, "messages[0].part"),
]


@pytest.mark.parametrize(("body", "param"), WRONG_CHATS)
async def test_messages_that_make_no_sense_are_refused(
    client: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    for path in ("/v1/chat/completions", "/v1/prompts/preview"):
        assert error_of(await client.post(path, json=body))["param"] == param
    response = {**{key: value for key, value in body.items() if key != "messages"}, "input": body["messages"]}
    found = error_of(await client.post("/v1/responses", json=response))
    assert found["param"] == param.replace("messages", "input")


async def test_behind_a_state_nothing_goes_before_what_it_has_read(client: httpx.AsyncClient) -> None:
    state = (await post(client, "/v1/states", prompt=CONTEXT))["id"]
    first = {"order": "qccq", "from_state": True}
    for body, param in (
        ({"repeat": {**first, "question": "q"}}, "repeat.order"),
        ({"repeat": 2}, "repeat"),
        ({"messages": about("q"), "repeat": first}, "repeat.from_state"),
        ({"messages": [SAID, *about("q")], "repeat": {"from_state": True}}, "repeat.from_state"),
    ):
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        assert error_of(await client.post(path, json={**body, "state": state}))["param"] == param
    assert error_of(await client.post("/tokenize", json={"messages": about("q")}))["param"] == "messages"


PREVIEWED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": CONTEXT}),
    ("/v1/completions", {"prompt": CONTEXT, "repeat": 2, "add_special_tokens": False}),
    ("/v1/completions", {"prompt": "et", "repeat": 3}),
    ("/v1/completions", {"repeat": {"context": CONTEXT, "question": [QUESTION, OTHER], "order": "qccq"}}),
    ("/v1/chat/completions", {"messages": about(QUESTION), "repeat": {"times": 2}}),
    ("/v1/responses", {"input": QUESTION, "instructions": "Be brief.", "repeat": 2}),
]


@pytest.mark.parametrize(("path", "body"), PREVIEWED)
async def test_a_preview_is_the_prompt_and_runs_nothing(
    client: httpx.AsyncClient, service: Service, path: str, body: dict[str, Any]
) -> None:
    steps = service.stats().steps_total
    found = await post(client, "/v1/prompts/preview", **body)
    query = {
        k: v if k in ("prompt", "input", "instructions") else httpx.Response(200, json=v).text for k, v in body.items()
    }
    response = await client.get("/v1/prompts/preview", params=query)
    assert response.json() == found
    assert service.stats().steps_total == steps
    answer = await post(client, path, **body)
    usage = answer["usage"]
    assert found["prompt_tokens"] == usage.get("prompt_tokens", usage.get("input_tokens"))
    if path == "/v1/responses":
        return
    choices = (await post(client, path, **body, return_token_ids=True, max_tokens=1))["choices"]
    assert [prompt["token_ids"] for prompt in found["prompts"]] == [c["prompt_token_ids"] for c in choices]
    for prompt in found["prompts"]:
        again = await post(client, "/detokenize", tokens=prompt["token_ids"])
        assert prompt["text"] == again["prompt"]


async def test_a_preview_of_what_cannot_be_read(client: httpx.AsyncClient) -> None:
    path = "/v1/prompts/preview"
    for query, param in (
        ({"repeat": "2"}, "repeat"),
        ({"prompt": "x", "repeat": "two"}, "repeat"),
        ({"prompt": "x", "what": "1"}, "what"),
        ([("prompt", "x"), ("prompt", "y")], "prompt"),
        ({"messages": "[]"}, "messages"),
        ({"messages": '[{"role": "user"}]'}, "messages[0].content"),
    ):
        response = await client.get(path, params=query)  # type: ignore[arg-type]  # both kinds are taken
        assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert error_of(await client.post(path, json={"prompt": [100_000]}))["param"] == "prompt"
    missing = await client.post(path, json={"prompt": "x", "state": f"st_{64 * '0'}"})
    assert error_of(missing)["code"] == "state_not_found"
