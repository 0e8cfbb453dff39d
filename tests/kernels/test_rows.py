"""Row operators: against PyTorch's own, and exactness whatever the rows around."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import rows
from tests.kernels.random_batches import relative_error, uniform

ELEMENTWISE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sigmoid": (rows.sigmoid, torch.sigmoid),
    "silu": (rows.silu, F.silu),
    "tanh": (rows.tanh, torch.tanh),
    "exp": (rows.exp, torch.exp),
    "softplus": (rows.softplus, F.softplus),
    "log_sigmoid": (rows.log_sigmoid, F.logsigmoid),
}
WIDTHS = (1, 3, 15, 16, 17, 44, 64, 100, 257)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_equals_torch_in_double(name: str) -> None:
    found, expected = ELEMENTWISE[name]
    x = torch.cat([torch.linspace(-30, 30, 40_001), torch.tensor([-1e4, -100.0, -88.0, -0.0, 0.0, 1e-30, 80.0])])
    assert torch.allclose(found(x), expected(x.double()).float(), rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_element_does_not_depend_on_its_position(name: str) -> None:
    function = ELEMENTWISE[name][0]
    x = uniform(torch.Generator().manual_seed(1), 40_003, low=-9.0, high=9.0)
    whole = function(x)
    for start, stop in ((0, 1), (1, 18), (39_999, 40_003), (5, 33_000), (17, 17)):
        assert torch.equal(function(x[start:stop].clone()), whole[start:stop])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", WIDTHS)
def test_norms_equal_torch(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    x, weight, bias = uniform(generator, 13, width, high=5.0), uniform(generator, width), uniform(generator, width)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    rms = F.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    layer = F.layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5)
    assert relative_error(rows.rms_norm(x, weight, 1e-5, dtype), rms) <= tolerance
    assert relative_error(rows.layer_norm(x, weight, bias, 1e-5, dtype), layer) <= tolerance
    assert relative_error(rows.rms_norm_ref(x, weight, 1e-5, dtype), rms) <= tolerance
    assert relative_error(rows.layer_norm_ref(x, weight, bias, 1e-5, dtype), layer) <= tolerance


@pytest.mark.parametrize(("heads", "width"), [(2, 64), (3, 20), (5, 7)])
def test_layer_norm_with_weights_per_head_is_group_norm(heads: int, width: int) -> None:
    generator = torch.Generator().manual_seed(heads)
    x, weight, bias = (uniform(generator, n, heads, width) for n in (9, 1, 1))
    expected = F.group_norm(x.view(9, -1), heads, weight.view(-1), bias.view(-1), 64e-5)
    assert relative_error(rows.layer_norm(x, weight[0], bias[0], 64e-5), expected.view(9, heads, width)) <= 1e-6


@pytest.mark.parametrize("width", WIDTHS)
def test_row_dot_equals_torch(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x, y = uniform(generator, 5, 3, width), uniform(generator, 5, 3, width)
    expected = torch.linalg.vecdot(x.double(), y.double()).unsqueeze(-1)
    assert torch.allclose(rows.row_dot(x, y).double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(rows.row_norm(x).double(), x.double().norm(dim=-1, keepdim=True), rtol=1e-6)
    squares = rows.row_dot(x, x)
    assert torch.equal(rows.row_norm(x), squares.double().sqrt().float()), "the root is not correctly rounded"


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_does_not_depend_on_the_others(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x, weight, bias = uniform(generator, 2000, width), uniform(generator, width), uniform(generator, width)
    for function in (
        lambda x: rows.rms_norm(x, weight, 1e-5),
        lambda x: rows.layer_norm(x, weight, bias, 1e-5),
        lambda x: rows.row_dot(x, x),
        rows.row_norm,
    ):
        whole = function(x)
        for start, stop in ((0, 1), (3, 4), (7, 1300), (1999, 2000)):
            assert torch.equal(function(x[start:stop].clone()), whole[start:stop])


def test_arguments_that_do_not_fit_are_refused() -> None:
    x = torch.ones(2, 4)
    with pytest.raises(TypeError, match="expected float32"):
        rows.sigmoid(x.double())
    with pytest.raises(ValueError, match="rows of 4"):
        rows.rms_norm(x, torch.ones(5), 1e-5)
    with pytest.raises(ValueError, match="do not fit rows"):
        rows.layer_norm(x, torch.ones(4), torch.ones(5), 1e-5)
    with pytest.raises(ValueError, match="equal shapes"):
        rows.row_dot(x, torch.ones(2, 5))


def test_no_elements_give_no_elements() -> None:
    for shape in ((0, 4), (3, 0)):
        x, weight = torch.empty(shape), torch.empty(shape[-1])
        assert rows.rms_norm(x, weight, 1e-5).shape == shape
        assert rows.layer_norm(x, weight, weight, 1e-5).shape == shape
        assert rows.silu(x).shape == shape
    assert rows.row_dot(torch.empty(0, 4), torch.empty(0, 4)).shape == (0, 1)
