"""Loss against position, far past the length that a model was trained on, with each mitigation that applies to it.

Usage: ``python scripts/bench/long_context.py --text data/heldout.txt --out docs/state-guard demo:gla demo:mamba ...``
reads rows of ``--length`` tokens of the text in an engine of this process, one pass for each setting, and writes
``OUT.json`` and ``OUT.svg``. ``scripts/demo/corpus.py`` makes the held-out text. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from ostinato.engine.admission import make_sequences
from ostinato.engine.config import EngineConfig
from ostinato.engine.continuation import Continuation
from ostinato.engine.guard import GuardOptions
from ostinato.engine.loading import LoadedEngine, load_engine
from ostinato.engine.mitigation import Mitigation
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.types import Sequence
from ostinato.models.mitigations import remedies
from ostinato.server.cli.options import model_path

SCORE = SamplingParams(max_tokens=0, prompt_logprobs=0)
TRAINED = 256  # tokens of a training sequence of the demo models
DOCUMENT_END = "<|endoftext|>"
BUCKET = 512


@dataclass(frozen=True)
class Measured:
    """One model with one setting. losses: nats per token, by bucket of positions; norms: the largest head's norm, mean
    over rows, at the end of each bucket."""

    losses: list[float]
    norms: list[float]
    seconds: float


def settings_for(family: str, clip: float) -> Iterator[tuple[str, Mitigation]]:
    """What is compared. clip: the largest norm of a head at the length of training."""
    tried = {
        "no mitigation": Mitigation(),
        "forget 0.9999": Mitigation(forget=0.9999),
        "forget 0.99": Mitigation(forget=0.99),
        "remember 0.75": Mitigation(remember=0.75),
        "the paper's 0.9999 and 0.75": Mitigation(forget=0.9999, remember=0.75),
        f"clip at {clip:.3g}": Mitigation(clip_norm=clip),
        f"clip at {clip / 4:.3g}": Mitigation(clip_norm=clip / 4),
        "window 256": Mitigation(window=256),
        "window 1024": Mitigation(window=1024),
    }
    for name, mitigation in tried.items():
        if mitigation.asked.keys() - {"clip_every"} <= remedies(family):
            yield name, mitigation


def rows_of(engine: LoadedEngine, text: str, length: int, count: int) -> list[list[int]]:
    """Rows of consecutive tokens of the whole text. Raises SystemExit: it is too short."""
    assert engine.tokenizer is not None
    documents = [document for document in text.split(DOCUMENT_END) if document]
    ids = [token for document in documents for token in (0, *engine.tokenizer.encode(document))]
    if len(ids) < length * count:
        raise SystemExit(f"the text has {len(ids)} tokens: {count} rows of {length} need {length * count}")
    return [ids[i * length : (i + 1) * length] for i in range(count)]


def measure(engine: LoadedEngine, rows: list[list[int]], mitigation: Mitigation, every: int = BUCKET) -> Measured:
    """Reads all rows once."""
    states = Continuation(mitigation=mitigation, guard=GuardOptions(every=every))
    made = [
        make_sequences(f"row-{i}", [row], SCORE, vocab_size=engine.info.vocab_size, tokenizer=None, states=states)[0]
        for i, row in enumerate(rows)
    ]
    scores: dict[str, list[float]] = {sequence.id: [] for sequence in made}
    norms: dict[int, list[float]] = {}
    started = time.perf_counter()
    engine.engine.add(made)
    while engine.engine.has_work:
        for event in engine.engine.step():
            assert event.error is None, event.error
            scores[event.sequence_id] += [0.0 if entry is None else entry.logprob for entry in event.prompt_logprobs]
        note_norms(made, norms, every)
    seconds = time.perf_counter() - started
    length = len(rows[0])
    losses = [
        -sum(sum(row[start : start + every]) for row in scores.values()) / (every * len(rows))
        for start in range(0, length, every)
    ]
    return Measured(losses, [sum(found) / len(found) for _, found in sorted(norms.items())], seconds)


def note_norms(sequences: list[Sequence], norms: dict[int, list[float]], every: int) -> None:
    """Takes what was seen in the last step, each look once."""
    for sequence in sequences:
        health = None if sequence.guard is None else sequence.guard.health
        if health is not None and sequence.guard is not None and health.tokens % every == 0:
            norms.setdefault(health.tokens, []).append(health.norms.largest)
            sequence.guard.health = None


def study(model: str, text: str, length: int, count: int) -> dict[str, Measured]:
    """All settings of one model."""
    config = EngineConfig(model_path(model), dtype="float32", max_batch=count, prefix_cache=0)
    plain = load_engine(config)
    rows = rows_of(plain, text, length, count)
    (clip,) = measure(plain, [row[:TRAINED] for row in rows], Mitigation(), TRAINED).norms
    windows = "window" in remedies(plain.info.family)
    engine = load_engine(
        EngineConfig(config.model, dtype="float32", max_batch=count, prefix_cache=0, window_memory=windows)
    )
    found = {}
    for name, mitigation in settings_for(plain.info.family, clip):
        found[name] = result = measure(engine, rows, mitigation)
        ends = (
            f"{result.losses[0]:.3f} to {result.losses[-1]:.3f}, norm {result.norms[0]:.3g} to {result.norms[-1]:.3g}"
        )
        print(f"{model:12} {name:30} {ends}  {result.seconds:.0f} s", flush=True)
    return found


def plot(found: dict[str, dict[str, Measured]], path: Path) -> None:
    """Losses, their differences from those without mitigation, and norms: a column for each model."""
    matplotlib.rcParams |= {"svg.hashsalt": "ostinato", "svg.fonttype": "none"}
    figure, axes = plt.subplots(3, len(found), figsize=(4.4 * len(found), 8.4), squeeze=False)
    for (loss, difference, norm), (model, settings) in zip(axes.T, found.items(), strict=True):
        plain = next(iter(settings.values())).losses
        for name, measured in settings.items():
            middles = [BUCKET * (i + 0.5) for i in range(len(plain))]
            loss.plot(middles, measured.losses, label=name, linewidth=1.2)
            changes = [1000 * (ours - theirs) for ours, theirs in zip(measured.losses, plain, strict=True)]
            difference.plot(middles, changes, linewidth=1.2)
            norm.plot([BUCKET * (i + 1) for i in range(len(measured.norms))], measured.norms, linewidth=1.2)
        loss.set(title=model, ylabel="nats per token")
        loss.legend(fontsize=7)
        difference.set(ylabel="difference, thousandths of a nat")
        norm.set(xlabel="position in tokens", ylabel="largest norm of a head", yscale="log")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="demo:NAME, or a checkpoint folder")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="path of the results, without suffix")
    parser.add_argument("--length", type=int, default=8192, help=f"tokens of a row, a multiple of {BUCKET}")
    parser.add_argument("--rows", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.length % BUCKET:
        raise SystemExit(f"--length must be a multiple of {BUCKET}")
    text = arguments.text.read_text("ascii")
    found = {model: study(model, text, arguments.length, arguments.rows) for model in arguments.models}
    rounded = {
        model: {
            name: {
                "nats_per_token": [round(loss, 4) for loss in measured.losses],
                "norms": [norm if math.isnan(norm) else round(norm, 3) for norm in measured.norms],
                "seconds": round(measured.seconds, 1),
            }
            for name, measured in settings.items()
        }
        for model, settings in found.items()
    }
    facts = {"bucket": BUCKET, "length": arguments.length, "rows": arguments.rows, "models": rounded}
    arguments.out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    plot(found, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
