"""The recurrence chunk by chunk: Triton against the reference, and against itself token by token."""

import pytest
import torch

from ostinato.kernels.gpu import mode
from ostinato.kernels.gpu.recurrence import recurrence
from ostinato.kernels.packed import Packed
from tests.kernels.gpu.recurrence_forms import CHUNKED, SIZES, errors, operands, places
from tests.kernels.random_batches import relative_error, uniform


@pytest.mark.parametrize("form", CHUNKED)
def test_scan_equals_reference(form: str) -> None:
    """Several chunks, the last one full or not; one token; none; padding."""
    y, state = errors(form, (70, 0, 1, 0, 0, 32), 10, torch.float32)
    assert y <= 5e-5
    assert state <= 5e-5


@pytest.mark.parametrize("form", ["linear", "mamba2", "rwkv6", "delta", "scalar-ab"])
@pytest.mark.parametrize("seed", range(2))
def test_random_lengths(form: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(20 + seed)
    lengths = [int(torch.randint(0, high, (), generator=generator)) for high in (3, 60, 20, 2, 40, 4)]
    y, state = errors(form, (*lengths[:5], 17 + lengths[5]), 20 + seed, torch.float32)
    assert y <= 5e-5
    assert state <= 5e-5


@pytest.mark.parametrize("form", ["linear", "mamba2", "delta"])
def test_many_chunks(form: str) -> None:
    y, state = errors(form, (0, 300, 0, 1, 0, 0), 30, torch.float32)
    assert y <= 5e-5
    assert state <= 5e-5


@pytest.mark.parametrize("form", CHUNKED)
def test_bf16_operands(form: str) -> None:
    y, state = errors(form, (0, 0, 1, 50, 0, 0), 40, torch.bfloat16)
    assert y <= 1e-2
    assert state <= 1e-2


@pytest.mark.parametrize("form", ["mamba2", "rwkv6", "gated-delta", "rwkv7"])
def test_fp32_operands_of_a_model_in_bf16(form: str) -> None:
    """They are rounded where they are multiplied."""
    with mode.set_to(False, torch.bfloat16):
        y, state = errors(form, (0, 0, 1, 33, 0, 0), 45, torch.float32)
    assert 1e-4 < y <= 1e-2
    assert 1e-4 < state <= 1e-2


@pytest.mark.parametrize("form", ["mamba2", "gla", "delta", "rwkv7"])
def test_fp16_operands_and_a_bf16_state(form: str) -> None:
    y, state = errors(form, (33, 1, 0, 0, 0, 0), 50, torch.float16, torch.bfloat16)
    assert y <= 1e-2
    assert state <= 1e-2


@pytest.mark.parametrize("form", ["retnet", "rwkv6", "gated-delta", "rwkv7"])
def test_scan_equals_steps(form: str) -> None:
    generator = torch.Generator().manual_seed(60)
    heads, values, keys = SIZES[form]
    given = operands(form, 37, generator, torch.float32)
    state = uniform(generator, 1, heads, values, keys)
    stepped_state = state.clone()
    batch = Packed.of([0], [37])
    y = recurrence(**given, state=state, **places(batch))
    with mode.set_to(True):
        stepped = recurrence(**given, state=stepped_state, **places(batch))
    assert relative_error(y, stepped) <= 5e-5
    assert relative_error(state, stepped_state) <= 5e-5
