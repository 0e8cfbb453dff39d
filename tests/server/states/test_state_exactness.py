"""Stopping an answer anywhere, starting the server anew and going on by the state's id: the same as never stopping."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.harness import GLA, events, real_service, serving

pytestmark = pytest.mark.asyncio

DEMO = Path(__file__).parents[3] / "models" / "demo" / "rwkv7"
PROMPT = "The quick brown fox"
TOKENS = 14
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1.2, "seed": 11},
    "penalties": {
        "temperature": 1.0,
        "seed": 4,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
}
COMMON = {"ignore_eos": True, "logprobs": 2, "return_token_ids": True}


@asynccontextmanager
async def started(folder: Path, model: Path = GLA) -> AsyncIterator[httpx.AsyncClient]:
    """A server as after a start: nothing of it but the store was there before."""
    service = real_service(model, prefix_cache=10**8, max_queue=32)
    async with serving(service, state_store=(str(folder),)) as client:
        yield client


async def complete(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post("/v1/completions", json={**COMMON, **body})
    assert response.status_code == 200, response.text
    return response.json()


def ids_of(reply: Any) -> list[int]:
    ids: list[int] = reply["choices"][0]["token_ids"]
    return ids


def logprobs_of(*replies: Any) -> list[Any]:
    kept = ("tokens", "token_logprobs", "top_logprobs")
    lists = [[reply["choices"][0]["logprobs"][key] for key in kept] for reply in replies if ids_of(reply)]
    return [list(itertools.chain.from_iterable(parts)) for parts in zip(*lists, strict=True)]


@pytest.mark.parametrize("mode", MODES)
async def test_every_cut_through_an_answer(tmp_path: Path, mode: str) -> None:
    """A random model writes bytes at random, so that cuts fall into the middle of characters as well."""
    async with started(tmp_path) as client:
        whole = await complete(client, prompt=PROMPT, max_tokens=TOKENS, **MODES[mode])
        firsts = [
            await complete(client, prompt=PROMPT, max_tokens=cut, store=True, **MODES[mode]) for cut in range(TOKENS)
        ]
    text = whole["choices"][0]["text"]
    async with started(tmp_path) as client:
        for cut, first in enumerate(firsts):
            rest = await complete(client, state=first["state"]["id"], max_tokens=TOKENS - cut, **MODES[mode])
            assert ids_of(first) + ids_of(rest) == ids_of(whole), f"cut at {cut}"
            assert first["choices"][0]["text"] + rest["choices"][0]["text"] == text, f"cut at {cut}"
            assert logprobs_of(first, rest) == logprobs_of(whole), f"cut at {cut}"
            assert rest["usage"]["prompt_tokens_details"]["cache_reason"] == "state"
            assert rest["usage"]["prompt_tokens_details"]["cached_tokens"] == first["state"]["tokens"]
    pending = [first["state"].get("pending", "") for first in firsts]
    assert mode == "greedy" or any("\ufffd" in held for held in pending), "no cut fell into a character"


async def test_a_stop_string_is_found_across_the_cut(tmp_path: Path) -> None:
    async with started(tmp_path, DEMO) as client:
        free = await complete(client, prompt=PROMPT, max_tokens=TOKENS, **MODES["greedy"])
        text: str = free["choices"][0]["text"]
        stop = [text[17:23], "never written"]
        whole = await complete(client, prompt=PROMPT, max_tokens=TOKENS, stop=stop, **MODES["greedy"])
        assert whole["choices"][0]["finish_reason"] == "stop"
        length = len(ids_of(whole))
        firsts = [
            await complete(client, prompt=PROMPT, max_tokens=cut, stop=stop, store=True, **MODES["greedy"])
            for cut in range(length)
        ]
    assert any(first["state"].get("pending") for first in firsts), "no cut fell into the stop string"
    async with started(tmp_path, DEMO) as client:
        for cut, first in enumerate(firsts):
            state = first["state"]["id"]
            rest = await complete(client, state=state, max_tokens=TOKENS - cut, stop=stop, **MODES["greedy"])
            assert rest["choices"][0]["finish_reason"] == "stop"
            assert ids_of(first) + ids_of(rest) == ids_of(whole), f"cut at {cut}"
            assert first["choices"][0]["text"] + rest["choices"][0]["text"] == whole["choices"][0]["text"]


async def test_a_stopped_answer_leaves_a_state_without_its_stop_string(tmp_path: Path) -> None:
    """What goes on from it reads the same as a prompt that ends where the shown text ends."""
    async with started(tmp_path, DEMO) as client:
        free = await complete(client, prompt=[5, 6, 7], max_tokens=TOKENS, **MODES["greedy"])
        pieces: list[str] = free["choices"][0]["logprobs"]["tokens"]
        stop = pieces[4] + pieces[5]
        stopped = await complete(client, prompt=[5, 6, 7], max_tokens=TOKENS, stop=stop, store=True, **MODES["greedy"])
        shown = ids_of(free)[: len(ids_of(stopped)) - 2]
        assert stopped["choices"][0]["finish_reason"] == "stop"
        assert stopped["state"]["tokens"] == 3 + len(shown)
        told = {"max_tokens": 5, **MODES["seeded"]}
        going_on = await complete(client, state=stopped["state"]["id"], prompt=[9, 10], **told)
        expected = await complete(client, prompt=[5, 6, 7, *shown, 9, 10], cache_prompt=False, **told)
        assert ids_of(going_on) == ids_of(expected)
        assert logprobs_of(going_on) == logprobs_of(expected)


async def test_the_end_of_text_is_no_part_of_a_state(tmp_path: Path) -> None:
    async with started(tmp_path) as client:
        free = await complete(client, prompt=[1, 2], max_tokens=6, **MODES["greedy"])
        last = ids_of(free)[3]
        told = {"prompt": [1, 2], "max_tokens": 6, "stop_token_ids": [last], **MODES["greedy"]}
        stopped = await complete(client, store=True, **told)
        length = len(ids_of(stopped))
        assert ids_of(stopped)[-1] == last
        assert stopped["state"]["tokens"] == 2 + length - 1
        again = await complete(client, state=stopped["state"]["id"], **{**told, "prompt": None, "max_tokens": 1})
        assert ids_of(again) == [last], "its last logits did not choose the token that had ended the text"


@pytest.mark.parametrize("cut", [0, 1, 7])
async def test_a_stream_that_goes_on_equals_the_whole(tmp_path: Path, cut: int) -> None:
    told = {**COMMON, **MODES["seeded"]}
    async with started(tmp_path) as client:
        whole = await complete(client, prompt=PROMPT, max_tokens=TOKENS, **MODES["seeded"])
        first = await events(client, "/v1/completions", prompt=PROMPT, max_tokens=cut, store=60, **told)
        state = first[-2]["state"]["id"]
    async with started(tmp_path) as client:
        rest = await events(client, "/v1/completions", state=state, max_tokens=TOKENS - cut, store=60, **told)
    choices = [choice for event in [*first[:-1], *rest[:-1]] for choice in event["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [token for choice in choices for token in choice["token_ids"] or []] == ids_of(whole)
    assert rest[-2]["state"]["parent"] == state
    assert all("state" not in event for event in first[:-2])


async def test_sixteen_choices_from_a_state_equal_sixteen_requests(tmp_path: Path) -> None:
    async with started(tmp_path) as client:
        state = (await client.post("/v1/states", json={"prompt": PROMPT})).json()["id"]
        told = {"state": state, "prompt": " and", "max_tokens": 4, "temperature": 1.1, "seed": 3}
        together = await complete(client, n=16, store=True, **told)
        ends = [choice["state"]["id"] for choice in together["choices"]]
        assert len(set(ends)) > 8
        assert together["usage"]["prompt_tokens"] == together["choices"][0]["state"]["tokens"] - 4
        for choice in together["choices"]:
            alone = await complete(client, n=choice["index"] + 1, **told)
            assert alone["choices"][-1]["token_ids"] == choice["token_ids"]
            assert alone["choices"][-1]["logprobs"] == choice["logprobs"]
        going_on = [await complete(client, state=end, max_tokens=2, temperature=1.1, seed=3) for end in ends]
        longer = await complete(client, n=16, **{**told, "max_tokens": 6})
        for i, (choice, rest) in enumerate(zip(together["choices"], going_on, strict=True)):
            assert choice["token_ids"] + ids_of(rest) == longer["choices"][i]["token_ids"], f"choice {i}"
