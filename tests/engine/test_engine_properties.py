"""Whatever arrives, is cancelled, finishes or fails, in any order: the engine keeps its promises.

The scripted runner predicts from the tokens that a slot has read, so a leaked, shared or uncleared slot shows up as
wrong tokens too, not only as a wrong count.
"""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ostinato.engine.engine import Engine
from ostinato.engine.errors import QueueFullError
from ostinato.engine.events import FinishReason, TokenEvent
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.types import Sequence, StepPlan
from tests.fakes import EOS, VOCABULARY, ScriptedRunner, next_token, scripted_engine


def script(history: list[int]) -> int:
    """Ends a text now and then, so that lengths are not known beforehand."""
    token = next_token(history)
    return EOS if token % 11 == 0 else token


def expected_output(sequence: Sequence) -> list[int]:
    """What the sequence generates when it is alone in the world."""
    history, output = list(sequence.prompt), []
    while len(output) < sequence.params.max_tokens:
        output.append(script(history))
        history.append(output[-1])
        if output[-1] == EOS and not sequence.params.ignore_eos:
            break
    return output


class EngineMachine(RuleBasedStateMachine):
    """Random arrivals, cancellations, steps and failing steps."""

    @initialize(slots=st.integers(1, 4), budget=st.integers(1, 12), queue=st.integers(0, 6), region=st.integers(0, 20))
    def start(self, slots: int, budget: int, queue: int, region: int) -> None:
        self.fail_next = False
        self.region, self.budget = region, slots + budget
        self.runner = ScriptedRunner(script, self.before_step)
        self.engine: Engine = scripted_engine(
            self.runner, slots=slots, max_step_tokens=self.budget, max_queue=queue, encoder_length=region
        )
        self.slots = slots
        self.accepted: dict[str, Sequence] = {}
        self.events: dict[str, list[TokenEvent]] = {}
        self.first_read: list[Sequence] = []

    def before_step(self, plan: StepPlan) -> None:
        self.check_regions(plan)
        for chunk in plan.chunks:
            if chunk.sequence.num_read == 0:
                self.first_read.append(chunk.sequence)
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("the model broke")

    def check_regions(self, plan: StepPlan) -> None:
        """Read in one piece, and one of them at most beyond the budget."""
        cost = 0
        for chunk in plan.chunks:
            if cost >= self.budget:
                self.runner.misuse.append(f"{chunk.sequence.id} is read beyond the budget")
            begins = chunk.sequence.num_read == 0
            if begins and chunk.length < min(self.region, len(chunk.sequence.prompt)):
                self.runner.misuse.append(f"the region of {chunk.sequence.id} is split")
            cost += max(chunk.length, self.region) if begins else chunk.length

    @rule(
        prompt=st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=30),
        max_tokens=st.integers(0, 12),
        ignore_eos=st.booleans(),
        count=st.integers(1, 3),
        priority=st.integers(-1, 1),
    )
    def arrive(self, prompt: list[int], max_tokens: int, ignore_eos: bool, count: int, priority: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=ignore_eos)
        number = len(self.accepted)
        sequences = [
            Sequence(f"s{number + i}", tuple(prompt), params, seed=0, index=i, priority=priority) for i in range(count)
        ]
        room = self.engine.scheduler.room()
        try:
            self.engine.add(sequences)
        except QueueFullError:
            assert count > room
            return
        assert count <= room
        self.accepted.update((sequence.id, sequence) for sequence in sequences)

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.unfinished()))
        slot = sequence.slot
        self.record([self.engine.abort(sequence)])
        assert slot not in self.runner.states, "an aborted sequence keeps its state"

    @rule()
    def step(self) -> None:
        waiting = [sequence for sequence in self.unfinished() if sequence.slot < 0]
        self.record(self.engine.step())
        admitted = [s.priority for s in waiting if s.slot >= 0 or s.finish_reason is not None]
        passed_over = [s.priority for s in waiting if s.slot < 0 and s.finish_reason is None]
        assert max(admitted, default=-9) <= min(passed_over, default=9), "someone more urgent was passed over"

    @precondition(lambda self: self.engine.scheduler.num_running)
    @rule()
    def failing_step(self) -> None:
        self.fail_next = True
        self.record(self.engine.step())

    @invariant()
    def slots_add_up(self) -> None:
        used = [sequence.slot for sequence in self.unfinished() if sequence.slot >= 0]
        assert len(used) == len(set(used)), "a slot is used twice"
        assert len(used) + self.engine.scheduler.num_free == self.slots, "a slot is lost"
        assert set(self.runner.states) <= set(used), "a free slot is not cleared"
        assert not self.runner.misuse, self.runner.misuse

    def teardown(self) -> None:
        """Runs to the end: every sequence has ended once, in a fair order, with the tokens that it gets alone."""
        while self.engine.has_work:
            self.record(self.engine.step())
        assert not self.runner.states
        assert self.engine.scheduler.num_free == self.slots
        for sequence in self.accepted.values():
            self.check_outcome(sequence)
        self.check_order()

    def check_outcome(self, sequence: Sequence) -> None:
        events = self.events.get(sequence.id, [])
        finals = [event for event in events if event.finish_reason is not None]
        assert len(finals) == 1, f"{sequence.id} has {len(finals)} final events"
        assert events[-1] is finals[0], f"{sequence.id} goes on after its final event"
        tokens, expected = [token for event in events for token in event.token_ids], expected_output(sequence)
        assert tokens == expected[: len(tokens)]
        if finals[0].finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert tokens == expected
        else:
            assert len(tokens) <= len(expected)

    def check_order(self) -> None:
        """Among equals, nobody starts before one who came earlier."""
        for priority in (-1, 0, 1):
            started = [int(sequence.id[1:]) for sequence in self.first_read if sequence.priority == priority]
            assert started == sorted(started), f"unfair order at priority {priority}: {started}"
        assert max(Counter(sequence.id for sequence in self.first_read).values(), default=1) == 1

    def unfinished(self) -> list[Sequence]:
        return [sequence for sequence in self.accepted.values() if sequence.finish_reason is None]

    def record(self, events: list[TokenEvent]) -> None:
        for event in events:
            self.events.setdefault(event.sequence_id, []).append(event)


EngineMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, print_blob=True)
TestEngine = EngineMachine.TestCase
