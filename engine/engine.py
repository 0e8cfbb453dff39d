"""The engine: sequences in, events out, one step at a time. Not thread-safe: it belongs to one thread."""

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace
from functools import partial
from typing import Protocol

from torch import Tensor

from ostinato.engine.errors import StepError
from ostinato.engine.events import Fault, FinishReason, Sampled, TokenEvent
from ostinato.engine.followers import replace_leader
from ostinato.engine.guard import Guard, GuardStats
from ostinato.engine.keeping import Keeper, StateRunner
from ostinato.engine.prefix_cache import PrefixCache
from ostinato.engine.restoring import restored
from ostinato.engine.runner import StepLogits
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.scheduler import Moves, Scheduler
from ostinato.engine.step_meter import StepMeter
from ostinato.engine.stopping import aborted, accept, failed, failure, guarded
from ostinato.engine.types import Chunk, Sequence, StepPlan

logger = logging.getLogger(__name__)

WARM_UP_PROMPTS = (1, 2, 64)  # tokens: one, a few and many, for which a GPU has kernels of their own


class StepRunner(StateRunner, Protocol):
    """Runs a plan on a model: the seam at which tests put a scripted one."""

    def run(self, plan: StepPlan) -> StepLogits:
        """Reads the plan's tokens into the states of their slots."""
        ...

    def clear(self, slot: int) -> None:
        """Zeroes the state of a slot that nobody uses any more."""
        ...


class StepSampler(Protocol):
    """Chooses the tokens of one step: one result for each chunk of the plan."""

    def __call__(self, logits: StepLogits, plan: StepPlan) -> list[Sampled]: ...


class Engine:
    """Moves states, plans, runs, samples, commits. cache: budget 0 keeps nothing. guard: None looks at no state."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        sampler: StepSampler,
        eos_token_ids: frozenset[int],
        cache: PrefixCache | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.keeper = Keeper(runner, PrefixCache(0) if cache is None else cache, scheduler.encoder_length)
        self._runner = runner
        self._sampler = sampler
        self._eos_token_ids = eos_token_ids
        self._guard = guard
        self.meter = StepMeter()
        self.tokens_read = 0  # since the start

    @property
    def guard_stats(self) -> GuardStats:
        """What the guard has counted, as it stands."""
        if self._guard is None:
            return GuardStats()
        return replace(self._guard.stats, exceeded=self._guard.stats.exceeded.copy())

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    def add(self, sequences: Items[Sequence]) -> None:
        """Queues sequences, all or none. Raises QueueFullError."""
        self.scheduler.add(sequences)

    def step(self) -> list[TokenEvent]:
        """Advances everything that runs. An exception in the model ends the sequences of this step, and only those."""
        self.meter.begin()
        events = self._move(self.scheduler.admit())
        plan = self.scheduler.plan()
        self.meter.planned(plan)
        try:
            logits = self._runner.run(plan)
            self.meter.lap("run")
            sampled = self._sampler(logits, plan)
            self.meter.lap("sample")
        except Exception as error:
            logger.exception("an engine step of %d sequences failed", len(plan.chunks))
            self.meter.failed += 1
            events += [self._end(failure(chunk.sequence, str(error)), chunk.sequence) for chunk in plan.chunks]
        else:
            events += self._commit(plan, logits, sampled)
            if self._guard is not None:
                self._guard.watch([chunk.sequence.slot for chunk in plan.chunks if chunk.sequence.slot >= 0])
        self.meter.end()
        return events

    def warm_up(self) -> None:
        """Short prompts through everything, so that the first user does not wait for caches and compilers.

        Raises StepError: the model failed.
        """
        params = SamplingParams(max_tokens=1, temperature=0.0)
        for length in WARM_UP_PROMPTS:
            self.add([Sequence(id=f"warm-up-{length}", prompt=(0,) * length, params=params, seed=0)])
            while self.has_work:
                for event in self.step():
                    if event.error is not None:
                        raise StepError(f"the first step of the model failed: {event.error}")
        self.meter = StepMeter()

    def abort(self, sequence: Sequence) -> TokenEvent:
        """Ends a sequence wherever it is, and frees its slot at once."""
        return self._end(aborted(sequence), sequence)

    def park(self, sequence: Sequence) -> list[TokenEvent]:
        """Ends a sequence soon, with a snapshot to go on from elsewhere. One that has not begun, or may not be stored,
        is aborted: nothing of it is lost.
        """
        if sequence.closing is not None:
            return []
        if sequence.waited is None or sequence.park is None or sequence.num_unread == 0:
            return [self.abort(sequence)]
        self.keeper.close(sequence, TokenEvent(sequence.id, sequence.index, finish_reason=FinishReason.PARKED))
        return []

    def _move(self, moves: Moves) -> list[TokenEvent]:
        """States out of slots and into them. Returns the last events of those with which that failed."""
        events = []
        for sequence, slot in moves.parked:
            events += self._attempt(sequence, partial(self.keeper.park, sequence, slot))
            self._runner.clear(slot)
        for sequence in moves.admitted:
            self.meter.begun(sequence)
            events += self._attempt(sequence, partial(self.keeper.begin, sequence))
        return events

    def _attempt(self, sequence: Sequence, move: Callable[[], None]) -> list[TokenEvent]:
        """Ends the sequence if the move raises."""
        try:
            move()
        except Exception as error:
            logger.exception("the state of %s could not be moved", sequence.id)
            return [self._end(failed(sequence, error), sequence)]
        return []

    def _commit(self, plan: StepPlan, logits: StepLogits, sampled: list[Sampled]) -> list[TokenEvent]:
        events = []
        for i, (chunk, result) in enumerate(zip(plan.chunks, sampled, strict=True)):
            self.tokens_read += chunk.length
            chunk.sequence.num_read += chunk.length
            chunk.sequence.origin = None
            event = self._advance(chunk, result, logits.last(i))
            events.append(self._end(event, chunk.sequence) if event.finish_reason else event)
        return events

    def _advance(self, chunk: Chunk, result: Sampled, row: Tensor | None) -> TokenEvent:
        """What one chunk brought. A failure here ends its sequence, and nobody else's."""
        sequence = chunk.sequence
        try:
            if self._guard is not None and self._is_looked_at(chunk, result) and self._guard.ends(sequence, row):
                return guarded(sequence, restored(sequence))
            if sequence.closing is not None:
                return self._read_on(sequence, result, row)
            snapshots = () if result.error else self.keeper.after_chunk(chunk, row)
            before = ("", b"") if sequence.text is None else sequence.text.pending
            event = accept(sequence, result, self._eos_token_ids)
            if event.token_ids:
                self.keeper.follow_text(sequence, event, row, before)
            if event.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                event = self.keeper.finish(sequence, event, row)
            return replace(event, snapshots=(*snapshots, *event.snapshots)) if snapshots else event
        except Exception as error:
            logger.exception("a step of %s could not be completed", sequence.id)
            return failed(sequence, error)

    def _is_looked_at(self, chunk: Chunk, result: Sampled) -> bool:
        """Also where the logits say that the state is not finite."""
        return chunk.looks or (result.error is not None and chunk.sequence.guard is not None)

    def _read_on(self, sequence: Sequence, result: Sampled, row: Tensor | None) -> TokenEvent:
        """A piece of what is read for the stored state alone."""
        if result.error is not None:
            return failure(sequence, result.error, result.fault)
        return (
            self.keeper.closed(sequence, row) if sequence.num_unread == 0 else TokenEvent(sequence.id, sequence.index)
        )

    def _end(self, event: TokenEvent, sequence: Sequence) -> TokenEvent:
        sequence.finish_reason = event.finish_reason
        replace_leader(sequence)
        health = None if self._guard is None else self._guard.last_look(sequence)
        slot = self.scheduler.remove(sequence)
        if slot >= 0:
            self._runner.clear(slot)
        if event.fault in (Fault.LOGITS, Fault.STATE):
            self.meter.not_finite[event.fault] += 1
        waited = time.monotonic() - sequence.arrived if sequence.waited is None else sequence.waited
        return replace(event, reused=sequence.began, reuse=sequence.reuse, waited=waited, health=health)
