"""Seeded generator of in-context recall text: short fact lists and questions about them.

A document is one list of facts of one kind and some questions about them, in one of two orders:

- *after*: the facts, then several questions, each with its answer;
- *before*: one question, then the facts, then the answer to it, then perhaps further questions.

Two short forms hold more answers per token: *terse* asks by the key and a question mark, *cloze* by the
start of the fact. *Drill* is terse with many more questions than facts, so some questions come again; the
early text is made of it, because looking up is only learnt where there is much to look up.

Every list is drawn afresh, so an answer can only be found by looking it up in the document. A context is
never written out twice: no document repeats its list, at most half of the facts are ever restated as a cloze
line, and the restated ones come in random order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ostinato.server.evals.words import ANIMALS, COLOURS, FOODS, NAMES, PLACES, THINGS, TRADES


@dataclass(frozen=True)
class Kind:
    """How one kind of fact is written; every template has ``{k}``, and the stem precedes the value."""

    name: str
    keys: tuple[str, ...]
    values: tuple[str, ...] | int  # words, or the number of digits
    stem: str
    end: str
    question: str


KINDS = (
    Kind("phone", tuple(NAMES), 4, "{k}:", "", "What is the number of {k}?"),
    Kind("room", tuple(NAMES), 2, "{k} is in room", ".", "In which room is {k}?"),
    Kind(
        "colour",
        tuple(THINGS),
        tuple(COLOURS),
        "The colour of the {k} is",
        ".",
        "What is the colour of the {k}?",
    ),
    Kind("place", tuple(NAMES), tuple(PLACES), "{k} lives in", ".", "Where does {k} live?"),
    Kind("trade", tuple(NAMES), tuple(TRADES), "{k} is a", ".", "What is the trade of {k}?"),
    Kind("pet", tuple(NAMES), tuple(ANIMALS), "The pet of {k} is a", ".", "What is the pet of {k}?"),
    Kind("food", tuple(NAMES), tuple(FOODS), "{k}:", "", "What did {k} bring?"),
    Kind("town", tuple(NAMES), tuple(PLACES), "{k}", "", "Which town is for {k}?"),
    Kind("colours", tuple(NAMES), tuple(COLOURS), "{k}", "", "Which colour is for {k}?"),
    Kind("animal", tuple(NAMES), tuple(ANIMALS), "{k}:", "", "Which animal is for {k}?"),
    Kind("thing", tuple(THINGS), tuple(PLACES), "The {k} came from", ".", "Where did the {k} come from?"),
)


SHORT_KINDS = tuple(kind for kind in KINDS if kind.name in ("town", "colours", "animal", "food"))
FORMS = ("after", "before", "cloze", "terse")
DRILL, DRILL_QUESTIONS = "drill", 12


@dataclass(frozen=True)
class Phase:
    """A stretch of training text: how many documents, of how many facts, in which forms (FORMS and DRILL)."""

    documents: int
    counts: tuple[int, ...]
    kinds: tuple[Kind, ...]
    weights: tuple[int, ...]


# Looking up is learnt on short lists in short forms, then stretched to the longer ones.
PHASES = (
    Phase(9_000, (2, 3, 3, 4, 5, 6), SHORT_KINDS, (0, 0, 0, 1, 9)),
    Phase(3_000, (2, 3, 4, 5, 6, 7, 8), KINDS, (2, 2, 2, 2, 2)),
    Phase(12_000, (2, 3, 4, 4, 5, 6, 6, 7, 8, 8, 10, 12, 16), KINDS, (3, 3, 3, 1, 1)),
)


@dataclass(frozen=True)
class Recall:
    """One document as pieces of text; ``answers`` are the indices of the pieces that are answers."""

    pieces: tuple[str, ...]
    answers: tuple[int, ...]
    values: tuple[str, ...]  # the values in the list: what an answer can be guessed from

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def draw_facts(rng: random.Random, kind: Kind, count: int) -> list[tuple[str, str]]:
    """``count`` facts with different keys; word values differ where there are enough of them."""
    keys = rng.sample(kind.keys, count)
    if isinstance(kind.values, int):
        low = 10 ** (kind.values - 1)
        return [(key, str(rng.randrange(low, 10 * low))) for key in keys]
    if count <= len(kind.values):
        return list(zip(keys, rng.sample(kind.values, count), strict=True))
    return [(key, rng.choice(kind.values)) for key in keys]


def document(
    rng: random.Random,
    kind: Kind,
    count: int,
    form: str,
    *,
    queries: int | None = None,
) -> Recall:
    """One document of ``count`` facts in one of FORMS, or DRILL.

    Cloze questions restate a fact, so they are limited to half of the facts: the list never appears twice.
    """
    facts = draw_facts(rng, kind, count)
    most = max(1, count // 2 if form == "cloze" else count - 1)
    asked = rng.sample(facts, min(most, queries or most))
    if form == DRILL:
        asked = rng.choices(facts, k=DRILL_QUESTIONS)
    pieces: list[str] = []
    answers: list[int] = []

    def answer(cue: str, value: str, end: str) -> None:
        pieces.append(cue)
        answers.append(len(pieces))
        pieces.extend((f" {value}", end + "\n"))

    question = kind.question.format(k=asked[0][0])
    if form == "before":
        pieces.append(f"Question: {question}\n")
    pieces.append("".join(f"{kind.stem.format(k=key)} {value}{kind.end}\n" for key, value in facts))
    for index, (key, value) in enumerate(asked):
        if form == "before" and index == 0:
            answer("Answer:", value, "")
        elif form == "cloze":
            answer(kind.stem.format(k=key), value, kind.end)
        elif form in ("terse", DRILL):
            answer(f"{key}?", value, "")
        else:
            answer(f"Question: {kind.question.format(k=key)}\nAnswer:", value, "")
    return Recall(tuple(pieces), tuple(answers), tuple(value for _, value in facts))


def stream(seed: int, phase: Phase) -> Iterator[Recall]:
    """Endless documents of one phase."""
    rng = random.Random(seed)
    while True:
        (form,) = rng.choices((*FORMS, DRILL), phase.weights)
        yield document(rng, rng.choice(phase.kinds), rng.choice(phase.counts), form)


def training_documents(seed: int) -> list[Recall]:
    """The documents of all phases, in order."""
    return [item for index, phase in enumerate(PHASES) for item in islice(stream(seed + index, phase), phase.documents)]


def main() -> None:
    for phase in PHASES:
        for item in islice(stream(0, phase), 4):
            print(f"--- {len(item.answers)} answers\n{item.text}")


if __name__ == "__main__":
    main()
