"""The bound on bodies, however their length is announced."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.server.harness import error_of, serving, text_service

pytestmark = pytest.mark.asyncio
PATH = "/v1/completions"
BODY_LIMIT = 20_000


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(text_service(), max_body_bytes=BODY_LIMIT) as connected:
        yield connected


@pytest.mark.parametrize(("spaces", "status"), [(0, 200), (1, 413)], ids=["at-the-bound", "beyond-it"])
async def test_the_bound_is_exact(client: httpx.AsyncClient, spaces: int, status: int) -> None:
    body = b'{"prompt": "Hi", "max_tokens": 1}'.ljust(BODY_LIMIT + spaces)
    response = await client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status


async def test_a_body_without_a_length_is_cut_off_at_the_bound(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * BODY_LIMIT:
            sent += 1000
            yield b" " * 1000

    response = await client.post(PATH, content=endless(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"
    assert sent <= BODY_LIMIT + 1000
    assert (await client.get("/health")).status_code == 200


async def test_a_body_that_is_larger_than_announced_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json", "content-length": "10"}
    response = await client.post(PATH, content=b" " * (BODY_LIMIT + 1), headers=headers)
    assert response.status_code == 413
    assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("length", ["9" * 18, "9" * 5000])
async def test_an_absurd_length_is_refused_unread(client: httpx.AsyncClient, length: str) -> None:
    headers = {"content-type": "application/json", "content-length": length}
    response = await client.post(PATH, content=b"{}", headers=headers)
    assert response.status_code == 413
    assert (await client.get("/health")).status_code == 200
