from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from ostinato.engine.errors import RequestError
from ostinato.engine.text.tokenizer import Tokenizer
from ostinato.server.protocol import GenerationRequest
from tests.server.harness import GLA, error_of, events, real_service, recites, serving, text_service

pytestmark = pytest.mark.asyncio
PATH = "/v1/completions"


async def complete(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """Prompts, logits and greedy continuations of the tiny checkpoint, computed by flash-linear-attention."""
    return load_file(GLA / "golden.safetensors")


async def test_the_whole_answer_of_a_small_request(client: httpx.AsyncClient) -> None:
    answer = await complete(client, model="tiny", prompt="Hello", max_tokens=3, temperature=0)
    assert answer["id"].startswith("cmpl-")
    assert answer["created"] > 1_700_000_000
    assert answer["system_fingerprint"].startswith("fp_")
    text = answer["choices"][0]["text"]
    assert answer == {
        "id": answer["id"],
        "object": "text_completion",
        "created": answer["created"],
        "model": "tiny",
        "system_fingerprint": answer["system_fingerprint"],
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": 3,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_reason": "off"},
        },
    }


@pytest.mark.parametrize("case", ["short", "long"])
async def test_greedy_tokens_and_logprobs_are_those_of_the_reference(
    golden: dict[str, torch.Tensor], case: str
) -> None:
    prompt, greedy = golden[f"{case}.input_ids"].tolist(), golden[f"{case}.greedy_ids"].tolist()
    body = {"prompt": prompt, "max_tokens": len(greedy), "temperature": 0, "ignore_eos": True}
    async with serving(real_service(dtype="float32")) as client:
        answer = await complete(client, **body, return_token_ids=True, logprobs=0, prompt_logprobs=0)
    (choice,) = answer["choices"]
    assert choice["token_ids"] == greedy
    assert choice["prompt_token_ids"] == prompt
    first, *others = choice["prompt_logprobs"]["token_logprobs"]
    assert first is None
    of_prompt = torch.log_softmax(golden[f"{case}.logits"], -1)[range(len(prompt) - 1), prompt[1:]]
    torch.testing.assert_close(torch.tensor(others), of_prompt, atol=1e-3, rtol=0)
    of_output = torch.log_softmax(golden[f"{case}.greedy_logits"], -1)[range(len(greedy)), greedy]
    torch.testing.assert_close(torch.tensor(choice["logprobs"]["token_logprobs"]), of_output, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"echo": True},
        {"logprobs": 3},
        {"echo": True, "logprobs": 2, "prompt_logprobs": 1},
        {"return_token_ids": True, "prompt_logprobs": 0},
        {"n": 3, "seed": 5, "temperature": 0.8, "echo": True, "logprobs": 0, "return_token_ids": True},
        {"max_tokens": 0, "echo": True, "logprobs": 1},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
async def test_a_stream_adds_up_to_the_whole_answer(client: httpx.AsyncClient, options: dict[str, Any]) -> None:
    body = {"prompt": ["Hello there", "A"], "max_tokens": 20, "temperature": 0, **options}
    whole = await complete(client, **body)
    *chunks, done = await events(client, PATH, **body, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    added = [
        _added_up([c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == i])
        for i in range(len(whole["choices"]))
    ]
    assert added == whole["choices"]


def _added_up(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """As a client would: text and lists are joined, the rest is taken from where it is set."""
    assert [piece["finish_reason"] is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    whole: dict[str, Any] = {}
    for piece in pieces:
        for key, value in piece.items():
            if isinstance(value, str | list) and key != "finish_reason":
                whole[key] = whole[key] + value if key in whole else value
            elif isinstance(value, dict):
                parts = whole.get(key) or {name: [] for name in value}
                whole[key] = {name: parts[name] + value[name] for name in value}
            elif value is not None or key not in whole:
                whole[key] = value
    return whole


async def test_n_choices_for_each_prompt_are_numbered_prompt_by_prompt(
    client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    prompts = ["one", "three"]
    answer = await complete(client, prompt=prompts, n=2, max_tokens=4, echo=True, ignore_eos=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"].startswith(prompts[i // 2]) for i, choice in enumerate(answer["choices"])] == [True] * 4
    read = sum(len(tokenizer.encode(prompt)) for prompt in prompts)
    assert answer["usage"]["prompt_tokens"] == read, "each prompt counts once"
    assert answer["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("as_list", [False, True], ids=["one", "list"])
async def test_token_ids_and_their_text_give_the_same_answer(
    client: httpx.AsyncClient, tokenizer: Tokenizer, as_list: bool
) -> None:
    ids: list[Any] = tokenizer.encode("The same prompt")
    options = {"max_tokens": 12, "temperature": 0}
    by_text = await complete(client, prompt=["The same prompt"] if as_list else "The same prompt", **options)
    by_ids = await complete(client, prompt=[ids] if as_list else ids, **options)
    assert by_text["choices"] == by_ids["choices"]


async def test_without_special_tokens_the_prompt_is_read_bare(client: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    answer = await complete(client, prompt="Hi", add_special_tokens=False, return_token_ids=True, max_tokens=1)
    assert answer["choices"][0]["prompt_token_ids"] == tokenizer.encode("Hi", add_special_tokens=False)
    assert tokenizer.encode("Hi")[0] == tokenizer.bos_token_id


async def test_null_means_absent_in_every_field(client: httpx.AsyncClient) -> None:
    extra = ["suffix", "best_of", "echo", "logprobs", "prompt_logprobs", "tools"]
    fields = {*GenerationRequest.model_fields, *extra}
    with_nulls = await complete(client, prompt="Hi", **dict.fromkeys(fields))
    without = await complete(client, prompt="Hi")
    assert with_nulls["usage"] == without["usage"]
    assert without["usage"]["completion_tokens"] <= 16, "OpenAI's default"


async def test_logit_bias_and_stop_token_ids_reach_the_sampler(client: httpx.AsyncClient) -> None:
    answer = await complete(
        client, prompt="Hi", logit_bias={"70": 100}, temperature=0, max_tokens=5, return_token_ids=True
    )
    assert answer["choices"][0]["token_ids"] == [70] * 5
    answer = await complete(
        client, prompt="Hi", logit_bias={"70": 100}, temperature=0, stop_token_ids=[70], return_token_ids=True
    )
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["stop_reason"] == 70
    assert answer["choices"][0]["text"] == ""


@pytest.mark.parametrize("keep", [False, True], ids=["cut", "kept"])
async def test_stop_strings_end_the_text(keep: bool) -> None:
    service = text_service(recites("one two three ", after=3))
    async with serving(service) as client:
        answer = await complete(
            client, prompt="Hi", max_tokens=99, stop=["xyz", "o th"], include_stop_str_in_output=keep, temperature=0
        )
    (choice,) = answer["choices"]
    assert choice["text"] == ("one two th" if keep else "one tw")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "o th")


async def test_a_stream_never_shows_half_a_character() -> None:
    service = text_service(recites("naïve 日本 ", after=3))
    async with serving(service) as client:
        *chunks, _ = await events(client, PATH, prompt="Hi", max_tokens=18, temperature=0)
    pieces = [chunk["choices"][0]["text"] for chunk in chunks]
    assert not any("�" in piece for piece in pieces[:-1]), pieces
    assert "".join(pieces).startswith("naïve 日本 ")


async def test_logprobs_list_the_token_itself_and_offsets_into_the_text() -> None:
    service = text_service(recites("héh ", after=3))
    async with serving(service) as client:
        answer = await complete(client, prompt="Hi", max_tokens=5, temperature=0, logprobs=2, echo=True)
    (choice,) = answer["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == "Hihéh "
    assert logprobs["tokens"] == ["<s>", "H", "i", "h", "bytes:\\xc3", "bytes:\\xa9", "h", " "]
    assert logprobs["text_offset"] == [0, 0, 1, 2, 3, 3, 4, 5]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    for token, logprob, top in list(
        zip(*(logprobs[k] for k in ("tokens", "token_logprobs", "top_logprobs")), strict=True)
    )[3:]:
        assert top[token] == logprob == max(top.values())
        assert len(top) == 2, "greedy: the token is one of the two best"


async def test_the_order_of_arrival_does_not_change_a_seeded_answer(client: httpx.AsyncClient) -> None:
    body = {"prompt": "Once", "seed": 11, "max_tokens": 24, "return_token_ids": True}
    alone = await complete(client, **body)
    together = await complete(client, **{**body, "prompt": ["Once", "Other", "Third"], "n": 1})
    assert together["choices"][0]["token_ids"] == alone["choices"][0]["token_ids"]


async def test_the_answer_is_compact_json_and_unescaped_utf8() -> None:
    service = text_service(recites("é", after=3))
    async with serving(service) as client:
        response = await client.post(PATH, json={"prompt": "Hi", "max_tokens": 2, "temperature": 0})
    assert "é".encode() in response.content
    assert json.loads(response.content)["choices"][0]["text"] == "é"


async def test_text_that_the_vocabulary_cannot_express_names_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str, *, add_special_tokens: bool, continues: bool) -> list[int]:
        raise RequestError(f"no token for {text!r}")

    service = text_service()
    monkeypatch.setattr(service.tokenizer, "encode", refuse)
    async with serving(service) as client:
        response = await client.post(PATH, json={"prompt": "x"})
    assert response.status_code == 400
    assert error_of(response)["param"] == "prompt"
    assert error_of(response)["message"] == "prompt: no token for 'x'"
