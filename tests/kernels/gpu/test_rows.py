"""Norms in Triton: against PyTorch's own in double precision."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.gpu.rows import layer_norm, rms_norm
from tests.kernels.random_batches import relative_error, uniform

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
WIDTHS = (1, 3, 44, 64, 257, 2560)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", WIDTHS)
def test_norms_equal_torch(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    x, weight, bias = uniform(generator, 5, width, high=5.0), uniform(generator, width), uniform(generator, width)
    rms = F.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    layer = F.layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5)
    for found, expected in (
        (rms_norm(x, weight, 1e-5, dtype, None, False), rms),
        (layer_norm(x, weight, bias, 1e-5, dtype), layer),
    ):
        assert found.dtype == dtype
        assert found.shape == x.shape
        assert relative_error(found, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("gate_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("groups", "width"), [(0, 100), (1, 64), (4, 37)])
def test_gated_rms_norm_equals_torch(groups: int, width: int, gate_dtype: torch.dtype, gate_first: bool) -> None:
    """Open, shut and saturated gates; groups 0 is a row without any."""
    generator = torch.Generator().manual_seed(groups)
    shape = (groups, width) if groups else (width,)
    x, weight = uniform(generator, 6, *shape, high=3.0), uniform(generator, *shape)
    gate = uniform(generator, 6, *shape, low=-200.0, high=200.0).to(gate_dtype)
    gate[::2] /= 50
    found = rms_norm(x, weight, 1e-5, torch.float32, gate, gate_first)
    assert relative_error(found, _gated(x.double(), weight.double(), gate.double(), gate_first)) <= 1e-5


def _gated(x: Tensor, weight: Tensor, gate: Tensor, gate_first: bool) -> Tensor:
    if gate_first:
        return F.rms_norm(x * F.silu(gate), x.shape[-1:], eps=1e-5) * weight
    return F.rms_norm(x, x.shape[-1:], eps=1e-5) * weight * F.silu(gate)


@pytest.mark.parametrize(("heads", "width"), [(2, 64), (3, 20), (5, 7)])
def test_layer_norm_with_weights_per_head_is_group_norm(heads: int, width: int) -> None:
    generator = torch.Generator().manual_seed(heads)
    x, weight, bias = (uniform(generator, n, heads, width) for n in (9, 1, 1))
    expected = F.group_norm(x.view(9, -1), heads, weight.view(-1), bias.view(-1), 64e-5)
    found = layer_norm(x, weight[0], bias[0], 64e-5, torch.float32)
    assert relative_error(found, expected.view(9, heads, width)) <= 1e-6


def test_rows_may_be_parts_of_wider_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    wide, weight = uniform(generator, 7, 150), uniform(generator, 50)
    x, gate = wide[:, 20:70], wide[:, 90:140]
    apart = rms_norm(x.contiguous(), weight, 1e-5, torch.float32, gate.contiguous(), True)
    assert torch.equal(rms_norm(x, weight, 1e-5, torch.float32, gate, True), apart)
    turned = uniform(generator, 50, 7).T
    assert torch.equal(
        layer_norm(turned, weight, weight, 1e-5, torch.float32),
        layer_norm(turned.contiguous(), weight, weight, 1e-5, torch.float32),
    )


def test_no_rows_give_no_rows() -> None:
    x, weight = torch.empty(0, 4, 6), torch.ones(4, 6)
    assert rms_norm(x, weight, 1e-5, torch.bfloat16, x, False).shape == (0, 4, 6)
    assert layer_norm(x, weight, weight, 1e-5, torch.float32).shape == (0, 4, 6)
