"""Elementwise functions in Triton: every element against PyTorch's own in double precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.gpu import OPERATORS
from ostinato.kernels.gpu.pointwise import geglu, log_sigmoid, relu_square, swiglu
from tests.kernels.random_batches import relative_error, uniform

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "softplus": F.softplus,
    "sqrt": lambda x: F.relu(x).sqrt(),
}
ROUNDED = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def everywhere(highest: float = 80.0) -> Tensor:
    near = torch.logspace(-8, 1, 400)
    extremes = torch.tensor([-1e4, -100.0, -88.0, -0.0, 0.0, 1e-30, 20.0, highest])
    return torch.cat([torch.linspace(-30, 30, 2001), near, -near, extremes])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_equal_torch(name: str) -> None:
    x = everywhere()
    found = OPERATORS[name](x.view(-1, 1)).view(-1)
    assert torch.allclose(found, FUNCTIONS[name](x.double()).float(), rtol=3e-6, atol=1e-37)


@pytest.mark.parametrize("scale", [1.0, 0.0625])
def test_log_sigmoid_equals_torch(scale: float) -> None:
    x = everywhere(1e4)
    assert torch.allclose(log_sigmoid(x, scale), (F.logsigmoid(x.double()) * scale).float(), rtol=3e-6, atol=1e-37)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_relu_square_equals_torch(dtype: torch.dtype) -> None:
    x = uniform(torch.Generator().manual_seed(1), 3, 700, low=-9.0, high=9.0)
    found = relu_square(x, dtype)
    assert found.dtype == dtype
    assert relative_error(found, F.relu(x.double()) ** 2) <= ROUNDED[dtype]


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (2, 3, 300)])
def test_swiglu_equals_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    gate, up = uniform(generator, *shape, low=-20.0, high=20.0), uniform(generator, *shape)
    found = swiglu(torch.cat([gate, up], -1), dtype)
    assert found.dtype == dtype
    assert relative_error(found, F.silu(gate.double()) * up.double()) <= ROUNDED[dtype]


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (2, 3, 300)])
def test_geglu_equals_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    gate, up = uniform(generator, *shape, low=-20.0, high=20.0), uniform(generator, *shape)
    found = geglu(torch.cat([gate, up], -1), dtype)
    assert found.dtype == dtype
    assert relative_error(found, F.gelu(gate.double(), approximate="tanh") * up.double()) <= ROUNDED[dtype]


def test_no_elements_give_no_elements() -> None:
    assert swiglu(torch.empty(0, 8), torch.bfloat16).shape == (0, 4)
    assert OPERATORS["tanh"](torch.empty(3, 0)).shape == (3, 0)
