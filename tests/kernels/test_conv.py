"""The causal convolution: against PyTorch's own and the reference, by slot, and exactness."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.conv import causal_conv, causal_conv_ref
from ostinato.kernels.packed import Packed
from tests.kernels.random_batches import (
    SLOTS,
    poisoned,
    random_packed,
    relative_error,
    same_bits,
    spaced,
    steps,
    thread_counts,
    tokens_of,
    uniform,
    unwritten,
    written,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, batch: Packed, activate: bool) -> Tensor:
    where = (batch.src, batch.dst, batch.starts, batch.longest)
    return causal_conv_ref(x, weight, bias, tail, *where, activate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("seed", range(6))
def test_native_equals_reference(seed: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = random_packed(generator, longest=300 if seed == 5 else 40)
    batch, channels = (batch if seed % 2 else steps(batch)), int(torch.randint(1, 70, (), generator=generator))
    x, tail = uniform(generator, tokens_of(batch), channels), uniform(generator, SLOTS, width - 1, channels).to(dtype)
    x = spaced(x.to(DTYPES[seed % 3]))
    weight, bias = uniform(generator, width, channels), uniform(generator, channels) if seed % 4 else None
    pool, expected_tail = poisoned(tail, batch), tail.clone()
    found_tail = pool.clone()
    found = causal_conv(x, weight, bias, found_tail, batch, activate=seed < 4)
    expected = reference(x, weight, bias, expected_tail, batch, activate=seed < 4)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) <= 1e-6
    assert same_bits(found_tail[written(batch)], expected_tail[written(batch)])
    assert same_bits(found_tail[unwritten(batch)], pool[unwritten(batch)])


@pytest.mark.parametrize("function", [causal_conv, reference], ids=["native", "reference"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 50])
def test_both_are_torch_conv1d(length: int, bias: bool, function: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(length)
    x, past, weight = uniform(generator, length, 6), uniform(generator, 3, 6), uniform(generator, 4, 6)
    biases = uniform(generator, 6) if bias else None
    tail, inputs = torch.stack([torch.zeros(3, 6), past]), torch.cat([past, x])
    expected = F.conv1d(inputs.T.double(), weight.T.unsqueeze(1).double(), groups=6).T
    expected = F.silu(expected if biases is None else expected + biases)
    found = function(x, weight, biases, tail, Packed.of([1], [length], dst=[0]), activate=True)
    assert relative_error(found, expected) <= 1e-6
    assert same_bits(tail[0], inputs[-3:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(6))
def test_any_split_company_and_thread_count_gives_the_same_bits(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels = int(torch.randint(1, 3000, (), generator=generator))
    x, tail = uniform(generator, 40, channels), uniform(generator, SLOTS, 3, channels).to(dtype)
    weight, bias = uniform(generator, 4, channels), uniform(generator, channels)
    whole, split, start, pieces = tail.clone(), tail.clone(), 0, []
    expected = causal_conv(x, weight, bias, whole, Packed.of([1], [40]))
    for _ in thread_counts(1 + seed % 2):
        while start < 40:
            length = min(40 - start, 1 if seed < 2 else int(torch.randint(0, 9, (), generator=generator)))
            both = torch.cat([x[3:5], x[start : start + length]])
            pieces.append(causal_conv(both, weight, bias, split, Packed.of([0, 1], [2, length], dst=[-1, 1]))[2:])
            start += length
    assert same_bits(torch.cat(pieces), expected)
    assert same_bits(split, whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_without_tokens_are_copied(dtype: torch.dtype) -> None:
    tail = torch.arange(1.0, 1 + SLOTS * 6).view(SLOTS, 3, 2).to(dtype)
    pool = tail.clone()
    y = causal_conv(torch.empty(0, 2), torch.ones(4, 2), None, pool, Packed.of([2, 2, -1], [0, 0, 0], dst=[6, 1, 3]))
    assert y.shape == (0, 2)
    assert same_bits(pool[[6, 1]], tail[[2, 2]])
    assert not pool[3].any()
    assert same_bits(pool[[0, 2, 4, 5, 7, 8]], tail[[0, 2, 4, 5, 7, 8]])


def test_reference_has_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [uniform(generator, *shape).requires_grad_() for shape in ((9, 5), (4, 5), (5,))]
    batch = Packed.of([1, -1], [6, 3], dst=[2, 0])

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference(x, weight, bias, torch.ones(3, 3, 5), batch, activate=True)

    def expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parts = [torch.cat([torch.full((3, 5), past), x[rows]]) for past, rows in ((1.0, slice(6)), (0.0, slice(6, 9)))]
        return torch.cat([F.silu(F.conv1d(part.T, weight.T.unsqueeze(1), bias, groups=5).T) for part in parts])

    found, wanted = (torch.autograd.grad(f(*leaves).square().sum(), leaves) for f in (run, expected))
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(found, wanted, strict=True))


def test_arguments_that_do_not_fit_are_refused() -> None:
    batch, x, weight, tail = Packed.of([0], [2]), torch.ones(2, 4), torch.ones(4, 4), torch.zeros(1, 3, 4)
    for changed in (
        {"tail": torch.zeros(1, 2, 4)},
        {"tail": torch.zeros(1, 3, 5)},
        {"weight": torch.ones(4, 5)},
        {"x": torch.ones(2, 5)},
    ):
        with pytest.raises(ValueError, match="do not fit"):
            causal_conv(**({"x": x, "weight": weight, "tail": tail} | changed), bias=None, batch=batch)
    with pytest.raises(ValueError, match="as many biases"):
        causal_conv(x, weight, torch.ones(1), tail, batch)
    with pytest.raises(ValueError, match="must be contiguous"):
        causal_conv(x, weight, None, torch.zeros(1, 4, 3).transpose(1, 2), batch)
    with pytest.raises(ValueError, match="must be contiguous"):
        causal_conv(x, weight.T, None, tail, batch)
    with pytest.raises(ValueError, match="must be contiguous"):
        causal_conv(x, weight, torch.ones(8)[::2], tail, batch)
    for changed in ({"weight": weight.bfloat16()}, {"bias": torch.ones(4).double()}, {"tail": tail.double()}):
        with pytest.raises(TypeError, match="causal_conv: "):
            causal_conv(**({"x": x, "weight": weight, "tail": tail, "bias": None} | changed), batch=batch)
    with pytest.raises(RuntimeError, match="at most 16 taps"):
        causal_conv(x, torch.ones(17, 4), None, torch.zeros(1, 16, 4), batch)
