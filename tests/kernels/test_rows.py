"""Gates and norms: against PyTorch's own in fp64, in every dtype that they round to, and exactness."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import rows
from tests.kernels.random_batches import relative_error, same_bits, thread_counts, uniform

pytestmark = pytest.mark.usefixtures("poisoned_outputs")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
WIDTHS = (1, 3, 15, 16, 17, 44, 64, 100, 257)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu_equals_torch(width: int, dtype: torch.dtype) -> None:
    x = uniform(torch.Generator().manual_seed(width), 5, 3, 2 * width, low=-9.0, high=9.0)
    gate, up = x.double().chunk(2, dim=-1)
    for found in (rows.swiglu(x, dtype), rows.swiglu_ref(x, dtype)):
        assert (found.dtype, found.shape) == (dtype, (5, 3, width))
        assert relative_error(found, F.silu(gate) * up) <= ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_geglu_equals_torch(width: int, dtype: torch.dtype) -> None:
    x = uniform(torch.Generator().manual_seed(width), 5, 3, 2 * width, low=-9.0, high=9.0)
    gate, up = x.double().chunk(2, dim=-1)
    for found in (rows.geglu(x, dtype), rows.geglu_ref(x, dtype)):
        assert (found.dtype, found.shape) == (dtype, (5, 3, width))
        assert relative_error(found, F.gelu(gate, approximate="tanh") * up) <= ROUNDING[dtype]


def test_geglu_at_the_ends() -> None:
    gate = torch.tensor([-1e30, -1e4, -100.0, 0.0, 100.0, 1e30, torch.inf, torch.nan])
    found = rows.geglu(torch.stack([gate, torch.full_like(gate, 2.0)], -1), torch.float32).squeeze(-1)
    assert found[:7].tolist() == [0.0, 0.0, 0.0, 0.0, 200.0, 2 * float(gate[5]), torch.inf]
    assert found[7].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_relu_square_equals_torch(width: int, dtype: torch.dtype) -> None:
    x = uniform(torch.Generator().manual_seed(width), 7, width, low=-9.0, high=9.0)
    x[0] = -0.0
    for found in (rows.relu_square(x, dtype), rows.relu_square_ref(x, dtype)):
        assert same_bits(found, F.relu(x).square().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_norms_equal_torch(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    x, weight, bias = uniform(generator, 13, width, high=5.0), uniform(generator, width), uniform(generator, width)
    rms = F.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    layer = F.layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5)
    for found, expected in (
        (rows.rms_norm(x, weight, 1e-5, dtype), rms),
        (rows.rms_norm_ref(x, weight, 1e-5, dtype), rms),
        (rows.layer_norm(x, weight, bias, 1e-5, dtype), layer),
        (rows.layer_norm_ref(x, weight, bias, 1e-5, dtype), layer),
    ):
        assert found.dtype == dtype
        assert relative_error(found, expected) <= ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_gated_norm_equals_torch(width: int, gate_first: bool, dtype: torch.dtype) -> None:
    """With the gate as it comes out of a joined projection: flat, and a slice of longer rows."""
    generator = torch.Generator().manual_seed(width)
    x, weight = uniform(generator, 6, 4, width), uniform(generator, width)
    gate = uniform(generator, 6, 4 * width + 7, low=-6.0, high=6.0)[:, 3:-4]
    factor = F.silu(gate.double()).view(6, 4, width)
    inside, outside = (factor, 1.0) if gate_first else (1.0, factor)
    expected = F.rms_norm(x.double() * inside, (width,), weight.double(), 1e-5) * outside
    found = rows.rms_norm(x, weight, 1e-5, dtype, gate=gate, gate_first=gate_first)
    reference = rows.rms_norm_ref(x, weight, 1e-5, dtype, gate.contiguous(), gate_first)
    assert relative_error(found, expected) <= ROUNDING[dtype]
    assert relative_error(reference, expected) <= ROUNDING[dtype]


@pytest.mark.parametrize(("groups", "width"), [(2, 64), (3, 20), (5, 7)])
def test_weights_per_group_normalise_groups_apart(groups: int, width: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    x, weight, bias = (uniform(generator, *n, groups, width) for n in ((9,), (), ()))
    group_norm = F.group_norm(x.view(9, -1), groups, weight.view(-1), bias.view(-1), 64e-5).view(9, groups, width)
    parts = [F.rms_norm(x[:, i], (width,), weight[i], 1e-5) for i in range(groups)]
    assert relative_error(rows.layer_norm(x, weight, bias, 64e-5), group_norm) <= 1e-6
    assert relative_error(rows.layer_norm_ref(x, weight, bias, 64e-5, torch.float32), group_norm) <= 1e-6
    assert relative_error(rows.rms_norm(x, weight, 1e-5), torch.stack(parts, dim=1)) <= 1e-6
    assert relative_error(rows.rms_norm_ref(x, weight, 1e-5, torch.float32), torch.stack(parts, dim=1)) <= 1e-6


def test_a_row_far_from_zero_keeps_its_variance() -> None:
    """Not the mean of squares less the square of the mean, which would cancel."""
    x = uniform(torch.Generator().manual_seed(0), 4, 100) + 1000.0
    expected = F.layer_norm(x.double(), (100,), eps=1e-5)
    assert relative_error(rows.layer_norm(x, torch.ones(100), torch.zeros(100), 1e-5), expected) <= 1e-4


def _row_operators(width: int) -> dict[str, Callable[[Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(width)
    weight, bias = uniform(generator, width), uniform(generator, width)
    return {
        "rms_norm": lambda x: rows.rms_norm(x, weight, 1e-5, torch.bfloat16),
        "gated": lambda x: rows.rms_norm(x, weight, 1e-5, gate=x + 1),
        "gated_first": lambda x: rows.rms_norm(x, weight, 1e-5, gate=x + 1, gate_first=True),
        "layer_norm": lambda x: rows.layer_norm(x, weight, bias, 1e-5),
        "swiglu": lambda x: rows.swiglu(torch.cat([x, x + 1], dim=-1), torch.float32),
        "geglu": lambda x: rows.geglu(torch.cat([x, x + 1], dim=-1), torch.float32),
        "relu_square": lambda x: rows.relu_square(x, torch.float16),
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", _row_operators(1))
def test_a_row_does_not_depend_on_the_others_or_on_threads(name: str, width: int) -> None:
    function, x = _row_operators(width)[name], uniform(torch.Generator().manual_seed(width), 2000, width)
    whole = function(x)
    for _ in thread_counts(1, 2):
        for start, stop in ((0, 1), (3, 4), (7, 1300), (1999, 2000), (5, 5)):
            assert same_bits(function(x[start:stop].clone()), whole[start:stop])


def test_references_have_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, gate = (uniform(generator, *shape).double().requires_grad_() for shape in ((3, 6), (6,), (3, 6)))
    double = torch.float64
    assert torch.autograd.gradcheck(lambda x: rows.swiglu_ref(x, double), (x,))
    assert torch.autograd.gradcheck(lambda x: rows.geglu_ref(x, double), (x,))
    assert torch.autograd.gradcheck(lambda x: rows.sqrt_ref(x.square() + 1), (x,))
    assert torch.autograd.gradcheck(lambda x: rows.relu_square_ref(x, double), (x,))
    assert torch.autograd.gradcheck(lambda x: rows.log_sigmoid_ref(x, 0.25), (x,))
    assert torch.autograd.gradcheck(lambda x, w, b: rows.layer_norm_ref(x, w, b, 1e-5, double), (x, weight, weight))
    for first in (True, False):
        assert torch.autograd.gradcheck(rows.rms_norm_ref, (x, weight, 1e-5, double, gate, first))


def test_arguments_that_do_not_fit_are_refused() -> None:
    x, ones = torch.ones(2, 4), torch.ones(4)
    with pytest.raises(ValueError, match="does not fit rows"):
        rows.rms_norm(x, torch.ones(5), 1e-5)
    with pytest.raises(ValueError, match="does not fit rows"):
        rows.rms_norm(x, torch.ones(3, 4), 1e-5)
    with pytest.raises(ValueError, match="does not fit rows"):
        rows.rms_norm(x, torch.ones(()), 1e-5)
    with pytest.raises(ValueError, match="a gate"):
        rows.rms_norm(x, ones, 1e-5, gate=torch.ones(2, 3))
    with pytest.raises(ValueError, match="does not fit rows"):
        rows.layer_norm(x, torch.ones(5), torch.ones(5), 1e-5)
    with pytest.raises(ValueError, match="does not fit weight"):
        rows.layer_norm(x, ones, torch.ones(5), 1e-5)
    with pytest.raises(ValueError, match="rows of two halves"):
        rows.swiglu(torch.ones(2, 3), torch.float32)
    with pytest.raises(ValueError, match="rows of two halves"):
        rows.geglu(torch.ones(2, 3), torch.float32)
    for call in (
        lambda: rows.rms_norm(x.bfloat16(), ones, 1e-5),
        lambda: rows.rms_norm(x, ones.double(), 1e-5),
        lambda: rows.rms_norm(x, ones, 1e-5, gate=x.double()),
        lambda: rows.layer_norm(x, ones, ones.half(), 1e-5),
        lambda: rows.swiglu(x.bfloat16(), torch.float32),
        lambda: rows.relu_square(x.double(), torch.float32),
    ):
        with pytest.raises(TypeError, match="expected float32"):
            call()
    with pytest.raises(RuntimeError, match="expected float32, bfloat16 or float16"):
        rows.relu_square(x, torch.float64)


def test_no_elements_give_no_elements() -> None:
    for shape in ((0, 4), (3, 0)):
        x, weight = torch.empty(shape), torch.empty(shape[-1])
        assert rows.rms_norm(x, weight, 1e-5, gate=x).shape == shape
        assert rows.layer_norm(x, weight, weight, 1e-5).shape == shape
        assert rows.relu_square(x, torch.float32).shape == shape
        assert rows.swiglu(x, torch.bfloat16).shape == (shape[0], shape[1] // 2)
