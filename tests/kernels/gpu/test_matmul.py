"""Projections in Triton: the fixed-tile product against PyTorch's in double precision."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from ostinato.kernels.gpu.matmul import fixed_tile_linear, linear
from ostinato.kernels.gpu.mode import batch_invariant, set_to
from tests.kernels.random_batches import relative_error, uniform

# Products of bf16 and fp16 are exact in fp32, so one bound serves all.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDE = (4099, 70, torch.float16)  # columns and inner size of a weight that has other tiles


@pytest.fixture
def invariant() -> Iterator[None]:
    with set_to(True):
        yield


SIZES = ((1, 1, 1), (3, 70, 45), (65, 33, 128), (70, 40, 300))


@pytest.mark.parametrize(
    ("rows", "columns", "inner", "dtype"), [*((*sizes, dtype) for sizes in SIZES for dtype in DTYPES), (2, *WIDE)]
)
def test_fixed_tiles_equal_torch(rows: int, columns: int, inner: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = uniform(generator, rows, inner).to(dtype), uniform(generator, columns, inner).to(dtype)
    bias, residual = uniform(generator, columns), uniform(generator, rows, columns)
    product = F.linear(x.double(), weight.double())
    for b, r in ((None, None), (bias, None), (None, residual), (bias, residual)):
        found = fixed_tile_linear(x, weight, b, r)
        assert relative_error(found, product + (0 if b is None else b) + (0 if r is None else r)) <= 1e-6


@pytest.mark.parametrize(("columns", "inner", "dtype"), [*((40, 300, dtype) for dtype in DTYPES), WIDE])
def test_a_row_has_the_same_bits_in_any_batch(columns: int, inner: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(columns)
    x, weight = uniform(generator, 70, inner).to(dtype), uniform(generator, columns, inner).to(dtype)
    bias = uniform(generator, columns)
    whole = fixed_tile_linear(x, weight, bias, None)
    order = torch.randperm(70, generator=generator)
    assert torch.equal(fixed_tile_linear(x[order], weight, bias, None), whole[order])
    for start, stop in ((7, 8), (63, 66)):
        assert torch.equal(fixed_tile_linear(x[start:stop], weight, bias, None), whole[start:stop])


@pytest.mark.usefixtures("invariant")
def test_the_mode_chooses_fixed_tiles() -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight = uniform(generator, 5, 40), uniform(generator, 64, 40).bfloat16()
    assert batch_invariant()
    assert torch.equal(linear(x, weight, None, None, 50), fixed_tile_linear(x, weight[:50], None, None))


def test_the_other_mode_rounds_as_the_library_does() -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight, bias = uniform(generator, 5, 40), uniform(generator, 64, 40).bfloat16(), uniform(generator, 64)
    residual = uniform(generator, 5, 64)
    assert not batch_invariant()
    expected = F.linear(x.bfloat16(), weight).float() + bias + residual
    assert torch.equal(linear(x, weight, bias, residual, 64), expected)


def test_operands_may_be_parts_of_others() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = uniform(generator, 5, 90)[:, 20:60], uniform(generator, 40, 30).T
    expected = F.linear(x.double(), weight.double())
    assert relative_error(fixed_tile_linear(x, weight, None, None), expected) <= 1e-6


def test_no_rows_give_no_rows() -> None:
    assert fixed_tile_linear(torch.empty(0, 4), torch.ones(3, 4), None, None).shape == (0, 3)
