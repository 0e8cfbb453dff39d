"""The routes of /v1/states, and what the other routes say of states."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from safetensors.torch import load

from ostinato.engine.service import Service
from ostinato.engine.store.blobs import open_blobs
from tests.server.harness import GLA, error_of, real_service, serving

pytestmark = pytest.mark.asyncio
PROMPT = list(range(10, 40))
GREEDY = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture
def service() -> Service:
    return real_service(GLA)


@pytest_asyncio.fixture
async def client(place: str, service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """On every kind of store."""
    async with serving(service, state_store=(place,)) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, status: int = 200, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


async def get(client: httpx.AsyncClient, path: str, **params: Any) -> Any:
    response = await client.get(path, params=params)
    assert response.status_code == 200, response.text
    return response.json()


async def create(client: httpx.AsyncClient, **body: Any) -> Any:
    return await post(client, "/v1/states", 201, **{"prompt": PROMPT, **body})


async def complete(client: httpx.AsyncClient, **body: Any) -> Any:
    return await post(client, "/v1/completions", **{**GREEDY, **body})


async def test_a_state_is_what_was_read(client: httpx.AsyncClient, service: Service) -> None:
    made = await create(client, labels=["a", "b", "a"], ttl=100, pinned=True)
    assert made["tokens"] == 30
    assert made["labels"] == ["a", "b"]
    assert made["pinned"] is True
    assert 90 < made["expires"] - made["created"] <= 101
    assert made["usage"]["prompt_tokens"] == 30
    assert made["usage"]["completion_tokens"] == 0
    shown = await get(client, f"/v1/states/{made['id']}")
    assert {key: made[key] for key in shown} == shown
    read = service.stats().read_tokens_total
    answer = await complete(client, state=made["id"], prompt=[1, 2], max_tokens=4)
    assert service.stats().read_tokens_total - read == 2 + 3
    whole = await complete(client, prompt=[*PROMPT, 1, 2], max_tokens=4)
    assert answer["choices"] == [{**whole["choices"][0], "prompt_token_ids": [1, 2]}]
    assert answer["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"] == 32
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 30, "cache_reason": "state"}


async def test_the_same_state_stored_twice_is_one(client: httpx.AsyncClient) -> None:
    assert (await create(client, labels=["x"]))["id"] == (await create(client, labels=["y"]))["id"]
    (only,) = (await get(client, "/v1/states"))["data"]
    assert only["labels"] == ["x", "y"]


async def test_lists_come_in_pages_and_by_label_and_parent(client: httpx.AsyncClient) -> None:
    made = [await create(client, prompt=[i, i + 1], labels=["even" if i % 2 == 0 else "odd"]) for i in range(5)]
    child = await create(client, state=made[0]["id"], prompt=[7])
    first = await get(client, "/v1/states", limit=4)
    assert first["has_more"] is True
    second = await get(client, "/v1/states", limit=4, after=first["data"][-1]["id"])
    assert second["has_more"] is False
    listed = [state["id"] for state in first["data"] + second["data"]]
    assert listed == [child["id"], *[state["id"] for state in reversed(made)]]
    assert [s["id"] for s in (await get(client, "/v1/states", label="odd"))["data"]] == [made[3]["id"], made[1]["id"]]
    assert [s["id"] for s in (await get(client, "/v1/states", parent=made[0]["id"]))["data"]] == [child["id"]]


async def test_labels_pins_and_expiry_can_be_changed(client: httpx.AsyncClient) -> None:
    made = await create(client, labels=["old"], ttl=50)
    path = f"/v1/states/{made['id']}"
    changed = await post(client, path, labels=["new"], pinned=True)
    assert (changed["labels"], changed["pinned"], changed["expires"]) == (["new"], True, made["expires"])
    changed = await post(client, path, ttl=0)
    assert (changed["labels"], changed["expires"]) == (["new"], None)
    assert await get(client, path) == changed


async def test_children_keep_working_when_their_parent_is_deleted(client: httpx.AsyncClient) -> None:
    parent = await create(client)
    child = await create(client, state=parent["id"], prompt=[3, 4])
    assert child["parent"] == parent["id"]
    expected = await complete(client, state=child["id"], max_tokens=3)
    response = await client.delete(f"/v1/states/{parent['id']}")
    assert response.json() == {"id": parent["id"], "object": "state", "deleted": True}
    assert error_of(await client.get(f"/v1/states/{parent['id']}"))["code"] == "state_not_found"
    again = await complete(client, state=child["id"], max_tokens=3)
    assert again["choices"] == expected["choices"]


async def test_forks_share_their_content_and_go_their_own_ways(client: httpx.AsyncClient, place: str) -> None:
    parent = await create(client)
    forks = (await post(client, f"/v1/states/{parent['id']}/fork", 201, labels=["left", "right"]))["data"]
    more = (await post(client, f"/v1/states/{parent['id']}/fork", 201, n=3))["data"]
    assert len({fork["id"] for fork in forks + more} | {parent["id"]}) == 6
    assert {fork["content"] for fork in forks + more} == {parent["content"]}
    assert [fork["labels"] for fork in forks] == [["left"], ["right"]]
    assert {fork["parent"] for fork in forks + more} == {parent["id"]}
    assert len(list(open_blobs(place).list("content/"))) == 1
    ends = [await complete(client, state=fork["id"], prompt=[8], max_tokens=2, store=True) for fork in forks]
    assert [end["state"]["parent"] for end in ends] == [fork["id"] for fork in forks]
    assert ends[0]["choices"] == ends[1]["choices"]


async def test_going_back_by_tokens_and_to_a_mark(client: httpx.AsyncClient, service: Service) -> None:
    made = await create(client, checkpoints={"early": 4, "late": 20})
    marks = {state["mark"]: state for state in made["checkpoints"]}
    assert (marks["early"]["tokens"], marks["late"]["tokens"]) == (4, 20)
    assert (marks["late"]["parent"], made["parent"]) == (marks["early"]["id"], marks["late"]["id"])
    path = f"/v1/states/{made['id']}/rewind"
    assert (await post(client, path, 201, mark="early"))["id"] == marks["early"]["id"]
    read = service.stats().read_tokens_total
    back = await post(client, path, 201, back=7, labels=["back"])
    assert service.stats().read_tokens_total - read == 3, "it was not read from the nearest checkpoint on"
    assert (back["tokens"], back["parent"], back["labels"]) == (23, marks["late"]["id"], ["back"])
    first = await post(client, path, 201, tokens=2)
    assert (first["tokens"], first["parent"]) == (2, None)
    named = await post(client, path, 201, mark="early", labels=["mine"], ttl=60)
    assert (named["tokens"], named["labels"], named["parent"]) == (4, ["mine"], marks["early"]["id"])
    assert named["expires"] is not None
    assert (await get(client, f"/v1/states/{marks['early']['id']}"))["labels"] == []
    for state, length in ((back, 23), (first, 2)):
        answer = await complete(client, state=state["id"], max_tokens=4)
        whole = await complete(client, prompt=PROMPT[:length], max_tokens=4)
        assert answer["choices"][0]["token_ids"] == whole["choices"][0]["token_ids"]
    for body, param in (
        ({"back": 30}, "tokens"),
        ({"mark": "none"}, "mark"),
        ({}, "back"),
        ({"back": 1, "tokens": 1}, "back"),
    ):
        assert error_of(await client.post(path, json=body))["param"] == param


async def test_checkpoints_that_nothing_would_keep_are_refused(client: httpx.AsyncClient) -> None:
    body = {"prompt": PROMPT, "max_tokens": 1, "checkpoints": {"early": 4}}
    refused = error_of(await client.post("/v1/completions", json={**body, "cache_prompt": False}))
    assert refused["param"] == "checkpoints"
    await complete(client, **body, store=True, cache_prompt=False)


async def test_the_tree_of_a_state(client: httpx.AsyncClient) -> None:
    root = await create(client)
    left, right = [await create(client, state=root["id"], prompt=[i]) for i in (1, 2)]
    leaf = await create(client, state=left["id"], prompt=[3])
    await create(client, prompt=[9, 9])
    tree = (await get(client, f"/v1/states/{leaf['id']}/tree"))["data"]
    assert [state["id"] for state in tree] == [root["id"], right["id"], left["id"], leaf["id"]]
    assert (await get(client, f"/v1/states/{leaf['id']}/tree", limit=2))["has_more"] is True


async def test_a_file_can_be_taken_elsewhere_and_brought_back(client: httpx.AsyncClient, tmp_path: Path) -> None:
    made = await create(client)
    path = f"/v1/states/{made['id']}/content"
    whole = await client.get(path)
    assert load(whole.content)["tokens"].tolist() == PROMPT, "another tool cannot read the file"
    etag = whole.headers["etag"]
    assert etag == f'"{made["content"]}"'
    assert (await client.get(path, headers={"if-none-match": f'"x", {etag}'})).status_code == 304
    size = len(whole.content)
    for header, start, stop in (("bytes=0-9", 0, 10), ("bytes=100-", 100, size), ("bytes=-7", size - 7, size)):
        part = await client.get(path, headers={"range": header})
        assert part.status_code == 206
        assert part.content == whole.content[start:stop]
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
    assert (await client.get(path, headers={"range": "bytes=0-1", "if-range": '"other"'})).content == whole.content
    assert error_of(await client.get(path, headers={"range": f"bytes={size}-"}))["code"] == "range_not_satisfiable"
    expected = await complete(client, state=made["id"], max_tokens=5)
    async with serving(real_service(GLA), state_store=(str(tmp_path / "elsewhere"),)) as other:
        brought = await other.put(path, content=whole.content, params={"label": ["from", "afar"], "ttl": 60})
        assert brought.status_code == 201, brought.text
        assert brought.json()["labels"] == ["from", "afar"]
        assert (await complete(other, state=made["id"], max_tokens=5))["choices"] == expected["choices"]


async def test_a_private_state_keeps_no_tokens(client: httpx.AsyncClient) -> None:
    told = {"max_tokens": 4, **GREEDY}
    first = await complete(client, prompt=PROMPT, store={"private": True}, **told)
    content = (await client.get(f"/v1/states/{first['state']['id']}/content")).content
    assert "tokens" not in load(content)
    rest = await complete(client, state=first["state"]["id"], prompt=[5], store=True, **told)
    whole = await complete(client, prompt=[*PROMPT, *first["choices"][0]["token_ids"], 5], **told)
    assert rest["choices"][0]["token_ids"] == whole["choices"][0]["token_ids"]
    content = (await client.get(f"/v1/states/{rest['state']['id']}/content")).content
    assert "tokens" not in load(content), "what goes on from a private state is not private"
    path = f"/v1/states/{first['state']['id']}/rewind"
    assert "private" in error_of(await client.post(path, json={"back": 1}))["message"]
    refused = await client.post(
        "/v1/completions", json={"state": first["state"]["id"], "prompt": "x", "repetition_penalty": 1.1}
    )
    assert error_of(refused)["param"] == "repetition_penalty"


async def test_a_lossy_state_says_so_and_is_near(client: httpx.AsyncClient) -> None:
    exact, lossy = await create(client), await create(client, lossy=True)
    assert (exact["lossy"], lossy["lossy"]) == (False, True)
    assert lossy["bytes"] < exact["bytes"]
    told = {"max_tokens": 0, "prompt_logprobs": 0, "prompt": [3, 4, 5]}
    scores = [
        (await complete(client, state=state["id"], **told))["choices"][0]["prompt_logprobs"]["token_logprobs"]
        for state in (exact, lossy)
    ]
    assert scores[0] != scores[1], "the lossy one is the exact one"
    assert scores[1] == pytest.approx(scores[0], abs=0.05)


async def test_prompt_logprobs_behind_a_state_are_those_of_the_whole_prompt(client: httpx.AsyncClient) -> None:
    state = (await create(client, prompt=PROMPT[:12]))["id"]
    told = {"max_tokens": 1, "prompt_logprobs": 1}
    behind = await complete(client, state=state, prompt=PROMPT[12:], **told)
    whole = await complete(client, prompt=PROMPT, **told)
    found = behind["choices"][0]["prompt_logprobs"]["token_logprobs"]
    assert found == whole["choices"][0]["prompt_logprobs"]["token_logprobs"][12:]


async def test_best_of_returns_the_likeliest(client: httpx.AsyncClient, service: Service) -> None:
    told = {"prompt": PROMPT, "max_tokens": 3, "temperature": 1.5, "seed": 1, "logprobs": 0}
    every = await complete(client, n=8, **told)
    read = service.stats().read_tokens_total
    best = await complete(client, n=2, best_of=8, **told)
    assert service.stats().read_tokens_total - read == 30 + 8 * 2
    assert best["usage"]["completion_tokens"] == 24
    means = sorted((sum(choice["logprobs"]["token_logprobs"]) for choice in every["choices"]), reverse=True)
    assert [sum(choice["logprobs"]["token_logprobs"]) for choice in best["choices"]] == means[:2]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert (await complete(client, n=1, best_of=3, prompt=PROMPT))["choices"][0]["logprobs"] is None


async def test_a_scored_prompt_is_scored_once_where_a_state_is_stored(client: httpx.AsyncClient) -> None:
    """Its answer may come with its scores, and end before its state has been read to the end."""
    told = {"prompt": PROMPT, "max_tokens": 1, "logprobs": 1, "prompt_logprobs": 0, **GREEDY}
    stored, plain = await complete(client, store=True, **told), await complete(client, **told)
    assert stored["choices"] == plain["choices"]
