"""Asking all questions in every reading, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean

from ostinato.server.evals.asking import Answer, Server
from ostinato.server.evals.intervals import Pairs, gain_interval, mcnemar, wilson
from ostinato.server.evals.question import Question, Task

Progress = Callable[[str, int, int], None]
Outcome = list[bool]


@dataclass(frozen=True, slots=True)
class Sheet:
    """The questions of a task over so many facts (None: its data set has what it has).

    questions: to be read once, and to be read again. They are the same questions, but the authors of a task may trim
    their contexts differently.
    """

    task: Task
    facts: int | None
    once: Sequence[Question]
    again: Sequence[Question]

    def read(self, times: int) -> Sequence[Question]:
        return self.once if times == 1 else self.again


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked, and how. cache: whether states of the prefix cache may be used."""

    sheets: Sequence[Sheet]
    repeats: Sequence[int]
    form: str
    concurrency: int
    cache: bool


@dataclass(frozen=True, slots=True)
class Point:
    """One task over so many facts, read so many times. accuracy: the share of right answers, with its 95 % interval.

    chance: what guessing would reach, where that is known. scores: means of all scores of the task. prompt_tokens: of
    all readings; of them cached_tokens came from a state, and the others were read. seconds: by the clock, with
    `concurrency` questions under way.
    """

    task: str
    facts: int | None
    repeat: int
    questions: int
    right: int
    accuracy: float
    low: float
    high: float
    chance: float | None
    scores: Mapping[str, float]
    prompt_tokens: int
    cached_tokens: int
    read_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same questions answered in two ways: by how much the first of `what` is more often right.

    won, lost: questions that only the first got right, and only the second. p_value: of McNemar's exact test.
    """

    task: str
    facts: int | None
    what: str
    difference: float
    low: float
    high: float
    won: int
    lost: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Report:
    points: list[Point] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    def as_object(self) -> dict[str, object]:
        return asdict(self)


async def measure(server: Server, plan: Plan, progress: Progress) -> Report:
    """Asks everything. Raises AskError."""
    report = Report()
    outcomes: dict[tuple[str, int | None, int], Outcome] = {}
    for sheet in plan.sheets:
        for times in plan.repeats:
            point, outcome = await _point(server, plan, sheet, times, progress)
            report.points.append(point)
            outcomes[sheet.task.name, sheet.facts, times] = outcome
    report.comparisons.extend(_gains(plan, outcomes))
    report.comparisons.extend(_orders(plan, outcomes))
    return report


async def _point(server: Server, plan: Plan, sheet: Sheet, times: int, progress: Progress) -> tuple[Point, Outcome]:
    started = time.perf_counter()
    questions = sheet.read(times)
    answers = await _ask_all(server, plan, sheet, times, progress)
    seconds = time.perf_counter() - started
    scores = [sheet.task.scorer(answer.text, each.answers) for each, answer in zip(questions, answers, strict=True)]
    outcome = [next(iter(score.values())) == 1.0 for score in scores]
    right, total = sum(outcome), len(outcome)
    low, high = wilson(right, total)
    chances = [each.chance for each in questions if each.chance is not None]
    prompt, cached = sum(each.prompt_tokens for each in answers), sum(each.cached_tokens for each in answers)
    point = Point(
        task=sheet.task.name,
        facts=sheet.facts,
        repeat=times,
        questions=total,
        right=right,
        accuracy=right / total,
        low=low,
        high=high,
        chance=fmean(chances) if chances else None,
        scores={name: fmean(score[name] for score in scores) for name in scores[0]},
        prompt_tokens=prompt,
        cached_tokens=cached,
        read_tokens=prompt - cached,
        completion_tokens=sum(each.completion_tokens for each in answers),
        seconds=seconds,
    )
    return point, outcome


async def _ask_all(server: Server, plan: Plan, sheet: Sheet, times: int, progress: Progress) -> list[Answer]:
    """All answers, in the order of the questions. The first failure ends the others."""
    questions = sheet.read(times)
    free, done = asyncio.Semaphore(plan.concurrency), 0
    label = " ".join([sheet.task.name, *([] if sheet.facts is None else [f"{sheet.facts} facts"]), f"x{times}"])
    progress(label, 0, len(questions))

    async def ask(question: Question) -> Answer:
        nonlocal done
        async with free:
            answer = await server.ask(question.fields(plan.form, times), sheet.task.max_tokens, cache=plan.cache)
        done += 1
        progress(label, done, len(questions))
        return answer

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(question)) for question in questions]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _gains(plan: Plan, outcomes: Mapping[tuple[str, int | None, int], Outcome]) -> list[Comparison]:
    """Every number of readings against one reading."""
    return [
        _compared(sheet.task.name, sheet.facts, f"{times} x - 1 x", outcome, outcomes[*place, 1])
        for sheet in plan.sheets
        for times in plan.repeats
        if times > 1 and 1 in plan.repeats
        for place in [(sheet.task.name, sheet.facts)]
        for outcome in [outcomes[*place, times]]
    ]


def _orders(plan: Plan, outcomes: Mapping[tuple[str, int | None, int], Outcome]) -> list[Comparison]:
    """The same sets in both orders, where both were asked."""
    small, large = "disjoint-small", "disjoint-large"
    return [
        _compared("disjoint", facts, f"small - large, {times} x", outcome, outcomes[large, facts, times])
        for (name, facts, times), outcome in outcomes.items()
        if name == small and (large, facts, times) in outcomes
    ]


def _compared(task: str, facts: int | None, what: str, outcome: Outcome, other: Outcome) -> Comparison:
    pairs = Pairs.of(other, outcome)
    low, high = gain_interval(pairs)
    difference = (pairs.won - pairs.lost) / pairs.total
    return Comparison(task, facts, what, difference, low, high, pairs.won, pairs.lost, mcnemar(pairs))
