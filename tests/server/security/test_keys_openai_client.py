"""The official `openai` client against a live server that asks for keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from ostinato.server.security.api_keys import new_key
from tests.server.harness import TIMEOUT, live_server, text_service
from tests.server.security.keyed import Tenants

pytestmark = pytest.mark.asyncio


@pytest.fixture
def tenants(tmp_path: Path) -> Tenants:
    found = Tenants(tmp_path / "keys.json")
    found.add("alice")
    return found


@pytest.fixture
def url(tenants: Tenants, tmp_path: Path) -> Iterator[str]:
    with live_server(text_service(), api_keys=str(tenants.path)) as address:
        yield f"{address}/v1"


@pytest_asyncio.fixture
async def client(url: str, tenants: Tenants) -> AsyncIterator[openai.AsyncOpenAI]:
    async with of(url, tenants.keys["alice"]) as connected:
        yield connected


def of(url: str, key: str, retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=retries, timeout=TIMEOUT)


async def text(client: openai.AsyncOpenAI, words: int = 5) -> str:
    made = await client.completions.create(model="tiny", prompt="Hi", max_tokens=words, temperature=0)
    return made.choices[0].text


async def test_a_good_key_and_bad_ones(client: openai.AsyncOpenAI, url: str) -> None:
    assert await text(client)
    for key in ("wrong", new_key()):
        async with of(url, key) as stranger:
            with pytest.raises(openai.AuthenticationError) as refused:
                await text(stranger)
            assert refused.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()


async def test_rotation_and_revocation_while_it_runs(client: openai.AsyncOpenAI, url: str, tenants: Tenants) -> None:
    """A stream that has begun goes on to its end."""
    options = {"model": "tiny", "prompt": "Hi", "max_tokens": 300, "temperature": 0}
    stream = await client.completions.create(**options, stream=True, extra_body={"ignore_eos": True})
    await anext(aiter(stream))
    new = tenants.add("alice")
    with pytest.raises(openai.AuthenticationError):
        await text(client)
    async with of(url, new) as renewed:
        assert await text(renewed)
        tenants.remove("alice")
        with pytest.raises(openai.AuthenticationError):
            await text(renewed)
    *_, last = [chunk async for chunk in stream]
    assert last.choices[0].finish_reason == "length"


async def test_limits_are_the_clients_own_errors(client: openai.AsyncOpenAI, tenants: Tenants) -> None:
    tenants.limit("alice", requests_per_minute=1)
    raw = await client.completions.with_raw_response.create(model="tiny", prompt="Hi", max_tokens=1)
    assert raw.headers["x-ratelimit-limit-requests"] == "1"
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as refused:
        await text(client)
    assert refused.value.code == "rate_limit_exceeded"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60


async def test_the_client_does_not_repeat_what_can_never_succeed(url: str, tenants: Tenants) -> None:
    """With retries on, it would send the same prompt three times, and three requests would be taken."""
    key = tenants.add("bob", tokens_per_minute=1, requests_per_minute=10)
    async with of(url, key, retries=2) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            await client.completions.create(model="tiny", prompt=[1, 2, 3], max_tokens=1)
        assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "9"
