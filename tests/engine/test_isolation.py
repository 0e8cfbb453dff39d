"""The canary: no sequence finds a trace of another one's state, on real models."""

import random

import pytest
import torch
from torch import Tensor

from ostinato.engine.engine import Engine
from ostinato.engine.events import FinishReason
from ostinato.engine.runner import Runner, StepLogits
from ostinato.engine.sampler import Sampler
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.scheduler import Scheduler
from ostinato.engine.state_pool import StatePool
from ostinato.engine.types import Sequence, StepPlan
from ostinato.models.base import Model
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.models.test_contract import CHECKPOINTS

SLOTS = 3


class WatchedRunner(Runner):
    """Records the logits of every sequence, and before each step what is found in free slots.

    It only records: an exception in a runner ends the sequences of the step, not the test.
    """

    def __init__(self, model: Model) -> None:
        self.pool = StatePool(model.state_spec, SLOTS)
        self.logits: dict[str, list[Tensor]] = {}
        self.traces: list[str] = []
        super().__init__(model, self.pool, "cpu")

    def run(self, plan: StepPlan) -> StepLogits:
        self.check_free_slots({chunk.sequence.slot for chunk in plan.chunks})
        logits = super().run(plan)
        for chunk, (start, stop) in zip(plan.chunks, logits.spans, strict=True):
            self.logits.setdefault(chunk.sequence.id, []).append(logits.rows[start:stop])
        return logits

    def check_free_slots(self, used: set[int]) -> None:
        for name, tensor in self.pool.tensors.items():
            for slot in set(range(SLOTS)) - used:
                if tensor[:, slot].any():
                    self.traces.append(f"free slot {slot} holds something in {name}")


def start_engine(model: Model) -> tuple[Engine, WatchedRunner]:
    runner = WatchedRunner(model)
    return Engine(
        Scheduler(SLOTS, 8, 100, model.state_spec.encoder_length), runner, Sampler(frozenset()), frozenset()
    ), runner


def random_sequences(model: Model, seed: int, count: int) -> list[Sequence]:
    rng = random.Random(seed)
    return [
        Sequence(
            f"s{i}",
            tuple(rng.randrange(model.vocab_size) for _ in range(rng.randint(1, 25))),
            SamplingParams(max_tokens=rng.randint(1, 8), temperature=rng.choice([0.0, 1.0])),
            seed=i,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("architecture", sorted(CHECKPOINTS))
def test_no_trace_of_other_sequences(architecture: str, seed: int) -> None:
    """Crowded together, with random cancellations, each sequence sees the very bits that it sees alone."""
    with torch.inference_mode():
        model = load_model(open_checkpoint(CHECKPOINTS[architecture]))
    engine, runner = start_engine(model)
    sequences = random_sequences(model, seed, 12)
    engine.add(sequences)
    rng = random.Random(seed)
    while engine.has_work:
        engine.step()
        if rng.random() < 0.1 and engine.scheduler.unfinished():
            engine.abort(rng.choice(engine.scheduler.unfinished()))
    runner.check_free_slots(set())
    assert not runner.traces, f"seed {seed}"
    reasons = [sequence.finish_reason for sequence in sequences]
    assert set(reasons) <= {FinishReason.LENGTH, FinishReason.ABORTED}, f"seed {seed}"
    assert reasons.count(FinishReason.LENGTH) >= 6, f"seed {seed}: too many were cancelled to show anything"
    for crowded, alone in zip(sequences, random_sequences(model, seed, 12), strict=True):
        engine, quiet = start_engine(model)
        engine.add([alone])
        while engine.has_work:
            engine.step()
        assert alone.finish_reason == FinishReason.LENGTH
        assert crowded.output == alone.output[: len(crowded.output)], f"seed {seed}"
        rows = torch.cat(runner.logits.get(crowded.id) or [torch.empty(0, model.vocab_size)])
        assert torch.equal(rows, torch.cat(quiet.logits[alone.id])[: len(rows)]), f"seed {seed}"
