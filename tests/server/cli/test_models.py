"""`ostinato models`: the table, the JSON object, and models that are not served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.test_contract import GOLDENS
from tests.server.cli.test_main import ostinato
from tests.server.harness import GLA


def test_the_table_says_what_a_state_takes() -> None:
    result = ostinato("models", GOLDENS / "based")
    assert result.exit_code == 0, result.output
    for words in ("BASED", "51,840", "202 KiB in float32", "21,656 bytes", "2 layers of 2 x 17 x 73", "5 tokens"):
        assert words in result.stdout
    assert "window" not in ostinato("models", GLA).stdout


def test_an_encoder_region_is_told() -> None:
    folder = GOLDENS / "jrt"
    assert "the first 16 tokens of a prompt are read at once" in ostinato("models", folder).stdout
    assert json.loads(ostinato("models", folder, "--json").stdout)["encoder_length"] == 16
    assert "region" not in ostinato("models", GOLDENS / "based").stdout


def test_the_json_object_adds_up() -> None:
    found = json.loads(ostinato("models", GOLDENS / "based", "--dtype", "bfloat16", "--json").stdout)
    assert (found["served"], found["family"], found["dtype"], found["window"]) == (True, "BASED", "bfloat16", 5)
    assert found["parameters"] == 51840
    rows = {row["name"]: (row["layers"], row["shape"], row["dtype"], row["bytes"]) for row in found["state"]}
    assert rows["linear"] == (2, [2, 17, 73], "float32", 2 * 2 * 17 * 73 * 4)
    assert rows["conv"] == (1, [2, 64], "bfloat16", 2 * 64 * 2)
    assert found["bytes_per_state"] == sum(size for *_, size in rows.values())
    assert found["slots_per_gib"] == 1024**3 // found["bytes_per_state"]


def test_a_model_that_is_not_served_is_an_error_and_a_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    told = ostinato("models", tmp_path)
    assert told.exit_code == 1
    assert told.stderr.startswith("error: ")
    assert "LlamaForCausalLM is not served" in told.stderr
    listed = ostinato("models", tmp_path, "--json")
    assert listed.exit_code == 1
    assert json.loads(listed.stdout)["served"] is False
    assert "LlamaForCausalLM is not served" in json.loads(listed.stdout)["reason"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Missing argument"),
        (["/no/such/model"], 1, "/no/such/model"),
        ([str(GLA), "--dtype", "int3"], 2, "int3"),
    ],
    ids=["nothing", "nowhere", "dtype"],
)
def test_a_mistake_is_one_clear_message(arguments: list[str], code: int, words: str) -> None:
    result = ostinato("models", *arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr


def test_the_embedded_models_by_name() -> None:
    assert "GLAForCausalLM" in ostinato("models", "demo:gla").stdout
