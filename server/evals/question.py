"""What is asked: a question over a context, in the forms in which it can be read several times.

The forms are those of JRT-Prompt (Arora et al. 2024, arXiv 2407.05483): *cqcq*, which the paper names; *qccq*, the
templates of its experiments, where another wording of the question opens; and *ccq*, which reads least. Read once,
all of them are the context and then the question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ostinato.server.evals.scoring import Scorer

FORMS = ("qccq", "cqcq", "ccq")


def order_of(form: str, times: int) -> str:
    """How the server calls the form, read so many times: `qccq`, 3 -> `qcccq`."""
    if times == 1:
        return "cq"
    return {"qccq": "q" + "c" * times + "q", "cqcq": "cq" * times, "ccq": "c" * times + "q"}[form]


@dataclass(frozen=True, slots=True)
class Question:
    """One question, and what counts as its answer.

    opening: another wording of the question, for every place but the last. join, separator: what stands between
    context and question, and between two readings. last: the last reading in a wording of its own, its context
    included. chance: how often guessing among what could be the answer is right; None: not known.
    """

    context: str
    question: str
    answers: tuple[str, ...]
    opening: str | None = None
    join: str = " "
    separator: str = "\n"
    last: str | None = None
    chance: float | None = None

    def fields(self, form: str, times: int) -> dict[str, object]:
        """The fields of a completion request that make the prompt: `prompt`, or `repeat`."""
        if self.last is not None:
            return {"prompt": self._written_out(self.last, times)}
        order = order_of(form, times)
        repeat: dict[str, object] = {"order": order, "context": self.context, "question": self.question}
        if self.opening is not None and order.count("q") > 1:
            repeat["opening"] = self.opening
        return {"repeat": {**repeat, "separator": self.separator, "join": self.join}}

    def _written_out(self, last: str, times: int) -> str:
        readings = [self.context] * (times - 1)
        if readings:
            readings[0] = f"{self.opening or self.question}{self.join}{readings[0]}"
        return self.separator.join([*readings, last])


Generator = Callable[[random.Random, int], Question]
"""Writes a fresh question over so many facts."""


@dataclass(frozen=True, slots=True)
class Task:
    """Something to ask.

    generate: writes a question; None: the questions are rows of a published data set. most_facts: that it can write.
    max_tokens: of an answer, which ends with its line. forms: in which it can be read several times.
    """

    name: str
    about: str
    scorer: Scorer
    max_tokens: int
    generate: Generator | None = None
    most_facts: int = 0
    forms: Sequence[str] = FORMS

    def questions(self, facts: int, count: int, seed: int) -> list[Question]:
        """`count` fresh questions over `facts` facts: the same for the same seed, whatever else is asked."""
        assert self.generate is not None, self.name
        rng = random.Random(f"{seed} {facts}")
        return [self.generate(rng, facts) for _ in range(count)]
