"""The tasks that need no data: what they write is what they say, and the same for the same seed."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ostinato.engine.errors import RequestError
from ostinato.server.evals import words
from ostinato.server.evals.facts import KINDS, write_facts
from ostinato.server.evals.generators import GENERATED, LARGEST_SETS, LONGEST_FILLER
from ostinato.server.evals.question import FORMS, Question, Task, order_of
from ostinato.server.evals.tasks import TASKS, check_choice, sheets
from ostinato.server.repeat import forms_of
from ostinato.server.repeat import order_of as server_order
from ostinato.server.repeat_protocol import RepeatOptions

SCRIPT = Path(__file__).parents[3] / "scripts" / "demo" / "recall.py"


@pytest.fixture(scope="module")
def training() -> Iterator[ModuleType]:
    """The generator of the demo models' training text."""
    spec = importlib.util.spec_from_file_location("demo_recall", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def prompt_of(question: Question, form: str, times: int) -> str:
    """As the server writes it out."""
    fields = question.fields(form, times)
    if "prompt" in fields:
        return str(fields["prompt"])
    options = RepeatOptions.model_validate(fields["repeat"])
    (whole,) = forms_of(options)
    return whole.text(options.context or "")


def solve(task: Task, question: Question) -> str:
    """The answer, by reading the text as a person would."""
    context = question.context
    if task.name.startswith("disjoint"):
        first, second = (set(re.findall(r"\w+", line.split(":")[1])) for line in context.splitlines())
        (shared,) = first & second
        return shared
    if task.name == "passkey":
        (key,) = set(re.findall(r"\d+", context))
        assert f"The pass key is {key}. Remember it: {key} is the pass key." in context
        return key
    if task.name == "mqar":
        *told, asked = question.question.splitlines()
        table = dict(line.split() for line in context.splitlines())
        assert all(table[known] == value for known, value in (line.split() for line in told))
        assert asked not in {line.split()[0] for line in told}
        return table[asked]
    if task.name == "phonebook":
        person = re.search(r"number of (.+)\?", question.question)
        assert person is not None
        return dict(line.split(": ") for line in context.splitlines())[person[1]]
    (line,) = (line for line in context.splitlines() if set(re.findall(r"\w+", line)) & asked_for(question))
    return re.findall(r"\w+", line)[-1]


def asked_for(question: Question) -> set[str]:
    """The key of a question about facts."""
    return set(re.findall(r"\w+", question.question)) & {*words.NAMES, *words.THINGS}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.name)
def test_every_question_has_its_answer_in_the_context(task: Task, seed: int) -> None:
    for facts in (1, 2, 5, 16, min(task.most_facts, 200)):
        for question in task.questions(facts, 20, seed):
            assert question.answers == (solve(task, question),), question
            assert question.chance is not None
            assert 0 < question.chance <= 1


@pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.name)
def test_the_same_seed_asks_the_same(task: Task) -> None:
    assert task.questions(4, 30, 7) == task.questions(4, 30, 7)
    assert task.questions(4, 30, 7)[:10] == task.questions(4, 10, 7)
    assert task.questions(4, 30, 7) != task.questions(4, 30, 8)
    assert len({question.context for question in task.questions(4, 30, 7)}) > 10


@pytest.mark.parametrize("task", [task for task in GENERATED if task.most_facts < LONGEST_FILLER], ids=lambda t: t.name)
def test_the_longest_that_is_promised_can_be_written(task: Task) -> None:
    assert task.questions(task.most_facts, 1, 0)
    with pytest.raises((ValueError, IndexError)):
        task.questions(2 * task.most_facts, 1, 0)
    with pytest.raises(RequestError, match=f"at most {task.most_facts} facts"):
        check_choice([task.name], [2, task.most_facts + 1], "qccq")


@pytest.mark.parametrize("facts", [1, 2, 3, 8, LARGEST_SETS])
def test_the_sets_of_both_orders_are_the_same(facts: int) -> None:
    sizes = set()
    pairs = zip(*(TASKS[name].questions(facts, 40, 0) for name in ("disjoint-small", "disjoint-large")), strict=True)
    for small, large in pairs:
        first, second = (line.split(": ")[1] for line in small.context.splitlines())
        assert [line.split(": ")[1] for line in large.context.splitlines()] == [second, first]
        assert small.answers == large.answers
        sizes.add((first.count(",") + 1, second.count(",") + 1))
    smaller, larger = ({pair[place] for pair in sizes} for place in (0, 1))
    assert larger == {facts}
    assert smaller == set(range(1, max(1, facts // 2) + 1)) or facts == LARGEST_SETS
    assert max(smaller) <= max(1, facts // 2)


def test_facts_are_written_as_the_demo_models_learnt_them(training: ModuleType) -> None:
    """Every kind of the training data, letter for letter: the list, the question, and where the answer begins."""
    assert len(KINDS) == len(training.KINDS)
    for ours, theirs in zip(KINDS, training.KINDS, strict=True):
        assert tuple(ours.keys) == theirs.keys
        assert (ours.values if isinstance(ours.values, int) else tuple(ours.values)) == theirs.values
        assert ours.question == theirs.question
        facts = training.draw_facts(random.Random(theirs.name), theirs, 4)
        lines = [f"{theirs.stem.format(k=key)} {value}{theirs.end}" for key, value in facts]
        assert [ours.fact.format(k=key, v=value) for key, value in facts] == lines


@pytest.mark.parametrize("seed", range(20))
def test_read_once_a_fact_list_is_a_training_document(
    training: ModuleType, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = write_facts(random.Random(seed), 4)
    asked = question.question.splitlines()[0].removeprefix("Question: ")
    (key,) = asked_for(question)
    (kind,) = (kind for kind in training.KINDS if kind.question.format(k=key) == asked)
    pattern = re.escape(kind.stem).replace(r"\{k\}", r"(\w+)") + r" (\w+)" + re.escape(kind.end)
    told = [re.fullmatch(pattern, line) for line in question.context.splitlines()]
    facts = [(match[1], match[2]) for match in told if match is not None]
    assert len(facts) == 4
    monkeypatch.setattr(training, "draw_facts", lambda *_: facts)
    documents = {training.document(random.Random(n), kind, 4, "after", queries=1).text for n in range(60)}
    assert len(documents) == 4, "one for each fact that can be asked for"
    assert f"{prompt_of(question, 'qccq', 1)} {question.answers[0]}\n" in documents


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_every_form_is_one_that_the_server_knows(form: str, times: int) -> None:
    question = TASKS["facts"].questions(3, 1, 0)[0]
    context, asked = question.context, question.question.removesuffix("\nAnswer:")
    again = {
        "qccq": "\n".join([asked, *[context] * times, question.question]),
        "cqcq": "\n".join([*[context, asked] * (times - 1), context, question.question]),
        "ccq": "\n".join([*[context] * times, question.question]),
    }
    assert prompt_of(question, form, times) == (again[form] if times > 1 else f"{context}\n{question.question}")
    assert server_order(RepeatOptions(order=order_of(form, times))).count("c") == times


def test_sheets_have_what_was_asked_for() -> None:
    found = sheets(["mqar", "facts"], [2, 4], 5, 0, None)
    assert [(sheet.task.name, sheet.facts, len(sheet.once)) for sheet in found] == [
        ("mqar", 2, 5),
        ("mqar", 4, 5),
        ("facts", 2, 5),
        ("facts", 4, 5),
    ]
    assert all(sheet.once == sheet.again for sheet in found)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(RequestError, match=r"no task 'chess': choose from facts, .*drop"):
        check_choice(["chess"], [2], "qccq")
    with pytest.raises(RequestError, match="squad can be read again in the form qccq only"):
        check_choice(["squad"], [2], "ccq")
    check_choice(["squad", "passkey"], [2, 10_000], "qccq")
