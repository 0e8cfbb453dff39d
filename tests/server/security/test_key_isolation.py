"""Two keys: neither sees the other's states, responses or prefix cache, and a new key keeps what the old one had."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from typer.testing import CliRunner

from ostinato.engine.store.owner_budget import RECORD_BYTES
from ostinato.server.cli.main import app
from tests.server.harness import GLA, error_of, events, real_service
from tests.server.security.keyed import Tenants, bearer, serving_keys

pytestmark = pytest.mark.asyncio
TOLD = {"max_tokens": 2, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def tenants(tmp_path: Path) -> Tenants:
    found = Tenants(tmp_path / "keys.json")
    found.add("alice")
    found.add("bob")
    return found


@pytest_asyncio.fixture
async def client(tenants: Tenants, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    service = real_service(GLA, prefix_cache=10**8)
    async with serving_keys(service, tenants, state_store=(str(tmp_path / "states"),)) as connected:
        yield connected


async def test_foreign_states_are_not_there_on_any_route(client: httpx.AsyncClient, tenants: Tenants) -> None:
    alice, bob = tenants.bearer("alice"), tenants.bearer("bob")
    made = await client.post("/v1/states", json={"prompt": [1, 2, 3], "checkpoints": {"m": 2}}, headers=alice)
    state = made.json()["id"]
    message = {"role": "user", "content": "Hi"}
    attempts = [
        ("GET", f"/v1/states/{state}", None),
        ("POST", f"/v1/states/{state}", {"pinned": True}),
        ("DELETE", f"/v1/states/{state}", None),
        ("GET", f"/v1/states/{state}/content", None),
        ("GET", f"/v1/states/{state}/tree", None),
        ("POST", f"/v1/states/{state}/fork", {"n": 1}),
        ("POST", f"/v1/states/{state}/rewind", {"tokens": 2}),
        ("POST", f"/v1/states/{state}/rewind", {"mark": "m"}),
        ("POST", "/v1/states", {"state": state, "prompt": [4]}),
        ("POST", "/v1/completions", {"state": state, **TOLD}),
        ("POST", "/v1/completions", {"state": state, "stream": True, **TOLD}),
        ("POST", "/v1/chat/completions", {"state": state, "messages": [message]}),
        ("POST", "/v1/responses", {"state": state, "input": "Hi"}),
        ("POST", "/v1/prompts/preview", {"state": state, "prompt": "Hi"}),
        ("GET", f"/v1/prompts/preview?state={state}&prompt=Hi", None),
        ("GET", f"/v1/states?after={state}", None),
    ]
    for method, path, body in attempts:
        response = await client.request(method, path, json=body, headers=bob)
        assert (response.status_code, error_of(response)["code"]) == (404, "state_not_found"), (method, path)
    assert (await client.get("/v1/states", headers=bob)).json()["data"] == []
    assert (await client.get("/v1/states", params={"parent": state}, headers=bob)).json()["data"] == []
    assert len((await client.get("/v1/states", headers=alice)).json()["data"]) == 2
    assert (await client.get(f"/v1/states/{state}", headers=alice)).json()["pinned"] is False


async def test_foreign_responses_are_not_there(client: httpx.AsyncClient, tenants: Tenants) -> None:
    alice, bob = tenants.bearer("alice"), tenants.bearer("bob")
    asked = {"input": "Hi", "max_output_tokens": 2}
    first = (await client.post("/v1/responses", json=asked, headers=alice)).json()["id"]
    foreign = await client.post("/v1/responses", json={**asked, "previous_response_id": first}, headers=bob)
    assert (foreign.status_code, error_of(foreign)["code"]) == (404, "previous_response_not_found")
    assert (await client.delete(f"/v1/responses/{first}", headers=bob)).status_code == 404
    own = await client.post("/v1/responses", json={**asked, "previous_response_id": first}, headers=alice)
    assert own.status_code == 200


async def test_the_same_state_of_two_keys_is_two_states(client: httpx.AsyncClient, tenants: Tenants) -> None:
    """One content in the store, two records: who deletes its own leaves the other's."""
    alice, bob = tenants.bearer("alice"), tenants.bearer("bob")
    both = [
        (await client.post("/v1/states", json={"prompt": [5, 6]}, headers=who)).json()["id"] for who in (alice, bob)
    ]
    assert both[0] == both[1]
    assert (await client.delete(f"/v1/states/{both[0]}", headers=bob)).status_code == 200
    assert (await client.get(f"/v1/states/{both[0]}", headers=bob)).status_code == 404
    again = await client.post("/v1/completions", json={"state": both[0], **TOLD}, headers=alice)
    assert again.status_code == 200


async def test_a_prefix_that_another_key_has_sent_is_read_anew(client: httpx.AsyncClient, tenants: Tenants) -> None:
    async def cached(name: str) -> int:
        body = {"prompt": list(range(1, 41)), **TOLD}
        usage = (await client.post("/v1/completions", json=body, headers=tenants.bearer(name))).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert await cached("alice") == 0
    assert await cached("alice") > 0
    assert await cached("bob") == 0
    assert await cached("bob") > 0


async def test_a_new_key_under_the_same_name_keeps_the_states(client: httpx.AsyncClient, tenants: Tenants) -> None:
    """Rotated by the command, while the server runs; the old key ends."""
    alice = tenants.bearer("alice")
    state = (await client.post("/v1/states", json={"prompt": [1, 2]}, headers=alice)).json()["id"]
    done = CliRunner().invoke(app, ["keys", "rotate", "alice", "--file", str(tenants.path)])
    assert done.exit_code == 0, done.output
    new = bearer(done.stdout.strip())
    assert (await client.get(f"/v1/states/{state}", headers=alice)).status_code == 401
    assert (await client.get(f"/v1/states/{state}", headers=new)).status_code == 200


async def test_a_name_that_comes_again_has_none_of_the_old_states(client: httpx.AsyncClient, tenants: Tenants) -> None:
    """Unless it is given the owner of the old ones."""

    def keys(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["keys", *arguments, "--file", str(tenants.path)])
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    made = await client.post("/v1/states", json={"prompt": [1, 2]}, headers=tenants.bearer("alice"))
    state, owner = made.json()["id"], tenants.entries["alice"].owner
    keys("revoke", "alice")
    assert (await client.get("/v1/states", headers=tenants.bearer("alice"))).status_code == 401
    stranger = bearer(keys("create", "alice"))
    assert (await client.get("/v1/states", headers=stranger)).json()["data"] == []
    keys("revoke", "alice")
    back = bearer(keys("create", "alice", "--owner", owner))
    assert [found["id"] for found in (await client.get("/v1/states", headers=back)).json()["data"]] == [state]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_state_bytes(tenants: Tenants, tmp_path: Path, stream: bool) -> None:
    service = real_service(GLA)
    async with serving_keys(service, tenants, state_store=(str(tmp_path / "states"),)) as client:
        alice = tenants.bearer("alice")
        first = (await client.post("/v1/states", json={"prompt": [1]}, headers=alice)).json()
        tenants.limit("alice", state_bytes=int(1.5 * first["bytes"]) + RECORD_BYTES)
        steps = service.stats().steps_total
        ask = {"prompt": [2], "store": True, **TOLD, "stream": stream}
        refused = await client.post("/v1/completions", json=ask, headers=alice)
        assert (refused.status_code, error_of(refused)["code"]) == (429, "state_quota_exceeded")
        assert error_of(refused)["type"] == "insufficient_quota"
        assert refused.headers["x-should-retry"] == "false"
        assert service.stats().steps_total == steps, "nothing was computed for it"
        client.headers.update(tenants.bearer("bob"))
        assert (await client.post("/v1/states", json={"prompt": [2]})).status_code == 201
        client.headers.update(alice)
        assert (await client.post("/v1/completions", json={"prompt": [2], **TOLD})).status_code == 200
        assert (await client.delete(f"/v1/states/{first['id']}")).status_code == 200
        if stream:
            assert "state" in (await events(client, "/v1/completions", **{**ask, "stream": True}))[-2]
        else:
            assert (await client.post("/v1/completions", json=ask)).json()["state"]["bytes"] >= first["bytes"]


async def test_uploads_and_forks_count(tenants: Tenants, tmp_path: Path) -> None:
    async with serving_keys(real_service(GLA), tenants, state_store=(str(tmp_path / "states"),)) as client:
        made = (await client.post("/v1/states", json={"prompt": [1]}, headers=tenants.bearer("alice"))).json()
        file = (await client.get(f"/v1/states/{made['id']}/content", headers=tenants.bearer("alice"))).content
        tenants.add("carol", state_bytes=len(file) + RECORD_BYTES)
        tenants.add("dave", state_bytes=len(file) + RECORD_BYTES - 1)
        path = f"/v1/states/{made['id']}"
        refused = await client.put(f"{path}/content", content=file, headers=tenants.bearer("dave"))
        assert error_of(refused)["code"] == "state_quota_exceeded"
        assert (await client.put(f"{path}/content", content=file, headers=tenants.bearer("carol"))).status_code == 201
        fork = await client.post(f"{path}/fork", json={"n": 1}, headers=tenants.bearer("carol"))
        assert (fork.status_code, error_of(fork)["code"]) == (429, "state_quota_exceeded")
