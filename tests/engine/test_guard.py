"""The state guard: when it looks, what it finds, and what becomes of an answer whose state has come apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from ostinato.engine.admission import make_sequences
from ostinato.engine.continuation import Continuation
from ostinato.engine.engine import Engine
from ostinato.engine.errors import RequestError
from ostinato.engine.events import FinishReason, TokenEvent
from ostinato.engine.guard import WATCH_STEPS, Guard, GuardOptions, Norms, Reaction, StateHealth
from ostinato.engine.keeping import Keep
from ostinato.engine.prefix_cache import PrefixCache
from ostinato.engine.sampler import Sampler
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.scheduler import Scheduler
from ostinato.engine.types import Sequence
from tests.fakes import EOS, VOCABULARY, ScriptedRunner, next_token

PROMPT = list(range(1, 41))
LIMIT = 100.0
GREEDY = SamplingParams(max_tokens=60, temperature=0.0)


class NormedRunner(ScriptedRunner):
    """Its norms are a function of how many tokens a slot has read."""

    def __init__(self, norm: Callable[[int], float]) -> None:
        super().__init__()
        self.norm = norm
        self.looked: list[int] = []

    def norms(self, slot: int) -> Norms:
        tokens = len(self.states.get(slot, []))
        self.looked.append(tokens)
        norm = self.norm(tokens)
        return Norms(norm, norm / 2)


def after(tokens: int, norm: float) -> Callable[[int], float]:
    """Harmless before."""
    return lambda read: norm if read >= tokens else 1.0 + read / 100


def engine_of(runner: NormedRunner, *, budget: int = 16, cache: int = 0) -> Engine:
    eos = frozenset({EOS})
    return Engine(Scheduler(4, budget, 8), runner, Sampler(eos), eos, PrefixCache(cache), Guard(runner))


def sequence_of(options: GuardOptions | None, *, name: str = "s", keep: bool = False, **given: object) -> Sequence:
    states = Continuation(guard=options, keep=Keep() if keep else None, **given)  # type: ignore[arg-type]  # of any field
    (made,) = make_sequences(name, [PROMPT], GREEDY, vocab_size=VOCABULARY, tokenizer=None, states=states)
    return made


def run(engine: Engine, *sequences: Sequence) -> list[TokenEvent]:
    engine.add(sequences)
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def generated(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def expected(count: int) -> list[int]:
    history = list(PROMPT)
    for _ in range(count):
        history.append(next_token(history))
    return history[len(PROMPT) :]


@pytest.mark.parametrize("budget", [5, 16, 64])
@pytest.mark.parametrize("bad", [LIMIT + 1, math.nan, math.inf])
@pytest.mark.parametrize("reaction", [Reaction.STOP, Reaction.RESTORE])
def test_an_answer_ends_at_the_first_look_that_finds_too_much(reaction: Reaction, bad: float, budget: int) -> None:
    """The look at 64 tokens is the first after 50; the prompt is 40 long, so 24 tokens were generated and read."""
    runner = NormedRunner(after(50, bad))
    events = run(engine_of(runner, budget=budget), sequence_of(GuardOptions(reaction, LIMIT, every=32)))
    assert generated(events) == expected(24)
    assert events[-1].finish_reason is FinishReason.STATE_GUARD
    assert events[-1].token_ids == ()
    assert runner.looked == [32, 40, 64]
    assert runner.misuse == []
    assert runner.states == {}


@pytest.mark.parametrize("budget", [5, 64])
def test_a_prompt_that_breaks_the_state_gets_no_answer(budget: int) -> None:
    runner = NormedRunner(after(20, math.nan))
    events = run(engine_of(runner, budget=budget), sequence_of(GuardOptions(Reaction.STOP, every=16)))
    assert [event.finish_reason for event in events if event.says_something] == [FinishReason.STATE_GUARD]
    assert runner.looked == [16, 32]


def test_reporting_changes_nothing_but_says_so() -> None:
    runner = NormedRunner(after(50, 1000.0))
    options = GuardOptions(Reaction.REPORT, LIMIT, every=32)
    events = run(engine_of(runner), sequence_of(options, health=True))
    assert generated(events) == expected(60)
    assert events[-1].finish_reason is FinishReason.LENGTH
    growth = 1000.0 / 1.4
    assert events[-1].health == StateHealth(99, Norms(1000.0, 500.0), pytest.approx(growth), exceeded_at=64)
    assert all(event.health is None for event in events[:-1])


def test_health_is_told_only_where_it_is_asked_for() -> None:
    runner = NormedRunner(after(50, 2.0))
    silent = run(engine_of(runner), sequence_of(GuardOptions(Reaction.STOP, LIMIT, every=32)))
    assert silent[-1].health is None
    asked = run(engine_of(runner), sequence_of(None, health=True))
    assert asked[-1].health is not None
    assert asked[-1].health.norm_growth == pytest.approx(2.0 / 1.4)
    assert asked[-1].health.exceeded_at is None


def test_nobody_else_is_looked_at_or_ended() -> None:
    runner = NormedRunner(lambda tokens: math.nan)
    events = run(
        engine_of(runner), sequence_of(None, name="free"), sequence_of(GuardOptions(Reaction.STOP), name="held")
    )
    ends = {event.sequence_id: event.finish_reason for event in events if event.finish_reason}
    assert ends == {"free-0": FinishReason.LENGTH, "held-0": FinishReason.STATE_GUARD}
    assert generated([event for event in events if event.sequence_id == "free-0"]) == expected(60)


def test_a_stopped_answer_leaves_no_state() -> None:
    runner = NormedRunner(after(50, LIMIT + 1))
    engine = engine_of(runner, cache=2**20)
    options = GuardOptions(Reaction.STOP, LIMIT, every=32)
    events = run(engine, sequence_of(options, keep=True, scope="me"))
    assert events[-1].finish_reason is FinishReason.STATE_GUARD
    assert events[-1].snapshots == ()
    assert engine.keeper.cache.num_states == 1  # the prompt's, which was good


def test_a_restored_answer_leaves_the_last_good_state() -> None:
    """Looks at 32, 40 (the prompt's end), 64 and 96: the last good one is at 64, with 24 tokens of the answer."""
    runner = NormedRunner(after(70, LIMIT + 1))
    sequence = sequence_of(GuardOptions(Reaction.RESTORE, LIMIT, every=32), keep=True)
    events = run(engine_of(runner), sequence)
    assert generated(events) == expected(56)
    (snapshot,) = events[-1].snapshots
    assert snapshot.log.tokens == (*PROMPT, *expected(24))
    assert snapshot.state.tensors["history"].tolist() == [*PROMPT, *expected(24)]
    assert snapshot.state.logits is not None
    assert int(snapshot.state.logits.argmax()) == expected(25)[-1]
    assert snapshot.generation.tokens == 24
    assert sum(snapshot.generation.counts.values()) == 24


def test_a_prompt_is_restored_to_its_last_good_place() -> None:
    runner = NormedRunner(after(35, LIMIT + 1))
    events = run(engine_of(runner), sequence_of(GuardOptions(Reaction.RESTORE, LIMIT, every=16), keep=True))
    (snapshot,) = events[-1].snapshots
    assert snapshot.log.tokens == tuple(PROMPT[:32])
    assert snapshot.generation.tokens == 0
    assert snapshot.params is None


def test_without_a_good_look_there_is_nothing_to_restore() -> None:
    runner = NormedRunner(lambda tokens: math.inf)
    events = run(engine_of(runner), sequence_of(GuardOptions(Reaction.RESTORE, every=16), keep=True))
    assert events[-1].finish_reason is FinishReason.STATE_GUARD
    assert events[-1].snapshots == ()


def test_a_state_that_breaks_while_the_rest_of_the_log_is_read_is_not_stored() -> None:
    """The answer's last token is read for the stored state alone, as token 100 of the log."""
    runner = NormedRunner(after(100, math.nan))
    events = run(engine_of(runner), sequence_of(GuardOptions(Reaction.STOP, every=20), keep=True))
    assert generated(events) == expected(60)
    assert events[-1].finish_reason is FinishReason.STATE_GUARD
    assert events[-1].snapshots == ()


def test_choices_that_wait_for_a_broken_prompt_end_too() -> None:
    runner = NormedRunner(after(20, math.nan))
    states = Continuation(guard=GuardOptions(Reaction.STOP, every=16))
    made = make_sequences("s", [PROMPT], GREEDY, n=3, vocab_size=VOCABULARY, tokenizer=None, states=states)
    events = run(engine_of(runner), *made)
    assert [event.finish_reason for event in events if event.finish_reason] == [FinishReason.STATE_GUARD] * 3


def test_the_watch_looks_at_the_slots_in_use_now_and_then() -> None:
    runner = NormedRunner(lambda tokens: 1.0 + tokens / 100)
    engine = engine_of(runner)
    params = SamplingParams(max_tokens=200, temperature=0.0)
    made = [
        make_sequences(name, [PROMPT[:length]], params, vocab_size=VOCABULARY, tokenizer=None)[0]
        for name, length in (("a", 2), ("b", 5))
    ]
    engine.add(made)
    for _ in range(WATCH_STEPS - 2):
        engine.step()
    assert runner.looked == []
    engine.step()
    assert runner.looked == [67]  # the second slot
    assert engine.guard_stats.norm == pytest.approx(1.67)
    engine.step()
    assert runner.looked == [67, 65]  # the first one
    stats = engine.guard_stats
    assert stats.norm == pytest.approx(1.67)
    assert stats.mean_norm == pytest.approx((1.65 + 1.67) / 4)
    assert (stats.looks, stats.not_finite) == (2, 0)


def test_the_watch_counts_states_that_are_not_finite() -> None:
    runner = NormedRunner(lambda tokens: math.nan)
    engine = engine_of(runner)
    run(engine, sequence_of(None))
    run(engine, sequence_of(None))
    assert engine.guard_stats.not_finite == engine.guard_stats.looks == len(runner.looked) > 0
    assert engine.guard_stats.norm == 0.0


def test_reactions_are_counted_once_for_each_sequence() -> None:
    runner = NormedRunner(after(20, LIMIT + 1))
    engine = engine_of(runner)
    for reaction in Reaction:
        run(engine, sequence_of(GuardOptions(reaction, LIMIT, every=16)))
    assert engine.guard_stats.exceeded == {"report": 1, "stop": 1, "restore": 1}


@pytest.mark.parametrize(
    ("given", "problem"),
    [({"norm_limit": 0.0}, "norm_limit"), ({"norm_limit": math.nan}, "norm_limit"), ({"every": 15}, "every")],
)
def test_values_out_of_range_are_refused(given: dict[str, float], problem: str) -> None:
    with pytest.raises(RequestError, match=problem) as raised:
        GuardOptions(**given)  # type: ignore[arg-type]  # that is the point
    assert raised.value.field == "state_guard"
