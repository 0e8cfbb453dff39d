"""Train one demo model on a CPU and export it as a published checkpoint folder.

Usage: ``python scripts/demo/train.py --family gla --data DIR --out FOLDER --steps N``, after
``python scripts/demo/corpus.py --out DIR``. Weights and optimiser are fp32; matrix products run in bf16.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from configs import CONFIGS
from data import ANSWER_WEIGHT, LIST_WEIGHT, Batches, Tokens, prepare, save_tokenizer
from networks import LanguageModel
from safetensors.torch import load_file, save_file
from torch import Tensor

PEAK_RATE = {"gla": 2.5e-3, "mamba": 2.5e-3, "rwkv7": 2e-3}
WARMUP_STEPS = 50
EXPORT_SECONDS = 240
# Rows of recall text out of ten: many while looking up is being learnt, fewer afterwards.
EARLY_RECALL_ROWS, LATE_RECALL_ROWS, EARLY_SHARE = 6, 2, 0.4


def export(model: LanguageModel, tokens: Tokens, folder: Path) -> None:
    """Write the checkpoint folder: bf16 weights, configuration, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = dict(sorted(model.config.items()))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokens.tokenizer, folder)


def earlier_record(folder: Path | None) -> dict | None:
    """The record of the run that wrote ``folder``, so that a model knows all the runs behind it."""
    path = folder / "training.json" if folder is not None else None
    return json.loads(path.read_text()) if path is not None and path.exists() else None


def optimizer(model: LanguageModel, rate: float) -> torch.optim.AdamW:
    """AdamW; only matrices decay (no norms, biases, mixing or decay parameters)."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "A_log" not in name and "r_k" not in name
        (matrices if is_matrix else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-9, fused=True)


def losses(model, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Negative log-likelihood of every target, [rows * length], in fp32."""
    inputs, targets, _ = batch
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(inputs)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")


def rate_at(progress: float, step: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to nearly zero."""
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    tokens = prepare(arguments.data)
    model = LanguageModel(CONFIGS[arguments.family])
    if arguments.init is not None:
        weights = load_file(arguments.init / "model.safetensors")
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    compiled = torch.compile(losses) if arguments.compile else losses
    peak = PEAK_RATE[arguments.family]
    optimiser = optimizer(model, peak)
    source = Batches(tokens, arguments.rows, arguments.length, arguments.seed)
    begin = exported = time.monotonic()
    limit = 60 * arguments.minutes if arguments.minutes else math.inf
    log: list[tuple[float, float]] = []
    step = 0
    while True:
        elapsed = time.monotonic() - begin
        progress = max(step / arguments.steps, elapsed / limit)
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate_at(progress, step, peak)
        recall_rows = arguments.early_recall_rows if progress < EARLY_SHARE else LATE_RECALL_ROWS
        batch = source.next(recall_rows)
        loss = compiled(model, batch)
        weight = batch[2].flatten()
        ((loss * weight).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        books = (arguments.rows - recall_rows) * arguments.length
        with torch.no_grad():
            asked = weight[books:] > 1
            log.append((loss[:books].mean().item(), loss[books:][asked].mean().item()))
        if step % arguments.log_every == 0:
            text, answers = (sum(column) / len(log) for column in zip(*log, strict=True))
            log.clear()
            seconds = time.monotonic() - begin
            speed = step * arguments.rows * arguments.length / seconds
            print(
                f"{step} text {text:.3f} answers {answers:.3f} {speed:.0f} tokens/s {seconds:.0f} s",
                flush=True,
            )
        if time.monotonic() - exported > EXPORT_SECONDS:
            export(model, tokens, arguments.out)
            exported = time.monotonic()
    export(model, tokens, arguments.out)
    seconds = time.monotonic() - begin
    count = step * arguments.rows * arguments.length
    record = {
        "family": arguments.family,
        "begun_from": earlier_record(arguments.init),
        "steps": step,
        "steps_asked": arguments.steps,
        "minutes": arguments.minutes,
        "tokens": count,
        "seconds": round(seconds),
        "rows": arguments.rows,
        "length": arguments.length,
        "recall_rows": f"{arguments.early_recall_rows}, then {LATE_RECALL_ROWS}",
        "ended": "the steps" if step >= arguments.steps else "the clock",
        "seed": arguments.seed,
        "peak_rate": peak,
        "answer_weight": ANSWER_WEIGHT,
        "list_weight": LIST_WEIGHT,
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=sorted(CONFIGS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder that corpus.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--init", type=Path, help="checkpoint folder to begin with instead of random weights")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--minutes", type=float, help="end the schedule by this time even if steps remain")
    parser.add_argument("--rows", type=int, default=10, help="sequences in a batch")
    parser.add_argument("--early-recall-rows", type=int, default=EARLY_RECALL_ROWS)
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=25)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
