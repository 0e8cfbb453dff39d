"""The causal convolution in Triton: against PyTorch's own in double precision, continued by slot."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.gpu.conv import causal_conv
from ostinato.kernels.packed import Packed
from tests.kernels.gpu.batches import SLOTS, random_packed, sequences, steps, unread, unwritten
from tests.kernels.random_batches import relative_error, uniform


def operator(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, batch: Packed, activate: bool) -> Tensor:
    return causal_conv(x, weight, bias, tail, batch.src, batch.dst, batch.starts, batch.longest, activate)


def torch_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, batch: Packed, activate: bool
) -> tuple[Tensor, Tensor]:
    """The outputs, in double precision, and the tails."""
    kernel, biases = weight.T.unsqueeze(1).double(), None if bias is None else bias.double()
    outputs, after = [x.new_empty((0, x.shape[1]), dtype=torch.float64)], tail.clone()
    for src, dst, start, stop in sequences(batch):
        inputs = torch.cat([tail[src] if src >= 0 else torch.zeros_like(tail[0]), x[start:stop]])
        if stop > start:
            outputs.append(F.conv1d(inputs.T.double(), kernel, biases, groups=x.shape[1]).T)
        if dst >= 0:
            after[dst] = inputs[inputs.shape[0] - tail.shape[1] :]
    y = torch.cat(outputs)
    return (F.silu(y) if activate else y), after


def random_inputs(
    generator: torch.Generator, batch: Packed, width: int, channels: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and tail, with large and small channels."""
    scale = torch.logspace(-2, 1, channels)
    x = (uniform(generator, int(batch.starts[-1]), channels) * scale).to(dtype)
    tail = (uniform(generator, SLOTS, width - 1, channels) * scale).to(dtype)
    return x, uniform(generator, width, channels), uniform(generator, channels), tail


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_equals_torch(seed: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(100 * width + seed)
    batch, channels = random_packed(generator), int(torch.randint(1, 300, (), generator=generator))
    x, weight, bias, tail = random_inputs(generator, batch, width, channels, dtype)
    given_bias, activate = bias if seed % 2 else None, seed < 2
    expected, expected_tail = torch_conv(x, weight, given_bias, tail, batch, activate)
    tail[unread(batch)] = torch.nan
    before = tail.clone()
    found = operator(x, weight, given_bias, tail, batch, activate)
    assert relative_error(found, expected) <= 1e-5
    written = [slot for slot in batch.dst.tolist() if slot >= 0]
    assert torch.equal(tail[written], expected_tail[written])
    assert torch.equal(tail[unwritten(batch)].nan_to_num(), before[unwritten(batch)].nan_to_num())


@pytest.mark.parametrize("seed", range(3))
def test_steps_and_scans_of_any_split_have_the_same_bits(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole = Packed.of([4], [50])
    x, weight, bias, tail = random_inputs(generator, whole, 4, 130, torch.bfloat16)
    split_tail, pieces, start = tail.clone(), [], 0
    expected = operator(x, weight, bias, tail, whole, True)
    while start < 50:
        length = (1, min(50 - start, 5), min(50 - start, 33))[int(torch.randint(0, 3, (), generator=generator))]
        batch, mate = Packed.of([2, 4, -1], [3, length, 0]), uniform(generator, 3, 130).bfloat16()
        rows = torch.cat([mate, x[start : start + length]])
        if length == 1:
            batch, rows = steps(batch), rows[2:]
            rows = torch.cat([rows, mate[:1]])
        pieces.append(operator(rows, weight, bias, split_tail, batch, True)[int(batch.starts[1]) :][:length])
        start += length
    assert torch.equal(torch.cat(pieces), expected)
    assert torch.equal(split_tail[4], tail[4])


@pytest.mark.usefixtures("programs_run_backwards")
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_programs_does_not_matter(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = Packed.of([3, 5, 5], [70, 20, 2], dst=[3, 7, 1])
    x, weight, bias, tail = random_inputs(generator, batch, 4, 150, torch.float32)
    expected, expected_tail = torch_conv(x, weight, bias, tail, batch, True)
    assert relative_error(operator(x, weight, bias, tail, batch, True), expected) <= 1e-5
    assert torch.equal(tail, expected_tail)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_x_is_rounded_to_what_the_tail_keeps(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    batch = Packed.of([3, 5, 2], [40, 1, 2], dst=[3, 7, 2])
    x, weight, bias, tail = random_inputs(generator, batch, 4, 60, dtype)
    x = uniform(generator, *x.shape)
    rounded_tail = tail.clone()
    rounded = operator(x.to(dtype), weight, bias, rounded_tail, batch, True)
    assert torch.equal(operator(x, weight, bias, tail, batch, True), rounded)
    assert torch.equal(tail, rounded_tail)


def test_x_may_be_part_of_a_projection() -> None:
    generator = torch.Generator().manual_seed(1)
    batch = Packed.of([0, -1], [19, 4], dst=[0, 2])
    wide = uniform(generator, 23, 90)
    _, weight, bias, tail = random_inputs(generator, batch, 4, 40, torch.float32)
    apart_tail = tail.clone()
    apart = operator(wide[:, 30:70].contiguous(), weight, bias, apart_tail, batch, True)
    assert torch.equal(operator(wide[:, 30:70], weight, bias, tail, batch, True), apart)
    assert torch.equal(tail, apart_tail)


def test_no_sequences_give_no_rows() -> None:
    tail = torch.full((2, 3, 4), torch.nan)
    assert operator(torch.empty(0, 4), torch.ones(4, 4), None, tail, Packed.of([], []), True).shape == (0, 4)
    assert tail.isnan().all()
