"""Fact lists and questions about them, in the very form that the demo models were trained on.

The texts are those of the training data's form *after* (`scripts/demo/recall.py`): the list, then a question and its
answer. The training data has no list twice in a text, so a second reading is as new to the models as to any other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ostinato.server.evals.question import Question, Task
from ostinato.server.evals.scoring import whole_line
from ostinato.server.evals.words import ANIMALS, COLOURS, FOODS, NAMES, PLACES, THINGS, TRADES


@dataclass(frozen=True, slots=True)
class Kind:
    """How facts of one kind are written. values: words, or how many digits a number has."""

    keys: Sequence[str]
    values: Sequence[str] | int
    fact: str
    question: str


KINDS = (
    Kind(NAMES, 4, "{k}: {v}", "What is the number of {k}?"),
    Kind(NAMES, 2, "{k} is in room {v}.", "In which room is {k}?"),
    Kind(THINGS, COLOURS, "The colour of the {k} is {v}.", "What is the colour of the {k}?"),
    Kind(NAMES, PLACES, "{k} lives in {v}.", "Where does {k} live?"),
    Kind(NAMES, TRADES, "{k} is a {v}.", "What is the trade of {k}?"),
    Kind(NAMES, ANIMALS, "The pet of {k} is a {v}.", "What is the pet of {k}?"),
    Kind(NAMES, FOODS, "{k}: {v}", "What did {k} bring?"),
    Kind(NAMES, PLACES, "{k} {v}", "Which town is for {k}?"),
    Kind(NAMES, COLOURS, "{k} {v}", "Which colour is for {k}?"),
    Kind(NAMES, ANIMALS, "{k}: {v}", "Which animal is for {k}?"),
    Kind(THINGS, PLACES, "The {k} came from {v}.", "Where did the {k} come from?"),
)


def draw_values(rng: random.Random, values: Sequence[str] | int, count: int) -> list[str]:
    """Numbers of so many digits; or words, which differ where there are enough of them."""
    if isinstance(values, int):
        low = 10 ** (values - 1)
        return [str(rng.randrange(low, 10 * low)) for _ in range(count)]
    return rng.sample(values, count) if count <= len(values) else rng.choices(values, k=count)


def look_up(lines: list[str], values: list[str], wanted: int, question: str) -> Question:
    """A question about line `wanted` of a list. Guessing is guessing among the list's values."""
    answer = values[wanted]
    return Question(
        context="\n".join(lines),
        question=f"Question: {question}\nAnswer:",
        opening=f"Question: {question}",
        answers=(answer,),
        join="\n",
        chance=values.count(answer) / len(values),
    )


def write_facts(rng: random.Random, count: int) -> Question:
    """A list of one kind, of those kinds that have enough keys for it."""
    kind = rng.choice([kind for kind in KINDS if len(kind.keys) >= count])
    keys, values = rng.sample(kind.keys, count), draw_values(rng, kind.values, count)
    lines = [kind.fact.format(k=key, v=value) for key, value in zip(keys, values, strict=True)]
    wanted = rng.randrange(count)
    return look_up(lines, values, wanted, kind.question.format(k=keys[wanted]))


FACTS = Task("facts", "facts as the demo models know them", whole_line, 12, write_facts, most_facts=len(NAMES))
