"""Projections: the right product, and the same bits for a row whatever the rows around it."""

import pytest
import torch

from ostinato.kernels.dispatch import supported_dtypes
from ostinato.kernels.linear import Linear
from tests.kernels.random_batches import relative_error

DTYPES = supported_dtypes(torch.device("cpu"))
SIZES = [(44, 157), (7, 3), (100, 1), (256, 1024), (768, 3072), (2048, 2048), (5120, 192), (1024, 4100), (16, 768)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("into", "out"), SIZES)
def test_product_equals_double(into: int, out: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(out, into).to(dtype), torch.randn(out), torch.randn(5, into).to(dtype)
    expected = x.double() @ weight.double().T + bias.double()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    assert relative_error(Linear(weight, bias)(x), expected) <= tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("into", "out"), SIZES)
def test_a_row_does_not_depend_on_the_others(into: int, out: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, x = Linear(torch.randn(out, into).to(dtype)), torch.randn(2048, into).to(dtype)
    whole = linear(x)
    threads = torch.get_num_threads()
    try:
        for i, rows in enumerate((1, 2, 3, 5, 8, 16, 17, 31, 33, 64, 127, 129, 256, 300, 512, 1025)):
            torch.set_num_threads(1 + i % 2)
            start = (2048 - rows) * (i % 3) // 2
            assert torch.equal(linear(x[start : start + rows].clone()), whole[start : start + rows]), rows
    finally:
        torch.set_num_threads(threads)


def test_no_rows_give_no_rows() -> None:
    assert Linear(torch.ones(3, 4))(torch.empty(0, 4)).shape == (0, 3)


@pytest.mark.skipif(torch.bfloat16 not in DTYPES, reason="needs a CPU that computes in bf16 (AVX-512 or newer)")
@pytest.mark.parametrize(("into", "out"), [(16, 128), (128, 16), (2048, 256)])
def test_rounding_does_not_hide_another_order_of_summation(into: int, out: int) -> None:
    """Sums that nearly cancel keep fewer of their leading bits, so rounding to bf16 shows fp32's last ones."""
    torch.manual_seed(into)
    x, noise = torch.randn(300, into // 2), torch.randn(300, into // 2) * 2**-12
    half = torch.randn(out, into // 2)
    linear, x = Linear(torch.cat([half, -half], dim=1).bfloat16()), torch.cat([x, x + noise], dim=1).bfloat16()
    whole = linear(x)
    for rows in (1, 2, 3, 4, 5, 17, 70):
        assert torch.equal(torch.cat([linear(part) for part in x.split(rows)]), whole), rows
