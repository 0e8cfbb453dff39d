"""A token has the same bits whatever tokens are beside it, in every Triton operator on rows.

Those with memory, and the matrix product, have such tests beside their others.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ostinato.kernels.gpu import OPERATORS, pointwise, rows, rwkv7
from tests.kernels.random_batches import uniform

HEADS, WIDTH = 3, 20
CHANNELS = HEADS * WIDTH

PARAMETERS = uniform(torch.Generator().manual_seed(0), 2, CHANNELS)
WEIGHT, BIAS = PARAMETERS.unbind()


def _headed(x: Tensor) -> Tensor:
    return x.view(-1, HEADS, WIDTH)


def _gated(x: Tensor) -> Tensor:
    return rows.rms_norm(_headed(x), _headed(WEIGHT)[0], 1e-5, torch.bfloat16, _headed(-x), True)


def _rwkv7_inputs(x: Tensor) -> Tensor:
    return torch.cat(rwkv7.rwkv7_inputs(x, -x, x, x, x, x, WEIGHT, BIAS, HEADS), -1)


def _rwkv7_output(x: Tensor) -> Tensor:
    weight, bias = _headed(PARAMETERS).unbind()
    return rwkv7.rwkv7_output(_headed(x), x, -x, x, x, weight, weight, bias, 1e-5, torch.float32)


ROW_OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: OPERATORS[name] for name in pointwise.FUNCTIONS},
    "log_sigmoid": lambda x: pointwise.log_sigmoid(x, 0.5),
    "relu_square": lambda x: pointwise.relu_square(x, torch.float16),
    "swiglu": lambda x: pointwise.swiglu(x, torch.bfloat16),
    "geglu": lambda x: pointwise.geglu(x, torch.bfloat16),
    "rms_norm": lambda x: rows.rms_norm(x, WEIGHT, 1e-5, torch.float32, None, False),
    "rms_norm, gated": _gated,
    "layer_norm": lambda x: rows.layer_norm(x, WEIGHT, BIAS, 1e-5, torch.float32),
    "rwkv7_inputs": _rwkv7_inputs,
    "rwkv7_output": _rwkv7_output,
}


@pytest.mark.parametrize("name", ROW_OPERATORS)
def test_a_row_has_the_same_bits_in_any_batch(name: str) -> None:
    operator, generator = ROW_OPERATORS[name], torch.Generator().manual_seed(5)
    x = uniform(generator, 12, CHANNELS, low=-6.0, high=6.0)
    whole, order = operator(x), torch.randperm(12, generator=generator)
    assert torch.equal(operator(x[order]), whole[order])
    for start, stop in ((0, 1), (7, 10)):
        assert torch.equal(operator(x[start:stop]), whole[start:stop])
