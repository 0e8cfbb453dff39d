"""Which tasks there are, and the questions of those that are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ostinato.engine.errors import RequestError
from ostinato.server.evals.datasets import sample_rows
from ostinato.server.evals.generators import GENERATED
from ostinato.server.evals.published import PUBLISHED
from ostinato.server.evals.question import Task
from ostinato.server.evals.run import Sheet

WITHOUT_DATA = tuple(task.name for task in GENERATED)
WITH_DATA = tuple(each.task.name for each in PUBLISHED)
TASKS: dict[str, Task] = {task.name: task for task in (*GENERATED, *(each.task for each in PUBLISHED))}


def check_choice(names: Sequence[str], facts: Sequence[int], form: str) -> None:
    """Raises RequestError: there is no such task, or it does not have so many facts or this form."""
    for name in names:
        task = TASKS.get(name)
        if task is None:
            raise RequestError(f"there is no task {name!r}: choose from {', '.join(TASKS)}", "task")
        if task.generate is not None and max(facts) > task.most_facts:
            raise RequestError(f"{name} has at most {task.most_facts} facts, not {max(facts)}", "facts")
        if form not in task.forms:
            raise RequestError(f"{name} can be read again in the form {' or '.join(task.forms)} only", "form")


def sheets(names: Sequence[str], facts: Sequence[int], count: int, seed: int, folder: Path | None) -> list[Sheet]:
    """The questions of every task: `count` for each number of facts, or up to `count` rows of a data set.

    folder: of data sets; without, they come from the hub. Raises DataError, RequestError.
    """
    found = []
    for name in names:
        task = TASKS[name]
        if task.generate is None:
            found.append(_sheet_of_rows(name, count, seed, folder))
        else:
            drawn = [(number, task.questions(number, count, seed)) for number in facts]
            found += [Sheet(task, number, questions, questions) for number, questions in drawn]
    return found


def _sheet_of_rows(name: str, count: int, seed: int, folder: Path | None) -> Sheet:
    (published,) = (each for each in PUBLISHED if each.task.name == name)
    rows = sample_rows(published.dataset, folder, count, seed)
    once, again = ([published.ask(row, twice) for row in rows] for twice in (False, True))
    return Sheet(published.task, None, once, again)
