"""Decode steps as tapes, on the CPU's kernels: the bits of plain steps, for every architecture and in any batches."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ostinato.engine.llm import LLM
from ostinato.engine.runner import Runner
from ostinato.engine.state_pool import StatePool
from ostinato.engine.types import StepPlan
from ostinato.kernels import dispatch, tape
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.engine.test_graphs import DTYPES, GOLDENS, decoding, reading
from tests.models.test_contract import CHECKPOINTS

pytestmark = pytest.mark.skipif(not dispatch.can_record(torch.device("cpu")), reason="needs the C++ operators")
SLOTS = 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", sorted(CHECKPOINTS))
def test_taped_steps_have_the_bits_of_plain_ones(architecture: str, dtype: torch.dtype) -> None:
    """Prompts between them, batches of few sizes in changing slots, and what an earlier step gave is kept."""
    with torch.inference_mode():
        model = load_model(open_checkpoint(CHECKPOINTS[architecture]), dtype=dtype)
    pools = [StatePool(model.state_spec, SLOTS) for _ in range(2)]
    taped, plain = Runner(model, pools[0], "cpu", record=tape.record), Runner(model, pools[1], "cpu")
    draw, kept = random.Random(3), []
    for i in range(24):
        slots = draw.sample(range(SLOTS), draw.choice((1, 2, 5)))
        chunks = [decoding(slot, draw.randrange(model.vocab_size)) for slot in slots]
        if i % 8 == 0:
            chunks.append(reading(next(slot for slot in range(SLOTS) if slot not in slots), (3, 4, 5)))
        found, expected = taped.run(StepPlan(tuple(chunks))).rows, plain.run(StepPlan(tuple(chunks))).rows
        kept.append((found, expected))
    for found, expected in kept:
        assert torch.isfinite(expected).all()
        assert torch.equal(found, expected)
    for name, tensor in pools[0].tensors.items():
        assert torch.equal(tensor, pools[1].tensors[name]), name


def test_an_engine_on_the_cpu_decodes_with_tapes(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    original = tape.record

    def record(function: object) -> tuple[Tensor, tape.Replay]:
        result, replay = original(function)  # type: ignore[arg-type]  # handed through
        recorded.append(result.shape[0])
        return result, replay

    monkeypatch.setattr(tape, "record", record)
    llm = LLM(str(GOLDENS / "gla"), dtype="float32", max_batch=3)
    llm.generate([[1, 2], [3], [4, 5, 6]])
    assert sorted(set(recorded)) == sorted(recorded), "a batch size was recorded twice"
    assert 3 in recorded


class BreakingTapes:
    """A `Record` whose function or replay raises when it is told to, after having done its work."""

    def __init__(self) -> None:
        self.breaks, self.recorded = False, 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Tensor, tape.Replay]:
        self.recorded += 1
        result, replay = tape.record(lambda: self._run(function))
        return result, lambda: self._run(replay)

    def _run(self, function: Callable[[], Tensor]) -> Tensor:
        result = function()
        if self.breaks:
            raise RuntimeError("a kernel died")
        return result


@pytest.mark.parametrize("known", [False, True], ids=["while it is recorded", "while it is replayed"])
def test_a_tape_of_a_step_that_failed_is_discarded(known: bool) -> None:
    """The next step of that size records anew, and has the bits of a plain one; other tapes stay."""
    with torch.inference_mode():
        model = load_model(open_checkpoint(CHECKPOINTS["GLAForCausalLM"]))
    breaking, pools = BreakingTapes(), [StatePool(model.state_spec, SLOTS) for _ in range(2)]
    taped, plain = Runner(model, pools[0], "cpu", record=breaking), Runner(model, pools[1], "cpu")

    def step(size: int) -> StepPlan:
        return StepPlan(tuple(decoding(slot, 3 + slot) for slot in range(size)))

    for size in (2, 3) if known else (2,):
        assert torch.equal(taped.run(step(size)).rows, plain.run(step(size)).rows)
    breaking.breaks = True
    with pytest.raises(RuntimeError, match="a kernel died"):
        taped.run(step(3))
    breaking.breaks = False
    for slot in range(SLOTS):
        taped.clear(slot)
        plain.clear(slot)
    before = breaking.recorded
    for size in (3, 2, 3):
        assert torch.equal(taped.run(step(size)).rows, plain.run(step(size)).rows)
    assert breaking.recorded == before + 1, "only the failed one is recorded again"
