from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ostinato.engine.text.tokenizer import Tokenizer
from ostinato.server.cli.main import app
from ostinato.server.cli.options import api_name
from tests.server.harness import GLA, NO_TOKENIZER


def ostinato(*arguments: str | Path, text: str | None = None) -> Result:
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner(env=environment).invoke(app, [str(item) for item in arguments], input=text)


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from ostinato.server.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules and 'fastapi' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("serve", "generate", "chat"):
        assert command in done.stdout


def test_version() -> None:
    result = ostinato("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"ostinato {version('ostinato')}")


@pytest.mark.parametrize("command", ["serve", "generate", "chat"])
def test_every_command_explains_its_options(command: str) -> None:
    result = ostinato(command, "--help")
    assert result.exit_code == 0
    for option in ("--dtype", "--device", "--tokenizer", "--threads", "--batch-invariant", "--no-cuda-graphs"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate"], 2, ["--prompt"]),
        (["generate", "-p", "x", "--max-tokens", "many"], 2, ["--max-tokens"]),
        (["generate", "-p", "x", str(GLA), "--temperature", "-1"], 2, ["temperature must be in"]),
        (["generate", "-p", "x", str(GLA), "--dtype", "int3"], 2, ["dtype must be one of", "int3"]),
        (["generate", "-p", "x", str(GLA), "--device", "abacus"], 2, ["abacus"]),
        (["generate", "-p", "x", "/no/such/model"], 1, ["/no/such/model"]),
        (["generate", "-p", "x", str(NO_TOKENIZER)], 2, ["--tokenizer"]),
        (["generate", "-p", "x", str(GLA), "--tokenizer", "/no/such/tokenizer"], 1, ["/no/such/tokenizer"]),
        (["chat", "/no/such/model"], 1, ["/no/such/model"]),
        (["serve", "/no/such/model", "--port", "0"], 1, ["/no/such/model"]),
        (["serve", str(GLA), "--port", "0", "--state-memory", "5"], 1, ["state"]),
        (["serve", str(GLA), "--port", "0", "--max-batch", "600"], 2, ["max_step_tokens"]),
        (["serve", str(GLA), "--host", "no.such.host.invalid"], 1, ["no.such.host.invalid", "--host"]),
        (["serve", "--state-memory", "lots"], 2, ["--state-memory", "lots"]),
        (["serve", "--max-body", "0"], 2, ["--max-body"]),
        (["serve", "--log-level", "loud"], 2, ["--log-level"]),
        (["serve", "--log-format", "xml"], 2, ["--log-format"]),
        (["serve", "--port", "70000"], 2, ["--port"]),
        (["sing"], 2, ["sing"]),
    ],
    ids=lambda value: "-".join(value[:1] + value[-2:]) if isinstance(value, list) and len(value) > 1 else "",
)
def test_a_mistake_is_one_clear_message(arguments: list[str], code: int, words: list[str]) -> None:
    result = ostinato(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr
    if code == 1:
        assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_generate_writes_what_its_tokens_say(tokenizer: Tokenizer) -> None:
    options = ["--max-tokens", "8", "--temperature", "0"]
    whole = json.loads(ostinato("generate", GLA, "-p", "Hello", *options, "--json").stdout)
    assert whole["prompt"] == "Hello"
    assert whole["text"] == tokenizer.decode(whole["token_ids"], continues=True)
    assert whole["usage"] == {"prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14}
    assert whole["finish_reason"] == "length"
    streamed = ostinato("generate", GLA, "-p", "Hello", *options)
    assert streamed.exit_code == 0
    assert streamed.stdout == whole["text"] + "\n"


def test_generate_reads_a_long_prompt_from_stdin() -> None:
    options = [GLA, "--max-tokens", "4", "--temperature", "0", "--json"]
    by_stdin = ostinato("generate", "-p", "-", *options, text="Line one\nLine two")
    by_option = ostinato("generate", "-p", "Line one\nLine two", *options)
    assert json.loads(by_stdin.stdout) == json.loads(by_option.stdout)


def test_generate_repeats_itself_with_a_seed_only() -> None:
    options = ["generate", GLA, "-p", "A", "--max-tokens", "40", "--json"]
    first, again, other = (json.loads(ostinato(*options, "--seed", seed).stdout) for seed in ("1", "1", "2"))
    assert first == again
    assert first["token_ids"] != other["token_ids"]


def test_generate_stops_where_it_is_told() -> None:
    options = ["generate", GLA, "-p", "A", "--max-tokens", "40", "--seed", "1", "--json"]
    text = json.loads(ostinato(*options).stdout)["text"]
    cut = max(filter(str.isalnum, text.encode().decode("ascii", "ignore")), key=text.index)
    stopped = json.loads(ostinato(*options, "--stop", cut, "--stop", "never said").stdout)
    assert stopped["text"] == text[: text.index(cut)]
    assert stopped["text"] != text
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", cut)


def test_chat_answers_until_the_end_of_the_input() -> None:
    options = ["chat", GLA, "--max-tokens", "6", "--temperature", "0", "--system", "Sing."]
    result = ostinato(*options, text="Hello\n\n/what\n/reset\nHello\n/quit\nnever read\n")
    assert result.exit_code == 0, result.output
    first, second = [part for part in result.stdout.split("> ") if part.strip()]
    assert first == second, "a reset conversation begins anew"
    assert "forgotten" in result.stderr
    assert "/reset" in result.stderr


def test_chat_remembers() -> None:
    options = ["chat", GLA, "--max-tokens", "12", "--temperature", "0"]
    first, second = [part for part in ostinato(*options, text="Hello\nHello\n").stdout.split("> ") if part.strip()]
    assert first != second, "the second answer follows another history"


@pytest.mark.parametrize(
    ("model", "name"),
    [("demo", "demo"), ("demo:gla", "demo:gla"), ("an/organisation", "an/organisation"), (str(GLA), "gla")],
)
def test_the_api_name_of_a_model(model: str, name: str) -> None:
    assert api_name(model) == name


def test_the_api_name_of_a_file_is_its_stem(tmp_path: Path) -> None:
    (tmp_path / "world.0.1b.pth").touch()
    assert api_name(str(tmp_path / "world.0.1b.pth")) == "world.0.1b"


def test_without_a_model_it_is_the_demo() -> None:
    named, default = (
        json.loads(ostinato("generate", *model, "-p", "The king", "--max-tokens", "8", "--seed", "1", "--json").stdout)
        for model in (["demo:rwkv7"], [])
    )
    assert (named.pop("model"), default.pop("model")) == ("demo:rwkv7", "demo")
    assert named == default
    assert named["usage"]["completion_tokens"] > 0
