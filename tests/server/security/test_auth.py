"""Who is let in, and what the others are told."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from ostinato.server.errors import InvalidKeyError
from ostinato.server.security.api_keys import SINGLE_OWNER, new_key
from tests.server.harness import error_of, serving, text_service
from tests.server.security.keyed import Clock, Tenants, bearer, serving_keys

pytestmark = pytest.mark.asyncio
ASK = {"prompt": "Hi", "max_tokens": 2, "ignore_eos": True}


@pytest.fixture
def tenants(tmp_path: Path) -> Tenants:
    found = Tenants(tmp_path / "keys.json")
    found.add("alice")
    found.add("bob")
    return found


@pytest_asyncio.fixture
async def client(tenants: Tenants) -> AsyncIterator[httpx.AsyncClient]:
    async with serving_keys(text_service(), tenants) as connected:
        yield connected


async def test_a_good_key_is_served(client: httpx.AsyncClient, tenants: Tenants) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {"authorization": f"{scheme} {tenants.keys['alice']}"}
        response = await client.post("/v1/completions", json=ASK, headers=headers)
        assert response.status_code == 200
        assert not [name for name in response.headers if name.startswith("x-ratelimit")], "no limit, no headers"


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (None, ""),
        ("", ""),
        ("Bearer", ""),
        ("Bearer ", ""),
        ("Basic YWxpY2U6eA==", ""),
        ("Bearer wrong", ', error="invalid_token"'),
        ("Bearer caf\u00e9", ', error="invalid_token"'),
        (f"Bearer {'x' * 10_000}", ', error="invalid_token"'),
    ],
)
async def test_no_key_and_bad_keys_are_401(client: httpx.AsyncClient, header: str | None, error: str) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    response = await client.post("/v1/completions", json=ASK, headers=headers)  # type: ignore[arg-type]  # bytes are fine
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"
    assert error_of(response)["type"] == "invalid_request_error"
    assert response.headers["www-authenticate"] == f'Bearer realm="ostinato"{error}'
    assert "x-request-id" in response.headers
    assert "caf" not in response.text


async def test_nearly_a_key_is_none(client: httpx.AsyncClient, tenants: Tenants) -> None:
    key = tenants.keys["alice"]
    stored = json.loads(tenants.path.read_text())["keys"][0]["secrets"][0]["sha256"]
    for wrong in (key[:-1], key + "A", key.swapcase(), key.removeprefix("ost_"), stored, f"{key} {key}"):
        assert (await client.get("/v1/models", headers=bearer(wrong))).status_code == 401, wrong


async def test_every_route_but_the_probes_needs_a_key(client: httpx.AsyncClient, tenants: Tenants) -> None:
    paths = (await client.get("/openapi.json", headers=tenants.bearer("alice"))).json()["paths"]
    assert len(paths) > 15
    tried = [(method, path) for path, methods in paths.items() for method in methods]
    tried += [("get", "/openapi.json"), ("get", "/nothing"), ("options", "/v1/models"), ("head", "/metrics")]
    tried += [("get", "/health/"), ("get", "//health"), ("post", "/v1/completions/health")]
    for method, path in tried:
        expected = 200 if path in ("/health", "/ready") else 401
        assert (await client.request(method, path)).status_code == expected, (method, path)


async def test_the_description_says_which_routes_want_a_key(client: httpx.AsyncClient, tenants: Tenants) -> None:
    for _ in range(2):
        schema = (await client.get("/openapi.json", headers=tenants.bearer("alice"))).json()
    assert schema["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert schema["security"] == [{"key": []}]
    without = {path for path, methods in schema["paths"].items() if methods.get("get", {}).get("security") == []}
    assert without == {"/health", "/ready"}
    async with serving(text_service()) as keyless:
        assert "security" not in (await keyless.get("/openapi.json")).json()


async def test_metrics_need_a_key_that_may_read_them(tenants: Tenants) -> None:
    tenants.add("prometheus", metrics=True)
    async with serving_keys(text_service(), tenants) as client:
        await client.post("/v1/completions", json=ASK)
        refused = await client.get("/metrics", headers=tenants.bearer("alice"))
        assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_permissions")
        text = (await client.get("/metrics", headers=tenants.bearer("prometheus"))).text
        assert 'ostinato_requests_total{outcome="unauthorized",route="other"} 2.0' in text
        assert tenants.keys["alice"] not in text
    async with serving_keys(text_service(), tenants, open_metrics=True) as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


async def test_an_expired_key_is_told_so(tenants: Tenants) -> None:
    clock = Clock()
    tenants.add("guest", expires=clock.now + 10)
    async with serving_keys(text_service(), tenants, clock) as client:
        assert (await client.get("/v1/models", headers=tenants.bearer("guest"))).status_code == 200
        clock.now += 10
        response = await client.get("/v1/models", headers=tenants.bearer("guest"))
        assert response.status_code == 401
        assert "expired" in error_of(response)["message"]
        assert (await client.get("/v1/models", headers=tenants.bearer("alice"))).status_code == 200


async def test_a_key_is_revoked_while_the_server_runs(client: httpx.AsyncClient, tenants: Tenants) -> None:
    alice, bob = tenants.bearer("alice"), tenants.bearer("bob")
    assert (await client.get("/v1/models", headers=alice)).status_code == 200
    tenants.remove("alice")
    assert (await client.get("/v1/models", headers=alice)).status_code == 401
    assert (await client.get("/v1/models", headers=bob)).status_code == 200
    tenants.add("carol")
    assert (await client.get("/v1/models", headers=tenants.bearer("carol"))).status_code == 200


@pytest.mark.parametrize("text", ["", "{", '{"keys": 1}', '{"version": 2}', '{"keys": [{"name": "x"}]}', "gone"])
async def test_a_broken_file_leaves_the_keys_as_they_were(
    client: httpx.AsyncClient, tenants: Tenants, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = tenants.path.read_bytes()
    if text == "gone":
        tenants.path.unlink()
    else:
        tenants.path.write_text(text)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert (await client.get("/v1/models", headers=tenants.bearer("alice"))).status_code == 200
            assert (await client.get("/v1/models", headers=bearer(new_key()))).status_code == 401
    (record,) = [record for record in caplog.records if record.name == "ostinato.server.security.key_file"]
    assert "stay as they were" in record.message
    tenants.path.write_bytes(good)
    tenants.remove("alice")
    assert (await client.get("/v1/models", headers=tenants.bearer("alice"))).status_code == 401


async def test_a_link_that_is_turned_to_another_file_is_noticed(tmp_path: Path) -> None:
    """As Kubernetes replaces the files of a secret."""
    old, new = Tenants(tmp_path / "1.json"), Tenants(tmp_path / "2.json")
    old.add("alice")
    new.add("alice")
    link = Tenants(tmp_path / "keys.json")
    link.path.symlink_to(old.path)
    async with serving_keys(text_service(), link) as client:
        assert (await client.get("/v1/models", headers=old.bearer("alice"))).status_code == 200
        (tmp_path / "next").symlink_to(new.path)
        os.replace(tmp_path / "next", link.path)
        assert (await client.get("/v1/models", headers=old.bearer("alice"))).status_code == 401
        assert (await client.get("/v1/models", headers=new.bearer("alice"))).status_code == 200


async def test_a_file_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path / "keys.json")
    tenants.write()
    async with serving_keys(text_service(), tenants) as client:
        assert (await client.get("/v1/models", headers=bearer(new_key()))).status_code == 401


async def test_a_single_key(tmp_path: Path) -> None:
    """Its states have one owner, whatever the key is."""
    store = (str(tmp_path),)
    made = []
    for key in ("0123456789abcdef" * 2, "another key!".replace(" ", "-") * 3):
        async with serving(text_service(), api_key=key, state_store=store) as client:
            assert (await client.get("/v1/models")).status_code == 401
            made.append((await client.get("/v1/models", headers=bearer(key))).status_code)
            assert (await client.get("/metrics", headers=bearer(key))).status_code == 200
    assert made == [200, 200]
    assert len(SINGLE_OWNER) == 64


async def test_the_body_of_a_stranger_is_not_read(client: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return await anext(body())  # type: ignore[return-value]  # it raises

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    await transport.app(scope, receive, send)
    assert sent[0]["status"] == 401


async def test_the_error_of_a_key_never_shows_the_key() -> None:
    error = InvalidKeyError("Incorrect API key provided.", given=True)
    assert str(error) == "Incorrect API key provided."
