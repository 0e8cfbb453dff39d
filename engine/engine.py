"""The engine: sequences in, events out, one step at a time. Not thread-safe: it belongs to one thread."""

import logging
from collections.abc import Sequence as Items
from typing import Protocol

from ostinato.engine.errors import StepError
from ostinato.engine.runner import StepLogits
from ostinato.engine.scheduler import Scheduler
from ostinato.engine.stopping import aborted, accept, failure
from ostinato.engine.types import Sampled, SamplingParams, Sequence, StepPlan, TokenEvent

logger = logging.getLogger(__name__)

WARM_UP_PROMPTS = (1, 2, 64)  # tokens: one, a few and many, for which a GPU has kernels of their own


class StepRunner(Protocol):
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
    """Plans, runs, samples, commits."""

    def __init__(
        self, scheduler: Scheduler, runner: StepRunner, sampler: StepSampler, eos_token_ids: frozenset[int]
    ) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._sampler = sampler
        self._eos_token_ids = eos_token_ids

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    def add(self, sequences: Items[Sequence]) -> None:
        """Queues sequences, all or none. Raises QueueFullError."""
        self.scheduler.add(sequences)

    def step(self) -> list[TokenEvent]:
        """Advances everything that runs. An exception in the model ends the sequences of this step, and only those."""
        plan = self.scheduler.schedule()
        try:
            logits = self._runner.run(plan)
            sampled = self._sampler(logits, plan)
        except Exception as error:
            logger.exception("an engine step of %d sequences failed", len(plan.chunks))
            return [self._end(failure(chunk.sequence, str(error)), chunk.sequence) for chunk in plan.chunks]
        return self._commit(plan, sampled)

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

    def abort(self, sequence: Sequence) -> TokenEvent:
        """Ends a sequence wherever it is, and frees its slot at once."""
        return self._end(aborted(sequence), sequence)

    def _commit(self, plan: StepPlan, sampled: list[Sampled]) -> list[TokenEvent]:
        events = []
        for chunk, result in zip(plan.chunks, sampled, strict=True):
            chunk.sequence.num_read += chunk.length
            event = self._accept(chunk.sequence, result)
            events.append(self._end(event, chunk.sequence) if event.finish_reason else event)
        return events

    def _accept(self, sequence: Sequence, result: Sampled) -> TokenEvent:
        try:
            return accept(sequence, result, self._eos_token_ids)
        except Exception as error:
            logger.exception("a token of %s could not be turned into text", sequence.id)
            return failure(sequence, str(error))

    def _end(self, event: TokenEvent, sequence: Sequence) -> TokenEvent:
        sequence.finish_reason = event.finish_reason
        slot = self.scheduler.remove(sequence)
        if slot >= 0:
            self._runner.clear(slot)
        return event
