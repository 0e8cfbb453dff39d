"""`ostinato bench offline`: rows, table, and what is refused. Nothing here holds a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ostinato.kernels.roofline import Rates
from ostinato.server.cli.main import app
from tests.server.cli.test_main import ostinato
from tests.server.harness import GLA

QUICK = ["--prompt-tokens", "6", "--new-tokens", "2", "--repeats", "1", "--dtype", "float32"]
ISSUE_KEYS = {
    "batch",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "prefill_roofline_fraction",
    "decode_roofline_fraction",
}
RATES = Rates(read=20e9, copy=30e9, product=100e9)


@pytest.fixture(autouse=True)
def _known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.engine.bench.measure_rates", lambda device, dtype: RATES)


def test_json_is_a_list_with_a_row_for_each_batch_size() -> None:
    result = ostinato("bench", "offline", GLA, "--batch", "2,1", *QUICK, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["batch"] for row in rows] == [2, 1]
    for row in rows:
        assert row.keys() >= ISSUE_KEYS
        assert all(row[key] > 0 for key in ISSUE_KEYS)
        assert (row["dtype"], row["device"], row["repeats"]) == ("float32", "cpu", 1)
        assert row["prefill_tokens_per_second"] * row["prefill_seconds"] == pytest.approx(row["batch"] * 6)
        assert row["decode_tokens_per_second"] * row["decode_seconds"] == pytest.approx(row["batch"] * 2)
        assert row["read_bytes_per_second"] == RATES.read
        assert row["product_flop_per_second"] == RATES.product


def test_the_fractions_are_those_of_the_known_rates() -> None:
    (row,) = json.loads(ostinato("bench", "offline", GLA, "--batch", "2", *QUICK, "--json").stdout)
    weights, states = row["weight_bytes_per_decode_step"], row["state_bytes_per_decode_step"]
    flop = weights / 4 * 2 * 2
    least = 2 * (max(weights / RATES.read, flop / RATES.product) + states / RATES.copy)
    assert row["decode_roofline_fraction"] == pytest.approx(least / row["decode_seconds"])


def test_the_table_says_the_same() -> None:
    result = ostinato("bench", "offline", GLA, "--batch", "1,3", *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "in float32 on cpu" in lines[0]
    header, *body = [line for line in lines if line.count("│") + line.count("┃") == 6]
    assert header.count("of roofline") == 2
    assert [line.split("│")[1].strip() for line in body] == ["1", "3"]
    assert all(line.count("%") == 2 for line in body)
    assert "reads 20.0 GB/s, copies 30.0 GB/s and multiplies 100 GFLOP/s" in lines[-1]


def test_nothing_but_json_is_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    """Of the process: what a library prints past Python would spoil it too."""
    app(["bench", "offline", str(GLA), "--batch", "1", *QUICK, "--json"], standalone_mode=False)
    (row,) = json.loads(capfd.readouterr().out)
    assert row["batch"] == 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--batch", "1,,8"], 2, ["--batch", "1,,8", "1,8,32"]),
        (["--batch", "many"], 2, ["--batch", "many"]),
        (["--batch", "0,1"], 2, ["--batch", "at least one"]),
        (["--batch", "-3"], 2, ["--batch", "at least one"]),
        (["--batch", "8,1,8"], 2, ["--batch", "twice"]),
        (["--batch", "600"], 2, ["max_step_tokens (512)", "max_batch (600)"]),
        (["--batch", "1000000000", "--max-step-tokens", "1000000001"], 1, ["1000000000 states of", "do not fit"]),
        (["--prompt-tokens", "0"], 2, ["--prompt-tokens"]),
        (["--new-tokens", "0"], 2, ["--new-tokens"]),
        (["--repeats", "0"], 2, ["--repeats"]),
        (["--threads", "0"], 2, ["--threads"]),
        (["--dtype", "int3"], 2, ["dtype must be one of", "int3"]),
        (["--device", "abacus"], 2, ["abacus"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) and value[0].startswith("-") else "",
)
def test_a_mistake_is_one_clear_message(options: list[str], code: int, words: list[str]) -> None:
    result = ostinato("bench", "offline", GLA, *options)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert not result.stdout
    for word in words:
        assert word in result.stderr


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = ostinato("bench", "offline", tmp_path / "none", "--batch", "1")
    assert result.exit_code == 1
    (line,) = filter(None, result.stderr.splitlines())
    assert line.startswith("error: model")


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "--help"], ["bench", "offline", "--help"]])
def test_help(arguments: list[str]) -> None:
    assert "offline" in ostinato(*arguments).output
