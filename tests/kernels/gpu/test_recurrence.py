"""The recurrence token by token: Triton against the reference, and the bits of batch-invariant mode."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ostinato.kernels.gpu import mode
from ostinato.kernels.gpu.recurrence import LOOP_TOKENS, Call, launches, recurrence
from ostinato.kernels.packed import Packed
from tests.kernels.gpu.recurrence_forms import SIZES, SLOTS, errors, operands, places
from tests.kernels.random_batches import uniform

PARAMETERS = ("rate", "step_bias", "bonus", "skip", "normalize", "scale")


@pytest.fixture
def batch_invariant() -> Iterator[None]:
    with mode.set_to(True):
        yield


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("seed", range(2))
def test_step_equals_reference(form: str, seed: int) -> None:
    y, state = errors(form, (1, 1, 1, 1, 1, 1), seed, torch.float32)
    assert y <= 1e-5
    assert state <= 1e-5


@pytest.mark.parametrize("form", SIZES)
def test_short_sequences_equal_reference(form: str) -> None:
    y, state = errors(form, (3, 0, 1, LOOP_TOKENS // 2, 0, 2), 2, torch.float32)
    assert y <= 1e-5
    assert state <= 1e-5


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_operands(form: str, dtype: torch.dtype) -> None:
    y, state = errors(form, (2, 1, 0, 1, 3, 0), 3, dtype)
    assert y <= 1e-2
    assert state <= 1e-2


@pytest.mark.parametrize("form", ["mamba", "retnet", "rwkv6", "gated-delta", "rwkv7"])
def test_bf16_state(form: str) -> None:
    y, state = errors(form, (1, 4, 0, 1, 1, 3), 4, torch.float32, torch.bfloat16)
    assert y <= 1e-5
    assert state <= 1e-3  # all but equal: an element on the edge between two bf16 numbers may fall to either side


def test_long_sequences_of_a_matrix_decay() -> None:
    y, state = errors("mamba", (40, 0, 1, 17, 3, 0), 5, torch.float32)
    assert y <= 5e-5
    assert state <= 5e-5


def test_no_sequences() -> None:
    given = operands("gla", 0, torch.Generator().manual_seed(6), torch.float32)
    state = torch.ones(SLOTS, 2, 20, 40)
    assert recurrence(**given, state=state, **places(Packed.of([], []))).shape == (0, 2, 20)
    assert torch.equal(state, torch.ones_like(state))


def test_offsets_beyond_32_bits() -> None:
    """A pool and an operand of more than 2^31 elements; memory that is never touched takes none."""
    keys, stride = 16, 1_100_000_000
    memory = torch.empty(2 * stride + 4096, dtype=torch.bfloat16)
    slot = memory.numel() // keys**2 - 1
    state = memory[: (slot + 1) * keys**2].view(slot + 1, 1, keys, keys)
    state[slot] = 1
    q = memory.as_strided((3, 1, keys), (stride, keys, 1))
    q.fill_(2)
    ones = torch.ones(3, 1, keys)
    batch = Packed.of([slot], [3])
    y = recurrence(q, ones, ones, state, batch.src, batch.dst, batch.starts, batch.longest)
    assert torch.equal(y, 2.0 * keys * torch.tensor([2.0, 3.0, 4.0]).view(3, 1, 1).expand(3, 1, keys))
    assert torch.equal(state[slot], torch.full((1, keys, keys), 4.0).bfloat16())


@pytest.mark.parametrize(
    ("form", "state_dtype"),
    [
        ("mamba", torch.bfloat16),
        ("mamba2", torch.float32),
        ("rwkv6", torch.float32),
        ("gated-delta", torch.bfloat16),
        ("rwkv7", torch.float32),
    ],
)
@pytest.mark.usefixtures("batch_invariant")
def test_batch_invariant_bits(form: str, state_dtype: torch.dtype) -> None:
    """Read at once, or in pieces between batch mates and from slot to slot: the same bits."""
    generator = torch.Generator().manual_seed(7)
    heads, values, keys = SIZES[form]
    tokens, pieces = 21, (1, 2, 17, 1)
    given = operands(form, tokens, generator, torch.bfloat16)
    pool = uniform(generator, SLOTS, heads, values, keys).to(state_dtype)
    whole_pool, split_pool = pool.clone(), pool.clone()
    whole = recurrence(**given, state=whole_pool, **places(Packed.of([4], [tokens])))
    found, start = [], 0
    for turn, length in enumerate(pieces):
        mates = operands(form, 2, generator, torch.bfloat16)
        batch = Packed.of([8, 4 - turn, -1], [1, length, 1], dst=[8, 3 - turn, -1])
        both = {name: _between(x, start, length, mates[name]) for name, x in given.items() if name not in PARAMETERS}
        both |= {name: x for name, x in given.items() if name in PARAMETERS}
        found.append(recurrence(**both, state=split_pool, **places(batch))[1 : 1 + length])
        start += length
    assert torch.equal(torch.cat(found), whole)
    assert torch.equal(split_pool[0], whole_pool[4])


def _between(x: Tensor, start: int, length: int, mate: Tensor) -> Tensor:
    return torch.cat([mate[:1], x[start : start + length], mate[1:]])


def _kernels(form: str, longest: int) -> list[str]:
    given = operands(form, longest, torch.Generator().manual_seed(0), torch.float32)
    heads, values, keys = SIZES[form]
    call = Call(**given, state=torch.empty(1, heads, values, keys), **places(Packed.of([0], [longest])))
    return [launch.kernel.__name__ for launch in launches(call, torch.empty(longest, heads, values))]


def test_only_long_sequences_are_read_in_chunks() -> None:
    chunked = ["pairs_kernel", "scan_kernel"]
    assert _kernels("gla", LOOP_TOKENS) == ["loop_kernel"]
    assert _kernels("gla", LOOP_TOKENS + 1) == chunked
    assert _kernels("mamba2", LOOP_TOKENS + 1) == chunked
    assert _kernels("mamba", LOOP_TOKENS + 1) == ["loop_kernel"]


@pytest.mark.usefixtures("batch_invariant")
def test_batch_invariant_mode_reads_token_by_token() -> None:
    assert _kernels("gla", 100) == ["loop_kernel"]
