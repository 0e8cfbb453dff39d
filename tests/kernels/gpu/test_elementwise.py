"""The kernels without a matrix state, in Triton's interpreter, against the references."""

import pytest
import torch

from ostinato.kernels.gpu import OPERATORS
from ostinato.kernels.packed import Packed
from tests.kernels.elementwise_cases import SLOTS, inputs, random_packed, state_error, unused, written
from tests.kernels.random_batches import relative_error

NAMES = ["diagonal", "wkv4", "slstm"]


def check(name: str, batch: Packed, generator: torch.Generator, channels: int | None, dtype: torch.dtype) -> None:
    case = inputs(name, int(batch.starts[-1]), generator, channels=channels, dtype=dtype)
    poisoned, expected_state = case.state.clone(), case.state.clone()
    poisoned[unused(batch)] = torch.nan
    found_state = poisoned.clone()
    found, expected = case.run_by(OPERATORS[name], batch, found_state), case.reference(batch, expected_state)
    assert relative_error(found, expected) <= 1e-5
    assert state_error(found_state[written(batch)], expected_state[written(batch)]) <= 1e-5
    kept = [slot for slot in range(SLOTS) if slot not in written(batch)]
    assert torch.equal(found_state[kept].nan_to_num(), poisoned[kept].nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(6))
def test_kernel_equals_reference(seed: int, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    check(name, random_packed(generator, longest=(1, 12)[seed % 2]), generator, None, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_long_sequences(name: str) -> None:
    lengths = [300, 1, 70] if name != "slstm" else [50, 1, 20]  # its interpreted sums are slow
    batch = Packed.of([2, -1, 2], lengths, dst=[5, 0, -1])
    check(name, batch, torch.Generator().manual_seed(0), 20, torch.float32)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("diagonal", 128), ("diagonal", 300), ("wkv4", 128), ("wkv4", 300), ("slstm", 1), ("slstm", 64), ("slstm", 130)],
)
@pytest.mark.usefixtures("programs_run_backwards")
def test_any_number_of_channels_and_order_of_programs(name: str, channels: int) -> None:
    """Full and part blocks of channels; an sLSTM whose matrices are kept (64) or read in slices (130)."""
    batch = Packed.of([4, -1, 4, 1], [3, 0, 2, 1], dst=[-1, 0, 7, 1])
    check(name, batch, torch.Generator().manual_seed(channels), channels, torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_a_scan(name: str) -> None:
    case = inputs(name, 12, torch.Generator().manual_seed(0))
    whole, stepped = case.state.clone(), case.state.clone()
    expected = case.run_by(OPERATORS[name], Packed.of([-1], [12], dst=[4]), whole)
    steps = [
        case.tokens(t, t + 1).run_by(OPERATORS[name], Packed.of([4 if t else -1], [1], dst=[4]), stepped)
        for t in range(12)
    ]
    assert relative_error(torch.cat(steps), expected) <= 1e-5
    assert state_error(stepped[4:5], whole[4:5]) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_sequence_without_tokens_is_copied(name: str) -> None:
    case = inputs(name, 0, torch.Generator().manual_seed(2))
    state = case.state.clone()
    assert case.run_by(OPERATORS[name], Packed.of([2, -1], [0, 0], dst=[6, 1]), state).numel() == 0
    assert torch.equal(state[6], case.state[2])
    assert not state[1].any()
