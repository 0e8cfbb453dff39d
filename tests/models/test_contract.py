"""What every architecture must do, bit for bit: one suite for every row of the registry.

A family joins by a golden folder named in CHECKPOINTS, and a variant of it by one more, whose name ends in `+` and what
is different; a row without one fails the first test.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ostinato.engine.state_pool import StatePool
from ostinato.kernels.dispatch import supported_dtypes
from ostinato.kernels.packed import Packed
from ostinato.models.base import Model
from ostinato.models.checkpoint import Checkpoint, open_checkpoint
from ostinato.models.registry import ARCHITECTURES, load_model
from tests.models.running import begins

GOLDENS = Path(__file__).parents[1] / "goldens"
CHECKPOINTS = {
    "DeltaNetForCausalLM": GOLDENS / "delta_net",
    "FalconMambaForCausalLM": GOLDENS / "falcon_mamba",
    "GLAForCausalLM": GOLDENS / "gla",
    "GatedDeltaNetForCausalLM": GOLDENS / "gated_deltanet",
    "GLAForCausalLM+attn": GOLDENS / "gla_swa",
    "HGRN2ForCausalLM": GOLDENS / "hgrn2",
    "HGRNForCausalLM": GOLDENS / "hgrn",
    "KDAForCausalLM": GOLDENS / "kda",
    "BambaForCausalLM": GOLDENS / "bamba",
    "FalconH1ForCausalLM": GOLDENS / "falcon_h1",
    "GraniteMoeHybridForCausalLM": GOLDENS / "granite4",
    "Qwen3NextForCausalLM": GOLDENS / "qwen3_next",
    "Mamba2ForCausalLM": GOLDENS / "mamba2_codestral_like",
    "MambaForCausalLM": GOLDENS / "mamba_hf",
    "RWKV6ForCausalLM": GOLDENS / "rwkv6_fla",
    "RWKV7ForCausalLM": GOLDENS / "rwkv7_fla",
    "RecurrentGemmaForCausalLM": GOLDENS / "recurrent_gemma",
    "RetNetForCausalLM": GOLDENS / "retnet",
    "SambaForCausalLM": GOLDENS / "samba",
    "based": GOLDENS / "based",
    "jrt": GOLDENS / "jrt",
    "Rwkv5ForCausalLM": GOLDENS / "rwkv5_hf",
    "Rwkv6ForCausalLM": GOLDENS / "rwkv6_hf",
    "RwkvForCausalLM": GOLDENS / "rwkv4_hf",
    "mamba2_ssm": GOLDENS / "mamba2_orig",
    "mamba_ssm": GOLDENS / "mamba_orig",
    "rwkv4_pth": GOLDENS / "rwkv4_pth" / "RWKV-4-Pile-tiny-20220807.pth",
    "rwkv5.2_pth": GOLDENS / "rwkv5_pth" / "RWKV-5-World-tiny-v2-ctx4096.pth",
    "rwkv6_pth": GOLDENS / "rwkv6_pth" / "RWKV-x060-World-tiny-v2.1-ctx4096.pth",
    "rwkv7_pth": GOLDENS / "rwkv7_pth" / "rwkv7-g1-tiny-ctx4096.pth",
    "xLSTMForCausalLM": GOLDENS / "xlstm",
}
# What layers of full attention hold here: fewer tokens than the tests read.
WINDOWS = {
    "BambaForCausalLM": 24,
    "FalconH1ForCausalLM": 21,
    "GraniteMoeHybridForCausalLM": 23,
    "Qwen3NextForCausalLM": 22,
}
DTYPES = supported_dtypes(torch.device("cpu"))
SLOTS = 6


@pytest.fixture(params=sorted(CHECKPOINTS))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in DTYPES])
def model(request: pytest.FixtureRequest, architecture: str) -> Iterator[Model]:
    with torch.inference_mode():
        yield load_model(open_small(architecture), dtype=request.param)


def open_small(architecture: str) -> Checkpoint:
    """Its checkpoint, opened with a window that the tests cross."""
    checkpoint = open_checkpoint(CHECKPOINTS[architecture])
    checkpoint.attention_window = WINDOWS.get(architecture)
    return checkpoint


def begin_with(model: Model, count: int) -> int:
    """The least that a prompt can begin with, and be split behind, if it is no shorter than `count`."""
    return max(count, model.state_spec.encoder_length)


class Reader:
    """Feeds token lists to a model, several sequences at a time, and returns the logits of each."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.pool = StatePool(model.state_spec, SLOTS)

    def read(self, chunks: dict[int, list[int]]) -> dict[int, Tensor]:
        """chunks: slot -> tokens; slot -1 is padding. Returns slot -> logits [length, rows]."""
        lengths = [len(tokens) for tokens in chunks.values()]
        batch = Packed.of(list(chunks), lengths, begins=begins(self.pool.tensors, list(chunks)))
        tokens = torch.tensor([token for tokens in chunks.values() for token in tokens])
        logits = self.model.logits(self.model.forward(tokens, batch, self.pool.tensors))
        return dict(zip(chunks, logits.split(lengths), strict=True))

    def read_in_pieces(self, slot: int, tokens: list[int], lengths: list[int]) -> Tensor:
        pieces = torch.tensor(tokens).split(lengths)
        return torch.cat([self.read({slot: piece.tolist()})[slot] for piece in pieces])

    def state(self, slot: int) -> dict[str, Tensor]:
        return {name: tensor[:, slot].clone() for name, tensor in self.pool.tensors.items()}


def random_tokens(model: Model, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.vocab_size, (count,), generator=generator).tolist()


def random_lengths(total: int, seed: int, first: int) -> list[int]:
    """Of pieces of `total` tokens; first: the least length of the first one."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [int(torch.randint(first, first + 16, (), generator=generator))]
    while sum(lengths) < total:
        lengths.append(min(total - sum(lengths), int(torch.randint(1, 17, (), generator=generator))))
    return lengths


def poison_of(tensor: Tensor) -> float:
    """What no computation survives, or puts there: a counter has no NaN."""
    return torch.nan if tensor.is_floating_point() else -1


def is_poison(tensor: Tensor) -> bool:
    return bool((tensor.isnan() if tensor.is_floating_point() else tensor == -1).all())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_every_registry_row_is_held_to_the_contract() -> None:
    assert {name.partition("+")[0] for name in CHECKPOINTS} == set(ARCHITECTURES)


def test_token_by_token_equals_prefill(model: Model) -> None:
    tokens, whole, single = random_tokens(model, 70, 1), Reader(model), Reader(model)
    expected = whole.read({3: tokens})[3]
    assert torch.isfinite(expected).all()
    first = begin_with(model, 1)
    assert torch.equal(single.read_in_pieces(3, tokens, [first] + [1] * (70 - first)), expected)
    assert same(single.state(3), whole.state(3))


@pytest.mark.parametrize("seed", range(5))
def test_any_chunking_equals_prefill(model: Model, seed: int) -> None:
    tokens, whole, chunked = random_tokens(model, 90, seed), Reader(model), Reader(model)
    expected = whole.read({0: tokens})[0]
    assert torch.equal(chunked.read_in_pieces(5, tokens, random_lengths(90, seed, begin_with(model, 1))), expected)
    assert same(chunked.state(5), whole.state(0))


@pytest.mark.parametrize("seed", range(5))
def test_a_mixed_batch_equals_each_alone(model: Model, seed: int) -> None:
    """Sequences of mixed lengths and at mixed positions, with padding among them, read in two rounds."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (2, 4), generator=generator).tolist()
    slots = torch.randperm(SLOTS, generator=generator)[:4].tolist()
    rounds = [
        {
            slot: random_tokens(model, length, 10 * seed + slot + 100 * i)
            for slot, length in zip(slots, row, strict=True)
        }
        for i, row in enumerate(lengths)
    ]
    together = Reader(model)
    found = [together.read({**chunks, -1: [1, 2, 3]}) for chunks in rounds]
    for slot in slots:
        alone = Reader(model)
        for chunks, logits in zip(rounds, found, strict=True):
            assert torch.equal(logits[slot], alone.read({slot: chunks[slot]})[slot])
        assert same(together.state(slot), alone.state(slot))


def test_threads_do_not_matter(model: Model) -> None:
    tokens, results = random_tokens(model, 64, 2), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(Reader(model).read({0: tokens, 1: tokens[:3]}))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_other_slots_are_left_alone(model: Model) -> None:
    """The other slots are poisoned: they must neither be read nor written."""
    reader, clean = Reader(model), Reader(model)
    for tensor in reader.pool.tensors.values():
        tensor.fill_(poison_of(tensor))
    reader.pool.clear(2)
    tokens = random_tokens(model, 30, 4)
    assert torch.equal(reader.read({2: tokens})[2], clean.read({2: tokens})[2])
    assert torch.equal(reader.read({2: tokens[:1]})[2], clean.read({2: tokens[:1]})[2])
    for slot in set(range(SLOTS)) - {2}:
        assert all(is_poison(tensor) for tensor in reader.state(slot).values())


def test_padding_leaves_no_trace(model: Model) -> None:
    reader = Reader(model)
    reader.read({-1: random_tokens(model, 9, 5)})
    assert all(not tensor.any() for tensor in reader.pool.tensors.values())


def test_the_state_is_all_there_is(model: Model) -> None:
    """Copied to another slot, and the rest of the pool poisoned, a sequence goes on as if nothing had happened."""
    tokens, reader = random_tokens(model, 40, 6), Reader(model)
    expected = Reader(model).read({0: tokens})[0]
    reader.read({1: tokens[:25]})
    for tensor in reader.pool.tensors.values():
        tensor[:, 4] = tensor[:, 1]
        tensor[:, [0, 1, 2, 3, 5]] = poison_of(tensor)
    assert torch.equal(reader.read({4: tokens[25:]})[4], expected[25:])


def test_every_state_tensor_matters(model: Model) -> None:
    """Losing any one tensor of the state changes what follows: the spec names nothing in vain."""
    tokens = random_tokens(model, 30, 8)
    expected = Reader(model).read({0: tokens})[0][20:]
    for name in (tensor.name for tensor in model.state_spec.tensors):
        reader = Reader(model)
        reader.read({0: tokens[:20]})
        reader.pool.tensors[name].zero_()
        assert not torch.allclose(reader.read({0: tokens[20:]})[0], expected, atol=1e-4), name


def test_bytes_per_state_is_what_the_pool_allocates(model: Model) -> None:
    pool = StatePool(model.state_spec, 3)
    assert sum(tensor.nbytes for tensor in pool.tensors.values()) == 3 * model.state_spec.bytes_per_state
    assert pool.num_bytes == 3 * model.state_spec.bytes_per_state
