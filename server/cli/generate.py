"""`ostinato generate`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ostinato.engine.sampling_params import SamplingParams
from ostinato.server.cli import options as opt

if TYPE_CHECKING:
    from ostinato.engine.llm import Completion

INTERRUPTED = 130  # as a shell reports Ctrl-C


def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The text to continue; - reads it from stdin.")],
    model: opt.Model = opt.DEMO,
    max_tokens: opt.MaxTokens = 128,
    temperature: opt.Temperature = 1.0,
    top_p: opt.TopP = 1.0,
    top_k: opt.TopK = 0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    seed: opt.Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. May be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    device: opt.Device = "cpu",
    dtype: opt.DType = "auto",
    tokenizer: opt.TokenizerPath = None,
    threads: opt.Threads = None,
    batch_invariant: opt.BatchInvariant = False,
    cuda_graphs: opt.CUDAGraphs = True,
) -> None:
    """Continue a text, streaming it to the terminal."""
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        max_tokens=max_tokens,
    )
    from ostinato.server.cli.terminal import TextModel

    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = TextModel(
        model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        threads=threads,
        batch_invariant=batch_invariant,
        cuda_graphs=cuda_graphs,
    )
    completion = loaded.answer(loaded.tokenizer.encode(text), params, show=not as_json)
    typer.echo(_as_json(model, text, completion) if as_json else "")
    if completion.finish_reason is None:
        raise typer.Exit(INTERRUPTED)


def _as_json(model: str, prompt: str, completion: Completion) -> str:
    read, written = len(completion.prompt_token_ids), len(completion.token_ids)
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    answer = {
        "model": model,
        "prompt": prompt,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "usage": usage,
    }
    return json.dumps(answer, ensure_ascii=False)
