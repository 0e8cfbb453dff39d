"""Tasks that need no data: they write what they ask about, as long as one likes.

Phone book: after Jelassi et al. (2024, arXiv 2402.01032). Associative recall with several queries: Arora et al. (2023,
arXiv 2312.04927). Set disjointness in both orders: Arora et al. (2024, arXiv 2407.05483), section 3: to a model that
cannot go back, it matters whether the smaller set comes first. Passkey: Mohtashami and Jaggi (2023, arXiv 2305.16300).
The wording is our own.
"""

from __future__ import annotations

import random
from functools import partial

from ostinato.server.evals.facts import FACTS, draw_values, look_up
from ostinato.server.evals.question import Question, Task
from ostinato.server.evals.scoring import whole_line
from ostinato.server.evals.words import ANIMALS, COLOURS, FOODS, NAMES, PLACES, THINGS, TRADES

PEOPLE = [f"{name} {trade.capitalize()}" for name in NAMES for trade in TRADES]
KEYS = list(dict.fromkeys([*NAMES, *THINGS, *ANIMALS, *FOODS]))
VALUES = [*COLOURS, *PLACES, *TRADES]
WORDS = list(dict.fromkeys([*KEYS, *VALUES]))
FILLER = (
    "The river runs slowly past the old mill.",
    "Rain fell upon the hills for most of the day.",
    "A cart went by, and then the road was empty.",
    "The children played in the garden until it was dark.",
    "There was a fire in the hall and a dog before it.",
    "Nobody came to the door that morning.",
    "The wind was in the west and the sea was calm.",
    "They spoke of the harvest and of the price of corn.",
)
LARGEST_SETS = len(WORDS) // 2
LONGEST_FILLER = 100_000
PASSKEY_DIGITS = 5


def write_phone_book(rng: random.Random, count: int) -> Question:
    """People with numbers, one of whom is asked for."""
    people, numbers = rng.sample(PEOPLE, count), draw_values(rng, 4, count)
    lines = [f"{person}: {number}" for person, number in zip(people, numbers, strict=True)]
    wanted = rng.randrange(count)
    return look_up(lines, numbers, wanted, f"What is the number of {people[wanted]}?")


def write_associations(rng: random.Random, count: int) -> Question:
    """Pairs; then half of the keys are asked for, and all but the last have their answers."""
    keys, values = rng.sample(KEYS, count), draw_values(rng, VALUES, count)
    pairs = [f"{key} {value}" for key, value in zip(keys, values, strict=True)]
    *before, wanted = rng.sample(range(count), max(1, count // 2))
    return Question(
        context="\n".join(pairs),
        question="\n".join([*(pairs[index] for index in before), keys[wanted]]),
        answers=(values[wanted],),
        join="\n",
        chance=values.count(values[wanted]) / count,
    )


def write_sets(rng: random.Random, count: int, *, smaller_first: bool) -> Question:
    """Two sets that share one word. The larger has `count` words, the smaller up to half as many.

    In both orders the same generator writes the same sets. Guessing is guessing among the smaller one's words.
    """
    smaller = rng.randint(1, max(1, count // 2))
    shared, *others = rng.sample(WORDS, count + smaller - 1)
    sets = [[shared, *others[: smaller - 1]], [shared, *others[smaller - 1 :]]]
    for words in sets:
        rng.shuffle(words)
    first, second = sets if smaller_first else reversed(sets)
    return Question(
        context=f"First list: {', '.join(first)}.\nSecond list: {', '.join(second)}.",
        question="Question: Which word is in both lists?\nAnswer:",
        opening="Question: Which word is in both lists?",
        answers=(shared,),
        join="\n",
        chance=1 / smaller,
    )


def write_passkey(rng: random.Random, count: int) -> Question:
    """`count` sentences that do not matter, and a number among them."""
    (key,) = draw_values(rng, PASSKEY_DIGITS, 1)
    sentences = rng.choices(FILLER, k=count)
    sentences.insert(rng.randint(0, count), f"The pass key is {key}. Remember it: {key} is the pass key.")
    return Question(
        context=" ".join(sentences),
        question="Question: What is the pass key?\nAnswer:",
        opening="Question: What is the pass key?",
        answers=(key,),
        join="\n",
        chance=1 / (9 * 10 ** (PASSKEY_DIGITS - 1)),
    )


GENERATED = (
    FACTS,
    Task("phonebook", "the number of a person", whole_line, 12, write_phone_book, most_facts=len(PEOPLE)),
    Task("mqar", "associative recall with several queries", whole_line, 12, write_associations, most_facts=len(KEYS)),
    Task(
        "disjoint-small",
        "the word that two sets share, the smaller set first",
        whole_line,
        12,
        partial(write_sets, smaller_first=True),
        most_facts=LARGEST_SETS,
    ),
    Task(
        "disjoint-large",
        "the same sets, the larger one first",
        whole_line,
        12,
        partial(write_sets, smaller_first=False),
        most_facts=LARGEST_SETS,
    ),
    Task("passkey", "a number among sentences", whole_line, 12, write_passkey, most_facts=LONGEST_FILLER),
)
