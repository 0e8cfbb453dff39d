"""Projections in every way that weights are packed here: the right product, and a row's bits do not change."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import psutil
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import dispatch
from ostinato.kernels.linear import Activation, Linear, linear_ref
from tests.kernels.random_batches import relative_error, same_bits, spaced, thread_counts

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

ROOT = Path(__file__).parents[2]
BF16 = torch.bfloat16 in dispatch.supported_dtypes(torch.device("cpu"))
AMX = BF16 and dispatch.product(torch.ones(2, 2, dtype=torch.bfloat16)) == "amx"
# oneDNN reads this at its first use: without AMX, its bf16 product is the one of processors that have none.
LIMIT = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
LIMITED = os.environ.items() >= LIMIT.items()

EXACT = [
    ("onednn", torch.float32),
    *([("amx", torch.bfloat16)] if AMX else []),
    *([("onednn", torch.bfloat16)] if LIMITED or (BF16 and not AMX) else []),
]
PACKINGS = [*EXACT, ("plain", torch.float32), ("plain", torch.bfloat16)]
# oneDNN's and PyTorch's products come out in bf16.
TOLERANCE = {
    ("amx", torch.bfloat16): 1e-6,
    ("onednn", torch.float32): 1e-6,
    ("onednn", torch.bfloat16): 4e-3,
    ("plain", torch.float32): 1e-6,
    ("plain", torch.bfloat16): 4e-3,
}
SIZES = [(44, 157), (7, 3), (1, 1), (31, 33), (100, 1), (256, 1024), (768, 3072), (5120, 192), (1024, 4100)]
Packing = tuple[str, torch.dtype]
ACTIVATIONS = get_args(Activation)


def name_of(packing: Packing) -> str:
    return f"{packing[0]}-{str(packing[1]).removeprefix('torch.')}"


@pytest.fixture(params=EXACT, ids=name_of)
def exact(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Packs as the parameter says; the dtype of its weights. Each gives a row the same bits in any company."""
    monkeypatch.setattr(dispatch, "product", lambda weight: request.param[0])
    return request.param[1]


@pytest.fixture(params=PACKINGS, ids=name_of)
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Packing:
    monkeypatch.setattr(dispatch, "product", lambda weight: request.param[0])
    return request.param


def random_linear(into: int, out: int, dtype: torch.dtype, *, bias: bool = False) -> Linear:
    generator = torch.Generator().manual_seed(into)
    weight, biases = torch.randn(out, into, generator=generator).to(dtype), torch.randn(out, generator=generator)
    return Linear(weight, biases if bias else None)


def random_rows(rows: int, into: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, into, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize(("into", "out"), SIZES)
def test_product_bias_and_residual_equal_double(packing: Packing, into: int, out: int, rows: int) -> None:
    weight, bias, x = random_rows(out, into, 2).to(packing[1]), random_rows(1, out, 3)[0], random_rows(rows, into)
    residual, linear, with_bias = random_rows(rows, out, 4), Linear(weight), Linear(weight, bias.to(packing[1]))
    product = x.to(packing[1]).double() @ weight.double().T
    biased = product + bias.to(packing[1]).double()
    for found, expected in (
        (linear(x), product),
        (with_bias(x), biased),
        (linear(x, residual), product + residual),
        (with_bias(x, residual), biased + residual),
        (linear_ref(x, weight, bias.to(packing[1]), residual, out), biased + residual),
    ):
        assert found.dtype == torch.float32
        assert relative_error(found, expected) <= max(TOLERANCE[packing], 4e-3 * (packing[1] == torch.bfloat16))


@pytest.mark.parametrize(("into", "out"), [(44, 157), (256, 1024)])
def test_product_is_as_exact_as_the_packing_allows(packing: Packing, into: int, out: int) -> None:
    linear, x = random_linear(into, out, packing[1]), random_rows(9, into).to(packing[1])
    weight = torch.randn(out, into, generator=torch.Generator().manual_seed(into)).to(packing[1])
    assert relative_error(linear(x), x.double() @ weight.double().T) <= TOLERANCE[packing]


@pytest.mark.parametrize(
    ("into", "out"), [(1, 1), (31, 33), (44, 157), (16, 768), (256, 1024), (2048, 260), (5120, 96), (16416, 40)]
)
def test_a_row_does_not_depend_on_the_others(exact: torch.dtype, into: int, out: int) -> None:
    linear, x = random_linear(into, out, exact, bias=True), random_rows(2048, into).to(exact)
    residual = random_rows(2048, out)
    whole = linear(x, residual)
    for i, _ in enumerate(thread_counts(1, 2)):
        for j, rows in enumerate((1, 2, 3, 5, 8, 16, 17, 31, 33, 64, 127, 129, 256, 300, 512)):
            start = (2048 - rows) * ((i + j) % 3) // 2
            piece = slice(start, start + rows)
            assert same_bits(linear(x[piece].clone(), residual[piece].clone()), whole[piece]), rows


def test_no_number_of_rows_matters(exact: torch.dtype) -> None:
    linear, x = random_linear(33, 17, exact), random_rows(2048, 33).to(exact)
    whole = linear(x)
    for rows in range(2049):
        assert same_bits(linear(x[2048 - rows :]), whole[2048 - rows :]), rows


@pytest.mark.parametrize(("into", "out"), [(16, 128), (128, 16), (2048, 256)])
def test_rounding_does_not_hide_another_order_of_summation(exact: torch.dtype, into: int, out: int) -> None:
    """Sums that nearly cancel keep fewer of their leading bits, so rounding to bf16 shows fp32's last ones."""
    x, noise, half = (
        random_rows(300, into // 2),
        random_rows(300, into // 2, 2) * 2**-12,
        random_rows(out, into // 2, 3),
    )
    linear, x = Linear(torch.cat([half, -half], dim=1).to(exact)), torch.cat([x, x + noise], dim=1).to(exact)
    whole = linear(x)
    for rows in (1, 2, 3, 4, 5, 17, 70):
        assert same_bits(torch.cat([linear(part) for part in x.split(rows)]), whole), rows


@pytest.mark.skipif(LIMITED, reason="runs this file as that process")
@pytest.mark.skipif(not BF16, reason="needs a processor that computes in bf16 (AVX-512 or newer)")
def test_onednn_in_bf16_is_exact_where_there_is_no_amx() -> None:
    """In a process of its own, where AMX is hidden from oneDNN."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "onednn-bfloat16", str(Path(__file__).relative_to(ROOT))]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **LIMIT}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_are_rounded_to_the_weights_dtype(packing: Packing, dtype: torch.dtype) -> None:
    linear, x = random_linear(70, 40, packing[1]), random_rows(37, 70).to(dtype)
    assert same_bits(linear(x), linear(x.to(packing[1])))


def test_operands_need_not_be_contiguous(packing: Packing) -> None:
    weight, bias = random_rows(40, 70, 5).to(packing[1]), random_rows(1, 80, 6)[0]
    x, residual = random_rows(37, 70).to(packing[1]), random_rows(37, 40, 2)
    expected = Linear(weight.clone(), bias[::2].clone())(x, residual)
    wide = torch.full((40, 100), torch.nan, dtype=packing[1])
    wide[:, 10:80] = weight
    linear = Linear(wide[:, 10:80], bias[::2])
    for rows in (x, spaced(x), x.T.contiguous().T):
        for terms in (residual, spaced(residual), residual.T.contiguous().T):
            assert same_bits(linear(rows, terms), expected)


def test_memory_does_not_grow_with_the_numbers_of_rows_met(exact: torch.dtype) -> None:
    """oneDNN keeps code for every number of rows that it is called with, unless it is padded to one of a few."""
    linear, x, memory = random_linear(64, 64, exact), random_rows(1024, 64).to(exact), psutil.Process().memory_info
    for rows in range(2, 1025, 2):
        linear(x[:rows])
    before = memory().rss
    for rows in range(1, 1025, 2):
        linear(x[:rows])
    assert memory().rss - before < 4e6


def rows_of_many_sizes(outputs: int, inputs: int) -> Tensor:
    """Of 23 rows each a thousandfold of the one before, from nearly the smallest normal numbers to the largest."""
    powers = torch.linspace(-110, 110, 23).repeat(outputs // 23 + 1)[:outputs]
    weight = random_rows(outputs, inputs)
    return weight.where(weight.abs() > 0.01, 0.01) * 2 ** powers[:, None]


def some_outliers(outputs: int, inputs: int) -> Tensor:
    """One weight in a hundred is of another size, and no two of these alike."""
    weight, count = random_rows(outputs, inputs), outputs * inputs // 100
    weight.view(-1)[torch.arange(count) * 100 + 99] *= 2 ** torch.linspace(-100, 100, count)
    return weight


def any_bits(outputs: int, inputs: int) -> Tensor:
    """Of all numbers that are computed with: finite, and not below the normal ones."""
    generator = torch.Generator().manual_seed(8)
    bits = torch.randint(-(2**15), 2**15, (outputs, inputs), dtype=torch.int16, generator=generator)
    weight = bits.view(torch.bfloat16)
    return weight.where(weight.isfinite() & (weight.abs() >= torch.finfo(torch.bfloat16).tiny), 0.0).float()


@pytest.mark.skipif(not AMX, reason="needs a processor with AMX: elsewhere weights are not coded")
@pytest.mark.parametrize("rows", [1, 16, 17, 32, 33, 1023])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (33, 31), (157, 44), (100, 1023)])
@pytest.mark.parametrize("weights", [random_rows, some_outliers, rows_of_many_sizes, any_bits, torch.zeros])
def test_coding_weights_loses_nothing(
    weights: Callable[[int, int], Tensor], outputs: int, inputs: int, rows: int
) -> None:
    """Every input by itself: sums of one weight and zeros."""
    weight, ones = weights(outputs, inputs).bfloat16(), torch.eye(inputs)[: min(rows, inputs)]
    assert same_bits(Linear(weight)(ones) + 0.0, weight.float().T[: min(rows, inputs)] + 0.0)  # 0 + -0 is 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_reaches_its_own_output_only(exact: torch.dtype, value: float) -> None:
    weight, x = random_rows(100, 70).to(exact), random_rows(40, 70).abs().to(exact)
    expected = Linear(weight)(x)
    weight[33, 50] = value
    found = Linear(weight)(x)
    assert same_bits(found[:, torch.arange(100) != 33], expected[:, torch.arange(100) != 33])
    torch.testing.assert_close(found[:, 33], torch.full((40,), value), equal_nan=True)


@pytest.mark.skipif(not AMX, reason="needs a processor with AMX: elsewhere weights are not coded")
def test_coded_weights_take_three_quarters_of_their_bytes() -> None:
    weight = random_rows(1024, 1024).bfloat16()
    assert 1.5 <= torch.ops.ostinato.code_weight(weight).numel() / weight.numel() < 1.51
    assert 2.0 <= torch.ops.ostinato.code_weight(any_bits(1024, 1024).bfloat16()).numel() / weight.numel() < 2.001
    with pytest.raises(ValueError, match=r"a weight is \[N,K\] bf16"):
        torch.ops.ostinato.code_weight(weight.float())


def activated(activation: str, product: Tensor) -> Tensor:
    if activation == "relu_square":
        return product.relu().square()
    gate, up = product.chunk(2, dim=-1)
    return up * (F.silu(gate) if activation == "swiglu" else F.gelu(gate, approximate="tanh"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize(("into", "out"), [(44, 158), (7, 4), (256, 1024)])
def test_activated_product_equals_double(
    packing: Packing, into: int, out: int, rows: int, activation: Activation
) -> None:
    weight, bias, x = random_rows(out, into, 2).to(packing[1]), random_rows(1, out, 3)[0], random_rows(rows, into)
    product = x.to(packing[1]).double() @ weight.double().T
    for given, expected in ((None, product), (bias, product + bias.double())):
        found = Linear(weight, given).activated(x, activation, torch.float32)
        assert found.dtype == torch.float32
        most = max(2 * TOLERANCE[packing], 4e-3 * (packing[1] == torch.bfloat16))
        assert relative_error(found, activated(activation, expected)) <= most


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("into", "out"), [(44, 158), (256, 4160)])
@pytest.mark.parametrize("weights", [random_rows, some_outliers])
def test_activated_product_has_the_bits_of_a_product_and_an_activation(
    exact: torch.dtype,
    weights: Callable[[int, int], Tensor],
    into: int,
    out: int,
    dtype: torch.dtype,
    activation: Activation,
) -> None:
    weight = weights(out, into).to(exact)
    linear, x = Linear(weight, random_rows(1, out, 9)[0]), random_rows(300, into)
    expected = getattr(torch.ops.ostinato, activation)(linear(x), dtype)
    for _ in thread_counts(1, 2):
        for count in (1, 2, 17, 32, 33, 300):
            found = linear.activated(x[300 - count :], activation, dtype)
            assert same_bits(found, expected[300 - count :]), count


def test_no_rows_give_no_rows(packing: Packing) -> None:
    linear = Linear(torch.ones(64, 4, dtype=packing[1]))
    assert linear(torch.empty(0, 4)).shape == (0, 64)
    assert linear.activated(torch.empty(0, 4), "swiglu", torch.bfloat16).shape == (0, 32)


def test_operands_that_do_not_fit_are_refused(packing: Packing) -> None:
    weight = torch.ones(3, 4, dtype=packing[1])
    linear, x = Linear(weight), torch.ones(2, 4)
    with pytest.raises(ValueError, match="for 4 inputs does not fit"):
        linear(torch.ones(2, 5))
    with pytest.raises(ValueError, match="x must be"):
        linear(torch.ones(4))
    with pytest.raises(ValueError, match="for 4 inputs does not fit"):
        linear.activated(torch.ones(2, 5), "relu_square", torch.float32)
    with pytest.raises(ValueError, match="cannot be 3 outputs"):
        linear.activated(x, "geglu", torch.float32)
    for residual in (torch.ones(2, 4), torch.ones(1, 3), torch.ones(3)):
        with pytest.raises(ValueError, match="the residual must be"):
            linear(x, residual)
    for bias in (torch.ones(2), torch.ones(1), torch.ones(3, 1)):
        with pytest.raises(ValueError, match="a bias"):
            Linear(weight, bias)
    for empty in (torch.ones(0, 4), torch.ones(3, 0)):
        with pytest.raises(ValueError, match="no elements"):
            Linear(empty.to(packing[1]))
