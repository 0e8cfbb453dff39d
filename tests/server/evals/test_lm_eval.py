"""lm-evaluation-harness against the server: the requests of its model `local-completions`, and how it reads answers.

The bodies are those that lm_eval 0.4.13 sent to `ostinato serve` when it was run; what it makes of an answer is written
down in `loglikelihood`, after its `parse_logprobs`. One test runs lm_eval itself, where it is installed.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file
from torch import Tensor

from ostinato.engine.service import Service
from ostinato.models import demo
from tests.server.harness import GLA, gla_tokenizer, live_server, real_service, serving, text_service

SCORE = {"model": "tiny", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
WRITE = {"model": "tiny", "temperature": 0, "seed": 1234}
GOLDEN = load_file(GLA / "golden.safetensors")
BOUND = 1e-3  # between correct implementations, in logits; the goldens' own


def loglikelihood(choice: Any, context: int) -> tuple[float, bool]:
    """Of what follows the first `context` tokens, without the one generated token; and whether it is greedy."""
    logprobs = choice["logprobs"]
    scores, tops = (logprobs[name][context:-1] for name in ("token_logprobs", "top_logprobs"))
    return sum(scores), all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))


@pytest.fixture
def service() -> Service:
    """In the precision that the goldens were computed in."""
    return real_service(dtype="float32")


def ids_of(name: str) -> list[int]:
    found: list[int] = GOLDEN[name].tolist()
    return found


def expected(logits: Tensor, ids: list[int]) -> float:
    """Of `ids`, each predicted by a row of an independent implementation's logits."""
    rows = logits.double().log_softmax(-1)
    return sum(float(rows[place, token]) for place, token in enumerate(ids))


async def choices_of(client: httpx.AsyncClient, **body: Any) -> list[Any]:
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    found: list[Any] = sorted(response.json()["choices"], key=lambda choice: choice["index"])
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize("context", [1, 3, 7])
async def test_likelihoods_are_those_of_another_implementation(client: httpx.AsyncClient, context: int) -> None:
    """Several prompts in a request, as with `batch_size=2`."""
    prompts = [ids_of("short.input_ids"), ids_of("long.input_ids")]
    choices = await choices_of(client, **SCORE, prompt=prompts)
    for choice, prompt, name in zip(choices, prompts, ("short", "long"), strict=True):
        score, _ = loglikelihood(choice, context)
        wanted = expected(GOLDEN[f"{name}.logits"][context - 1 :], prompt[context:])
        assert score == pytest.approx(wanted, abs=2 * BOUND * len(prompt))
        assert choice["logprobs"]["token_logprobs"][0] is None
        assert len(choice["logprobs"]["token_logprobs"]) == len(prompt) + 1


@pytest.mark.asyncio
async def test_the_greedy_continuation_is_known_as_such(client: httpx.AsyncClient) -> None:
    prompt, answer = ids_of("short.input_ids"), ids_of("short.greedy_ids")[:5]
    other = [*answer[:-1], (answer[-1] + 1) % 250]
    choices = await choices_of(client, **SCORE, prompt=[[*prompt, *answer], [*prompt, *other]])
    (best, is_greedy), (worse, is_too) = (loglikelihood(choice, len(prompt)) for choice in choices)
    assert (is_greedy, is_too) == (True, False)
    assert best > worse
    assert best == pytest.approx(expected(GOLDEN["short.greedy_logits"], answer), abs=2 * BOUND * len(answer))


@pytest.mark.asyncio
async def test_the_end_of_the_text_counts_as_the_generated_token() -> None:
    """lm_eval leaves out the last entry, whatever it is."""
    service = text_service(lambda _: min(service.info.eos_token_ids))
    assert service.info.eos_token_ids
    async with serving(service) as client:
        (choice,) = await choices_of(client, **SCORE, prompt=[[5, 6, 7]])
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["token_logprobs"]) == len(choice["logprobs"]["top_logprobs"]) == 4


@pytest.mark.asyncio
async def test_texts_are_generated_up_to_a_stop(client: httpx.AsyncClient) -> None:
    tokenizer = gla_tokenizer()
    prompts, answer = [ids_of("short.input_ids"), ids_of("long.input_ids")], ids_of("short.greedy_ids")
    written = tokenizer.decode(answer[:8], continues=True)
    stop = written[len(written) // 2 :][:2]
    body = {**WRITE, "prompt": prompts, "max_tokens": 8, "stop": [stop, "</s>"]}
    first, second = await choices_of(client, **body)
    assert first["text"] == written[: written.index(stop)]
    assert (first["index"], second["index"]) == (0, 1)


@pytest.mark.asyncio
async def test_rolling_likelihoods_begin_with_the_token_that_ends_a_text(client: httpx.AsyncClient) -> None:
    """Every token of the text counts: the prompt is the ending token, then the text, and the context is one token."""
    text = ids_of("short.input_ids")
    (choice,) = await choices_of(client, **SCORE, prompt=[[2, *text]])
    score, _ = loglikelihood(choice, 1)
    assert math.isfinite(score)
    assert score < 0
    assert len(choice["logprobs"]["token_logprobs"][1:-1]) == len(text)


ROWS = [
    ("Anna lives in London.\nTom lives in Paris.\n", "Anna", ["London", "Paris"], 0),
    ("Mary lives in Rome.\nJohn lives in Bath.\n", "John", ["Rome", "Bath"], 1),
    ("Ruth lives in Venice.\nMark lives in Egypt.\nHenry lives in Troy.\n", "Henry", ["Venice", "Egypt", "Troy"], 2),
]
TASK = """\
task: places_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{context}}}}Question: Where does {{{{name}}}} live?\\nAnswer:"
{rest}
"""
CHOICE = """\
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
"""
GENERATE = """\
output_type: generate_until
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
filter_list: [{name: strip, filter: [{function: remove_whitespace}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
"""


@pytest.mark.long
@pytest.mark.skipif(
    "LM_EVAL_PYTHON" not in os.environ,
    reason="set LM_EVAL_PYTHON to the Python of an environment with `pip install 'lm_eval[api]==0.4.13'`",
)
def test_lm_eval_itself(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    fields = ("context", "name", "choices", "label")
    rows.write_text("".join(json.dumps(dict(zip(fields, row, strict=True))) + "\n" for row in ROWS))
    for kind, rest in (("choice", CHOICE), ("write", GENERATE)):
        (tmp_path / f"{kind}.yaml").write_text(TASK.format(kind=kind, rows=rows, rest=rest))
    model = demo.path("rwkv7")
    with live_server(real_service(model), served_model_name="demo") as url:
        arguments = f"model=demo,base_url={url}/v1/completions,tokenizer={model},tokenizer_backend=huggingface"
        command = [os.environ["LM_EVAL_PYTHON"], "-m", "lm_eval", "run", "--model", "local-completions"]
        command += ["--model_args", arguments, "--include_path", str(tmp_path), "--tasks", "places_choice,places_write"]
        command += ["--output_path", str(tmp_path / "out"), "--batch_size", "2"]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    assert results["places_choice"]["acc,none"] == 1.0
    assert results["places_write"]["exact_match,strip"] == 1.0
