"""The token shift in Triton: against PyTorch's interpolation in double precision, continued by slot."""

import pytest
import torch
from torch import Tensor

from ostinato.kernels.gpu.shift import token_shift
from ostinato.kernels.packed import Packed
from tests.kernels.gpu.batches import SLOTS, random_packed, sequences, steps, unread, unwritten
from tests.kernels.random_batches import relative_error, uniform

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def operator(x: Tensor, mix: Tensor, last: Tensor, batch: Packed) -> Tensor:
    return token_shift(x, mix, last, batch.src, batch.dst, batch.starts, batch.longest)


def torch_shift(x: Tensor, mix: Tensor, last: Tensor, batch: Packed) -> tuple[Tensor, Tensor]:
    """The mixes, in double precision, and the last rows."""
    previous, after = torch.empty_like(x), last.clone()
    for src, dst, start, stop in sequences(batch):
        rows = torch.cat([last[src : src + 1] if src >= 0 else torch.zeros_like(last[:1]), x[start:stop]])
        previous[start:stop] = rows[:-1]
        if dst >= 0:
            after[dst] = rows[-1]
    mixes = torch.lerp(x.double(), previous.double(), mix.double().unsqueeze(1))
    return mixes, after


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mixes", [1, 5, 6])
@pytest.mark.parametrize("seed", range(4))
def test_equals_torch(seed: int, mixes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(100 * mixes + seed)
    batch, channels = random_packed(generator), int(torch.randint(1, 300, (), generator=generator))
    x, last = (uniform(generator, n, channels).to(dtype) for n in (int(batch.starts[-1]), SLOTS))
    mix = uniform(generator, mixes, channels, low=0.0)
    expected, expected_last = torch_shift(x, mix, last, batch)
    last[unread(batch)] = torch.nan
    before = last.clone()
    found = operator(x, mix, last, batch)
    assert found.dtype == dtype
    assert relative_error(found, expected) <= TOLERANCE[dtype]
    written = [slot for slot in batch.dst.tolist() if slot >= 0]
    assert torch.equal(last[written], expected_last[written])
    assert torch.equal(last[unwritten(batch)].nan_to_num(), before[unwritten(batch)].nan_to_num())


@pytest.mark.parametrize("seed", range(3))
def test_steps_and_scans_of_any_split_have_the_same_bits(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, last, mix = uniform(generator, 50, 140), uniform(generator, SLOTS, 140), uniform(generator, 3, 140)
    split_last, pieces, start = last.clone(), [], 0
    expected = operator(x, mix, last, Packed.of([4], [50]))
    while start < 50:
        length = (1, min(50 - start, 5), min(50 - start, 23))[int(torch.randint(0, 3, (), generator=generator))]
        batch, mate = Packed.of([2, 4], [3, length]), uniform(generator, 3, 140)
        rows = torch.cat([mate, x[start : start + length]])
        if length == 1:
            batch, rows = steps(batch), rows[2:]
        pieces.append(operator(rows, mix, split_last, batch)[:, int(batch.starts[1]) :])
        start += length
    assert torch.equal(torch.cat(pieces, 1), expected)
    assert torch.equal(split_last[4], last[4])


@pytest.mark.usefixtures("programs_run_backwards")
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_programs_does_not_matter(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = Packed.of([3, 5, 5], [40, 17, 0], dst=[3, 7, 1])
    x, last, mix = uniform(generator, 57, 300), uniform(generator, SLOTS, 300), uniform(generator, 2, 300)
    expected, expected_last = torch_shift(x, mix, last, batch)
    assert relative_error(operator(x, mix, last, batch), expected) <= 1e-6
    assert torch.equal(last, expected_last)


def test_x_may_be_part_of_wider_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    batch, wide = Packed.of([0, -1], [19, 4], dst=[0, 2]), uniform(generator, 23, 90)
    last, mix = uniform(generator, SLOTS, 40), uniform(generator, 2, 40)
    apart_last = last.clone()
    apart = operator(wide[:, 30:70].contiguous(), mix, apart_last, batch)
    assert torch.equal(operator(wide[:, 30:70], mix, last, batch), apart)
    assert torch.equal(last, apart_last)


def test_no_sequences_give_no_rows() -> None:
    last = torch.full((2, 4), torch.nan)
    assert operator(torch.empty(0, 4), torch.ones(3, 4), last, Packed.of([], [])).shape == (3, 0, 4)
    assert last.isnan().all()
