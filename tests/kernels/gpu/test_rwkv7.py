"""RWKV-7's operators around the recurrence in Triton: against the references in double precision."""

import pytest
import torch

from ostinato.kernels.gpu.rwkv7 import rwkv7_inputs, rwkv7_output
from ostinato.kernels.rwkv7 import rwkv7_inputs_ref, rwkv7_output_ref
from tests.kernels.random_batches import relative_error, uniform

ROUNDED = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SHAPES = ((1, 1, 64), (5, 3, 64), (4, 2, 20))


@pytest.mark.parametrize("first_layer", [False, True])
@pytest.mark.parametrize(("tokens", "heads", "width"), SHAPES)
def test_inputs_equal_the_reference(tokens: int, heads: int, width: int, first_layer: bool) -> None:
    generator = torch.Generator().manual_seed(width)
    key, value, decay, rate, first, gate = (uniform(generator, tokens, heads * width, high=4.0) for _ in range(6))
    decay *= 20  # to where a channel forgets nothing, and as fast as it can
    key[0, :width] = 0  # the norm of a key is held above 0
    norm, key_gate = uniform(generator, heads * width), uniform(generator, heads * width)
    mixed = (None, None) if first_layer else (first, gate)
    operands = (key, value, decay, rate, *mixed, norm, key_gate)
    doubled = (None if x is None else x.double() for x in operands)
    for found, expected in zip(rwkv7_inputs(*operands, heads), rwkv7_inputs_ref(*doubled, heads), strict=True):
        assert relative_error(found, expected) <= 1e-5


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize(("tokens", "heads", "width"), SHAPES)
def test_output_equals_the_reference(tokens: int, heads: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    y = uniform(generator, tokens, heads, width, high=30.0)
    r, k, v, gate = (uniform(generator, tokens, heads * width) for _ in range(4))
    parameters = [uniform(generator, heads, width) for _ in range(3)]
    operands = (y, r, k, v, gate, *parameters)
    found = rwkv7_output(*operands, 64e-5, dtype)
    assert found.dtype == dtype
    assert (
        relative_error(found, rwkv7_output_ref(*(x.double() for x in operands), 64e-5, torch.float64))
        <= (ROUNDED[dtype])
    )


def test_no_tokens_give_no_tokens() -> None:
    none, channels, heads = torch.empty(0, 12), torch.ones(12), torch.ones(3, 4)
    assert all(x.shape == (0, 12) for x in rwkv7_inputs(none, none, none, none, None, None, channels, channels, 3))
    y = rwkv7_output(torch.empty(0, 3, 4), none, none, none, none, heads, heads, heads, 1e-5, torch.bfloat16)
    assert y.shape == (0, 12)
