"""What the routes say of a model with an encoder region (JRT-RNN): 16 tokens in this one."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from ostinato.engine.service import Service
from tests.server.harness import GOLDENS, error_of, real_service, serving
from tests.server.states.test_state_refusals import content_of, edited, upload
from tests.server.states.test_states import GREEDY, complete, post

pytestmark = pytest.mark.asyncio
LENGTH = 16
TEXT = [(11 * i + 5) % 200 for i in range(60)]


@pytest.fixture
def service() -> Service:
    return real_service(GOLDENS / "jrt", prefix_cache=10**8, dtype="float32")


@pytest_asyncio.fixture
async def client(tmp_path: Path, service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(service, state_store=(str(tmp_path),)) as client:
        yield client


def logprobs(answer: Any) -> list[float]:
    found: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"]
    return found


def cached(answer: Any) -> tuple[int, str]:
    details = answer["usage"]["prompt_tokens_details"]
    return details["cached_tokens"], details["cache_reason"]


async def test_the_model_card_names_it(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert model["encoder_length"] == LENGTH


@pytest.mark.parametrize(("path", "more"), [("/v1/states", {}), ("/v1/completions", {"store": True})])
async def test_a_checkpoint_inside_is_a_400(client: httpx.AsyncClient, path: str, more: dict[str, Any]) -> None:
    body = {"prompt": TEXT, "checkpoints": [LENGTH - 1], **more}
    answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "checkpoints"
    assert "encoder region" in error_of(answer)["message"]
    assert (await client.post(path, json={**body, "checkpoints": [LENGTH]})).is_success


async def test_a_rewind_into_the_region_is_a_400(client: httpx.AsyncClient) -> None:
    state = (await post(client, "/v1/states", 201, prompt=TEXT))["id"]
    answer = await client.post(f"/v1/states/{state}/rewind", json={"tokens": LENGTH - 1})
    assert answer.status_code == 400
    assert "the first 16 tokens of the state were read at once" in error_of(answer)["message"]
    back = await post(client, f"/v1/states/{state}/rewind", 201, tokens=LENGTH)
    again = await complete(client, state=back["id"], prompt=TEXT[LENGTH:], max_tokens=4, logprobs=1)
    whole = await complete(client, prompt=TEXT, max_tokens=4, logprobs=1, cache_prompt=False)
    assert logprobs(again) == logprobs(whole)


async def test_a_rewind_of_a_short_prompts_answer_keeps_its_region(client: httpx.AsyncClient) -> None:
    whole = await complete(client, prompt=TEXT[:9], max_tokens=8, logprobs=1, store=True)
    tokens, state = whole["choices"][0]["token_ids"], whole["state"]["id"]
    back = await post(client, f"/v1/states/{state}/rewind", 201, tokens=12)
    rest = await complete(client, state=back["id"], max_tokens=5, logprobs=1)
    assert rest["choices"][0]["token_ids"] == tokens[3:]
    assert logprobs(rest) == logprobs(whole)[3:]
    other = await complete(client, prompt=[*TEXT[:9], *tokens[:3]], max_tokens=5, logprobs=1)
    assert cached(other) == (0, "encoder_region")
    assert logprobs(other) != logprobs(rest), "the regions of the two would not be told apart"


async def test_a_stored_context_is_asked_many_questions(client: httpx.AsyncClient) -> None:
    """Shorter than the region, too."""
    for count in (9, 30):
        state = (await post(client, "/v1/states", 201, prompt=TEXT[:count]))["id"]
        answers = [await complete(client, state=state, prompt=TEXT[i : i + 9], max_tokens=3) for i in (30, 40)]
        assert [cached(answer) for answer in answers] == [(count, "state")] * 2


@pytest.mark.parametrize(("count", "expected"), [(20, (20, "hit")), (10, (0, "miss"))])
async def test_a_repeated_prompt_is_kept_behind_the_region_only(
    client: httpx.AsyncClient, count: int, expected: tuple[int, str]
) -> None:
    once, ask = TEXT[:count], {**GREEDY, "max_tokens": 3, "logprobs": 1}
    twice = await post(client, "/v1/completions", prompt=once, repeat=2, **ask)
    written_out = await post(client, "/v1/completions", prompt=once * 2, cache_prompt=False, **ask)
    assert logprobs(twice) == logprobs(written_out)
    other = await complete(client, prompt=[*once, *TEXT[40:]], max_tokens=1)
    assert cached(other) == expected


async def test_a_file_that_lies_about_its_region_is_refused(client: httpx.AsyncClient) -> None:
    state = (await post(client, "/v1/states", 201, prompt=TEXT[:9]))["id"]
    content = await content_of(client, state)
    for region in (0, 10, LENGTH + 1):
        answer = await upload(client, edited(lambda _, header, region=region: header.update(region=region))(content))  # type: ignore[misc]  # the default binds the loop's value
        assert answer.status_code == 400, region
        assert f"an encoder region of {region} tokens" in error_of(answer)["message"]
    assert (await upload(client, edited(lambda _, header: header.update(seed=5))(content))).is_success
