"""Whether an answer is right.

`contains` is the score of the recall tasks of Arora et al. (2024, arXiv 2402.18668): a gold answer occurs somewhere in
the answer, whatever the case of letters. `exact` and `f1` are those of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250,
section 5.1), as fractions: both texts without case, punctuation and articles; f1 over their words.

The first score of a scorer is the one that counts as accuracy; it is 0 or 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

Scores = dict[str, float]
Scorer = Callable[[str, Sequence[str]], Scores]

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def contains(answer: str, gold: Sequence[str]) -> Scores:
    return {"contains": float(any(_occurs(text, answer) for text in gold))}


def contains_and_squad(answer: str, gold: Sequence[str]) -> Scores:
    exact = max((float(_words(answer) == _words(text)) for text in gold), default=0.0)
    return {**contains(answer, gold), "exact": exact, "f1": max((_f1(answer, text) for text in gold), default=0.0)}


def whole_line(answer: str, gold: Sequence[str]) -> Scores:
    """The first line is the gold answer, but for case, spaces around it and a full stop behind it."""
    line = answer.strip().split("\n")[0].strip().removesuffix(".").lower()
    return {"exact": float(any(line == text.lower() for text in gold))}


def _occurs(text: str, answer: str) -> bool:
    """As the tasks' authors search: letter by letter, which is not the same as comparing lower-case texts."""
    return re.search(re.escape(text), answer, re.IGNORECASE) is not None


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split()


def _f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall over words; without words on one side, whether there are none on both."""
    found, wanted = _words(answer), _words(gold)
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))
