"""One store and several servers; and stores that cannot be written to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.engine.store.backends import s3_environment
from tests.server.harness import GLA, TIMEOUT, error_of, real_service, serving
from tests.server.processes import running

TOLD = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}


def complete(url: str, **body: object) -> dict[str, object]:
    response = httpx.post(f"{url}/v1/completions", json={**TOLD, **body}, timeout=TIMEOUT)
    assert response.status_code == 200, response.text
    found: dict[str, object] = json.loads(response.text)
    return found


@pytest.mark.parametrize("kind", ["folder", "redis", "s3"])
def test_a_conversation_saved_on_one_server_goes_on_at_another(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two processes, at the same time: the second one has never seen the state."""
    environment: dict[str, str] = {}
    place = str(tmp_path / "states")
    if kind == "redis":
        place = request.getfixturevalue("redis_url")
    if kind == "s3":
        environment = s3_environment(request.getfixturevalue("s3_endpoint"))
        place = "s3://states/shared"
    with running("--state-store", place, **environment) as one, running("--state-store", place, **environment) as two:
        whole = complete(one.url, prompt=[1, 2, 3], max_tokens=8)
        first = complete(one.url, prompt=[1, 2, 3], max_tokens=5, store=True)
        state = first["state"]["id"]  # type: ignore[index]  # JSON
        rest = complete(two.url, state=state, max_tokens=3, store=True)
        joined = [*first["choices"][0]["token_ids"], *rest["choices"][0]["token_ids"]]  # type: ignore[index]
        assert joined == whole["choices"][0]["token_ids"]  # type: ignore[index]
        child = rest["state"]["id"]  # type: ignore[index]
        tree = httpx.get(f"{one.url}/v1/states/{child}/tree", timeout=TIMEOUT).json()["data"]
        assert [entry["id"] for entry in tree] == [state, child], "the first server does not see the second one's child"


@pytest.mark.asyncio
async def test_a_store_that_breaks_ends_the_request_and_nothing_else(tmp_path: Path) -> None:
    """The folder of contents becomes a file: nothing can be written there by anybody, root included."""
    async with serving(real_service(GLA), state_store=(str(tmp_path),)) as client:
        made = (await client.post("/v1/states", json={"prompt": [1, 2]})).json()["id"]
        contents = tmp_path / "content"
        contents.rename(tmp_path / "elsewhere")
        contents.write_text("")
        for body in ({"store": True}, {"store": True, "stream": True}):
            response = await client.post("/v1/completions", json={"prompt": [3], "max_tokens": 2, **body})
            text = response.text.splitlines()[-2].removeprefix("data: ") if "stream" in body else response.text
            assert json.loads(text)["error"]["code"] == "state_store_unavailable", response.text
        assert (await client.post("/v1/completions", json={"prompt": [3], "max_tokens": 2})).status_code == 200
        contents.unlink()
        (tmp_path / "elsewhere").rename(contents)
        response = await client.post("/v1/completions", json={"state": made, "max_tokens": 2, "store": True})
        assert response.status_code == 200, response.text


@pytest.mark.asyncio
async def test_a_store_without_room_says_so(tmp_path: Path) -> None:
    async with serving(real_service(GLA), state_store=(str(tmp_path),), state_store_bytes=1000) as client:
        response = await client.post("/v1/states", json={"prompt": [1, 2]})
        assert response.status_code == 507
        assert error_of(response)["code"] == "state_store_full"
        assert (await client.get("/v1/states")).json()["data"] == []


@pytest.mark.asyncio
async def test_the_least_recently_used_state_makes_room(tmp_path: Path) -> None:
    async with serving(real_service(GLA), state_store=(str(tmp_path),)) as client:
        size = (await client.post("/v1/states", json={"prompt": [1]})).json()["bytes"]
    folder = str(tmp_path / "small")
    async with serving(real_service(GLA), state_store=(folder,), state_store_bytes=int(2.5 * size)) as client:
        pinned = (await client.post("/v1/states", json={"prompt": [1], "pinned": True})).json()["id"]
        others = [(await client.post("/v1/states", json={"prompt": [i]})).json()["id"] for i in (2, 3, 4)]
        left = {state["id"] for state in (await client.get("/v1/states")).json()["data"]}
        assert left == {pinned, others[-1]}


def test_a_store_that_cannot_be_opened_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "ostinato.server.cli.main", "serve", str(GLA), "--port", "0"]
    command += ["--state-store", str(tmp_path / "file" / "states")]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "file" in ended.stderr
