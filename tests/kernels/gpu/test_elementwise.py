"""The kernels without a matrix state, in Triton's interpreter, against the references."""

import pytest
import torch

from ostinato.kernels.gpu import OPERATORS
from ostinato.kernels.packed import Packed
from tests.kernels.elementwise_cases import NAMES, check, inputs, state_error
from tests.kernels.random_batches import random_packed, relative_error, same_bits, tokens_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(6))
def test_kernel_equals_reference(seed: int, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = random_packed(generator, longest=(1, 12)[seed % 2])
    check(inputs(name, tokens_of(batch), generator, dtype=dtype), batch, OPERATORS[name])


@pytest.mark.parametrize("name", NAMES)
def test_long_sequences(name: str) -> None:
    lengths = [300, 1, 70] if name != "slstm" else [50, 1, 20]  # its sums are slow in the interpreter
    case = inputs(name, sum(lengths), torch.Generator().manual_seed(0), channels=20)
    check(case, Packed.of([2, -1, 2], lengths, dst=[5, 0, -1]), OPERATORS[name])


@pytest.mark.parametrize(
    ("name", "channels"),
    [("diagonal", 128), ("diagonal", 300), ("wkv4", 128), ("wkv4", 300), ("slstm", 1), ("slstm", 64), ("slstm", 130)],
)
@pytest.mark.usefixtures("programs_run_backwards")
def test_any_number_of_channels_and_order_of_programs(name: str, channels: int) -> None:
    """Full and part blocks of channels; an sLSTM whose matrices are kept (64) or read in slices (130)."""
    case = inputs(name, 6, torch.Generator().manual_seed(channels), channels=channels)
    check(case, Packed.of([4, -1, 4, 1], [3, 0, 2, 1], dst=[-1, 0, 7, 1]), OPERATORS[name])


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_a_scan(name: str) -> None:
    case = inputs(name, 12, torch.Generator().manual_seed(0), channels=12)
    whole, stepped = case.state.clone(), case.state.clone()
    expected = OPERATORS[name](*case.arguments(Packed.of([-1], [12], dst=[4]), whole))
    steps = []
    for t in range(12):
        batch = Packed.of([4 if t else -1], [1], dst=[4])
        steps.append(OPERATORS[name](*case.tokens(t, t + 1).arguments(batch, stepped)))
    assert relative_error(torch.cat(steps), expected) <= 1e-5
    assert state_error(stepped[4:5], whole[4:5]) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_sequence_without_tokens_is_copied(name: str) -> None:
    case = inputs(name, 0, torch.Generator().manual_seed(2))
    state = case.state.clone()
    assert OPERATORS[name](*case.arguments(Packed.of([2, -1], [0, 0], dst=[6, 1]), state)).numel() == 0
    assert same_bits(state[6], case.state[2])
    assert not state[1].any()
