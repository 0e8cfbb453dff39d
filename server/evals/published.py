"""The recall tasks of Arora et al. (2024, arXiv 2407.05483) on their published data sets, in the authors' templates.

Read once (`default`) and twice (`twice`), the prompts are letter for letter those of the tasks that the authors run,
with their different ways of trimming. Read three times, the context of `twice` comes once more. A row is a mapping
with the data set's own field names: `text`, `key`, `value` (FDA, SWDE); `context`, `question`, `orig_question`,
`answers` (NQ, TriviaQA, DROP); `text`, `context`, `question`, `value` (SQuAD).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ostinato.engine.errors import RequestError
from ostinato.server.evals.question import FORMS, Question, Task
from ostinato.server.evals.scoring import Scorer, contains, contains_and_squad

Row = Mapping[str, object]
MAX_TOKENS = 48
SUMMARY = "Summary of information above..."
MARKS = re.compile(r"\[PAR\]|\[DOC\]|\[TLE\]")


@dataclass(frozen=True, slots=True)
class Published:
    """A task and where its questions are. `ask` writes the question of a row, to be read once, or more often."""

    task: Task
    dataset: str  # name on the hub
    ask: Callable[[Row, bool], Question]


def text_of(row: Row, name: str) -> str:
    """Raises RequestError: the row has no such text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise RequestError(f"a row has no text {name!r}: its fields are {', '.join(map(str, row))}", "data")
    return value


def answers_of(row: Row) -> tuple[str, ...]:
    """Raises RequestError: the row has no list of texts called `answers`."""
    value = row.get("answers")
    texts = [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
    if not isinstance(value, list) or not texts or len(texts) < len(value):
        raise RequestError("a row has no list of texts 'answers', or an empty one", "data")
    return tuple(texts)


def fda(row: Row, again: bool) -> Question:
    text = _without_key(row, text_of(row, "text")).strip("\n").strip(".")
    return _by_key(row, text if text.endswith(".") else f"{text}.")


def swde(row: Row, again: bool) -> Question:
    text = _without_key(row, text_of(row, "text").split(SUMMARY)[0])
    if not again:
        return _by_key(row, text.strip("\n").strip().strip("\n").strip().strip(".") + ".")
    text = text.strip("\n").strip(".").strip().strip("\n").strip()
    return _by_key(row, text if text.endswith(".") else f"{text}.")


def _without_key(row: Row, text: str) -> str:
    return _without_end(text, text_of(row, "key") + ":")


def _by_key(row: Row, context: str) -> Question:
    key = text_of(row, "key")
    key = key[:1].upper() + key[1:]
    opening = f"Information about {key.strip(':')}."
    return Question(context, f"{key}:", (text_of(row, "value"),), opening)


def natural_questions(row: Row, again: bool) -> Question:
    context, question = text_of(row, "context").strip(), text_of(row, "question").strip()
    if not again:  # here the authors cut once, and look at the case of letters
        return _over(row, context.removesuffix(question), again, opening=text_of(row, "orig_question").strip(":"))
    return drop(row, again)


def drop(row: Row, again: bool) -> Question:
    context = _without_end(text_of(row, "context").strip(), text_of(row, "question").strip())
    return _over(row, context, again, opening=text_of(row, "orig_question").strip(":"))


def trivia(row: Row, again: bool) -> Question:
    context = MARKS.sub("", text_of(row, "context").strip())
    context = _without_end(context, text_of(row, "question").strip())
    return _over(row, context, again, opening=text_of(row, "orig_question"))


def _over(row: Row, context: str, again: bool, *, opening: str) -> Question:
    context = context.strip().strip(".")
    question = text_of(row, "question").strip()
    return Question(f"{context.strip() if again else context}.", question, answers_of(row), opening)


def squad(row: Row, again: bool) -> Question:
    context = text_of(row, "context").split("Question:")[0]
    return Question(context, text_of(row, "question"), (text_of(row, "value"),), last=text_of(row, "text").strip())


def _without_end(text: str, end: str) -> str:
    """Without all of `end` at the end, whatever the case of letters."""
    while end and text.lower().endswith(end.lower()):
        text = text[: -len(end)]
    return text


def _published(name: str, about: str, dataset: str, ask: Callable[[Row, bool], Question], scorer: Scorer) -> Published:
    forms = ("qccq",) if ask is squad else FORMS
    return Published(Task(name, about, scorer, MAX_TOKENS, forms=forms), f"hazyresearch/{dataset}", ask)


PUBLISHED = (
    _published("fda", "attributes of medical devices", "based-fda", fda, contains),
    _published("swde", "attributes on web pages", "based-swde-v2", swde, contains),
    _published("nq-512", "Natural Questions, 512 tokens", "based_nq_512", natural_questions, contains),
    _published("nq-1024", "Natural Questions, 1024 tokens", "based_nq_1024", natural_questions, contains),
    _published("nq-2048", "Natural Questions, 2048 tokens", "based_nq_2048", natural_questions, contains),
    _published("squad", "SQuAD, completion", "based-squad", squad, contains_and_squad),
    _published("triviaqa", "TriviaQA", "based_triviaqa", trivia, contains_and_squad),
    _published("drop", "DROP", "based_drop", drop, contains),
)
