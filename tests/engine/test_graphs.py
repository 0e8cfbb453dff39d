"""Decode through static buffers, in buckets with padding: the bits of a plain step, and no trace beyond it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ostinato.engine import graphs, loading
from ostinato.engine.errors import CapacityError
from ostinato.engine.graphs import CUDACapture, Replay, bucket_sizes
from ostinato.engine.llm import LLM
from ostinato.engine.runner import Runner, StepLogits
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.state_pool import StatePool
from ostinato.engine.types import Chunk, Sequence, StepPlan
from ostinato.kernels import dispatch
from ostinato.models.base import Model
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.models.test_contract import CHECKPOINTS

GOLDENS = Path(__file__).parents[1] / "goldens"
SLOTS = 21


class Recorder:
    """In place of a CUDA graph: runs the function again, on whatever its buffers hold, into the same output.

    `captured`, `replayed`: the batch sizes.
    """

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        output = function().clone()
        self.captured.append(output.shape[0])

        def replay() -> Tensor:
            self.replayed.append(output.shape[0])
            return output.copy_(function())

        return replay


@pytest.mark.parametrize("most", [*range(1, 70), 96, 100, 256, 1000])
def test_the_buckets_hold_every_batch_with_little_padding(most: int) -> None:
    sizes = bucket_sizes(most)
    assert list(sizes) == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, most)
    for batch in range(1, most + 1):
        padding = min(size for size in sizes if size >= batch) - batch
        assert padding < (batch if batch <= 8 else 8 if batch <= 64 else 32)
    assert len(sizes) <= 12 + max(0, most - 64) // 32


def decoding(slot: int, token: int) -> Chunk:
    """The chunk of a sequence that has read its prompt and one token less than it has generated."""
    params = SamplingParams(max_tokens=100)
    sequence = Sequence(f"s{slot}", (1,), params, seed=0, output=[token], num_read=1, slot=slot)
    return Chunk.of(sequence, 1)


def reading(slot: int, prompt: tuple[int, ...], **params: int) -> Chunk:
    sequence = Sequence(f"s{slot}", prompt, SamplingParams(max_tokens=100, **params), seed=0, slot=slot)
    return Chunk.of(sequence, len(prompt))


class Pair:
    """A model with graphs and the same one without, each on a pool of its own."""

    def __init__(self, architecture: str, dtype: torch.dtype) -> None:
        with torch.inference_mode():
            self.model: Model = load_model(open_checkpoint(CHECKPOINTS[architecture]), dtype=dtype)
        self.recorder = Recorder()
        self.pools = [StatePool(self.model.state_spec, SLOTS) for _ in range(2)]
        self.graphs = Runner(self.model, self.pools[0], "cpu", capture=self.recorder)
        self.eager = Runner(self.model, self.pools[1], "cpu")
        assert not any(tensor.any() for tensor in self.pools[0].tensors.values()), "capturing touched a state"

    def run(self, *chunks: Chunk) -> tuple[StepLogits, StepLogits]:
        return self.graphs.run(StepPlan(chunks)), self.eager.run(StepPlan(chunks))

    def assert_same_step(self, *chunks: Chunk) -> None:
        found, expected = self.run(*chunks)
        assert found.spans == expected.spans
        assert torch.isfinite(expected.rows).all()
        assert torch.equal(found.rows, expected.rows)
        for name, tensor in self.pools[0].tensors.items():
            assert torch.equal(tensor, self.pools[1].tensors[name]), name


DTYPES = dispatch.supported_dtypes(torch.device("cpu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", sorted(CHECKPOINTS))
def test_decode_in_buckets_gives_the_bits_of_a_plain_step(architecture: str, dtype: torch.dtype) -> None:
    """Batches of all sizes on the same buffers, in slots in any order, going on from each other."""
    pair, draw = Pair(architecture, dtype), random.Random(0)
    assert sorted(pair.recorder.captured) == list(bucket_sizes(SLOTS))
    batches = draw.sample(range(1, SLOTS + 1), SLOTS)
    for count in batches:
        slots = draw.sample(range(SLOTS), count)
        pair.assert_same_step(*(decoding(slot, draw.randrange(pair.model.vocab_size)) for slot in slots))
    smallest = [min(size for size in bucket_sizes(SLOTS) if size >= count) for count in batches]
    assert pair.recorder.replayed == smallest


def test_padding_leaves_the_slots_of_earlier_steps_alone() -> None:
    """A row that was a sequence in the last step is padding in the next: its slot must be forgotten."""
    pair = Pair("RWKV7ForCausalLM", torch.float32)
    pair.assert_same_step(*(decoding(slot, 5) for slot in (3, 9, 4, 7)))
    for pool in pair.pools:
        for tensor in pool.tensors.values():
            tensor[:, [slot for slot in range(SLOTS) if slot not in (3, 9, 4)]] = torch.nan
    found, expected = pair.run(*(decoding(slot, 6) for slot in (3, 9, 4)))
    assert pair.recorder.replayed == [4, 4]
    assert torch.equal(found.rows, expected.rows)
    assert torch.isfinite(found.rows).all()
    for tensor in pair.pools[0].tensors.values():
        assert torch.isfinite(tensor[:, [3, 9, 4]]).all()
        assert tensor[:, [slot for slot in range(SLOTS) if slot not in (3, 9, 4)]].isnan().all()


@pytest.mark.parametrize(
    "chunks",
    [
        (decoding(2, 5), reading(1, (3, 4, 5))),
        (reading(1, (3, 4)),),
        (decoding(2, 5), reading(1, (3,), prompt_logprobs=0)),
        (Chunk.of(Sequence("s", (1, 2, 3), SamplingParams(), seed=0, slot=4), 1),),  # its logits are not wanted
    ],
    ids=["mixed", "prompt", "scored", "silent"],
)
def test_any_other_step_runs_without_a_graph(chunks: tuple[Chunk, ...]) -> None:
    pair = Pair("MambaForCausalLM", torch.float32)
    pair.assert_same_step(*chunks)
    assert pair.recorder.replayed == []


def test_a_prompt_of_one_token_is_a_step_like_another() -> None:
    pair = Pair("MambaForCausalLM", torch.float32)
    pair.assert_same_step(decoding(2, 5), reading(1, (3,)))
    assert pair.recorder.replayed == [2]


def test_an_engine_decodes_through_graphs_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(loading, "CUDACapture", lambda: recorder)
    monkeypatch.setattr(dispatch, "can_capture", lambda device: True)
    golden = load_file(GOLDENS / "gla" / "golden.safetensors")
    prompts = [golden[f"{which}.input_ids"].tolist() for which in ("short", "long")] * 3
    options = {"dtype": "float32", "max_batch": 5, "max_step_tokens": 16}
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    found = LLM(str(GOLDENS / "gla"), **options).generate(prompts, params)
    assert [each.token_ids for each in found] == [golden[f"{w}.greedy_ids"].tolist() for w in ("short", "long")] * 3
    assert sorted(recorder.captured) == [1, 2, 4, 5]
    assert set(recorder.replayed) >= {1, 5}
    LLM(str(GOLDENS / "gla"), **options, cuda_graphs=False)
    assert len(recorder.captured) == 4


def test_no_memory_for_graphs_is_an_error_with_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(function: Callable[[], Tensor]) -> Replay:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loading, "CUDACapture", lambda: exhausted)
    monkeypatch.setattr(dispatch, "can_capture", lambda device: True)
    with pytest.raises(CapacityError, match="lower state_memory or max_batch, or switch cuda_graphs off"):
        LLM(str(GOLDENS / "gla"), max_batch=2)


def test_there_are_no_graphs_on_the_cpu() -> None:
    assert not dispatch.can_capture(torch.device("cpu"))


class FakeCUDA:
    """What `CUDACapture` needs of torch.cuda; `events` says in which order it was used."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def graph_pool_handle(self) -> tuple[int, int]:
        return (0, 7)

    def CUDAGraph(self) -> FakeCUDA:
        return self

    def replay(self) -> None:
        self.events.append("replay")

    def graph(self, graph: FakeCUDA, *, pool: tuple[int, int], capture_error_mode: str) -> FakeCUDA:
        self.events.append(("capture", pool, capture_error_mode))
        return self

    def __enter__(self) -> None:
        self.events.append("begin")

    def __exit__(self, *_: object) -> None:
        self.events.append("end")


def test_a_capture_runs_once_before_and_gives_the_captured_output(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCUDA()
    monkeypatch.setattr(graphs.torch, "cuda", fake)
    outputs: list[Tensor] = []

    def work() -> Tensor:
        fake.events.append("work")
        outputs.append(torch.tensor(len(outputs)))
        return outputs[-1]

    replay = CUDACapture()(work)
    assert fake.events == ["work", ("capture", (0, 7), "thread_local"), "begin", "work", "end"]
    assert replay() is outputs[1]
    assert replay() is outputs[1]
    assert fake.events[5:] == ["replay", "replay"]
