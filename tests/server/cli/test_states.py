"""`ostinato states`, on a store that a server has filled."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ostinato.server.cli.main import app
from tests.server.harness import GLA, real_service, serving

pytestmark = pytest.mark.asyncio


async def test_lost_records_are_rebuilt_and_the_states_go_on(tmp_path: Path) -> None:
    told = {"temperature": 0, "max_tokens": 3, "ignore_eos": True, "return_token_ids": True}
    async with serving(real_service(GLA), state_store=(str(tmp_path),)) as client:
        made = (await client.post("/v1/states", json={"prompt": [1, 2, 3]})).json()
        expected = (await client.post("/v1/completions", json={"state": made["id"], **told})).json()["choices"]
        other = (await client.post("/v1/states", json={"prompt": [4]})).json()["id"]
    shutil.rmtree(tmp_path / "records")
    damaged = tmp_path / "content" / f"{other.removeprefix('st_')}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    result = CliRunner().invoke(app, ["states", "repair", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"rebuilt: the record of {made['id']} (3 tokens)" in result.output
    assert f"damaged: content/{damaged.name}" in result.output
    assert "1 states, 1 contents" in result.output
    async with serving(real_service(GLA), state_store=(str(tmp_path),)) as client:
        (record,) = (await client.get("/v1/states")).json()["data"]
        assert {key: record[key] for key in ("id", "parent", "tokens", "model", "bytes")} == {
            key: made[key] for key in ("id", "parent", "tokens", "model", "bytes")
        }
        again = (await client.post("/v1/completions", json={"state": made["id"], **told})).json()
        assert again["choices"] == expected


async def test_a_place_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["states", "repair", str(tmp_path / "file" / "states")])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
