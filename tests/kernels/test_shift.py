"""The token shift: against a plain shifted copy and the reference, by slot, and exactness."""

import pytest
import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from ostinato.kernels.shift import token_shift, token_shift_ref
from tests.kernels.random_batches import (
    SLOTS,
    poisoned,
    random_packed,
    relative_error,
    same_bits,
    sequences,
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
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}


def reference(x: Tensor, mix: Tensor, last: Tensor, batch: Packed) -> Tensor:
    return token_shift_ref(x, mix, last, batch.src, batch.dst, batch.starts, batch.longest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(12))
def test_native_and_reference_mix_every_row_with_the_one_before(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = random_packed(generator, longest=300 if seed == 5 else 40)
    batch = batch if seed % 2 else steps(batch)
    mixes, channels = (int(torch.randint(1, high, (), generator=generator)) for high in (7, 70))
    x, last = uniform(generator, tokens_of(batch), channels).to(dtype), uniform(generator, SLOTS, channels).to(dtype)
    mix, previous, expected_last = uniform(generator, mixes, channels, low=-0.5, high=1.5), x.clone(), last.clone()
    for src, dst, start, stop in sequences(batch):
        rows = torch.cat([torch.zeros(1, channels, dtype=dtype) if src < 0 else last[src : src + 1], x[start:stop]])
        previous[start:stop] = rows[:-1]
        if dst >= 0:
            expected_last[dst] = rows[-1]
    expected = torch.lerp(x.double(), previous.double(), mix.double().unsqueeze(1))
    pool = poisoned(last, batch)
    for function in (token_shift, reference):
        found_last = pool.clone()
        found = function(spaced(x), mix, found_last, batch)
        assert found.dtype == dtype
        assert relative_error(found, expected) <= ROUNDING[dtype]
        assert same_bits(found_last[written(batch)], expected_last[written(batch)])
        assert same_bits(found_last[unwritten(batch)], pool[unwritten(batch)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(6))
def test_any_split_company_and_thread_count_gives_the_same_bits(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels = int(torch.randint(1, 3000, (), generator=generator))
    x, last = uniform(generator, 40, channels).to(dtype), uniform(generator, SLOTS, channels).to(dtype)
    mix, whole, split, start, pieces = uniform(generator, 6, channels), last.clone(), last.clone(), 0, []
    expected = token_shift(x, mix, whole, Packed.of([1], [40]))
    for _ in thread_counts(1 + seed % 2):
        while start < 40:
            length = min(40 - start, 1 if seed < 2 else int(torch.randint(0, 9, (), generator=generator)))
            both = torch.cat([x[3:5], x[start : start + length]])
            pieces.append(token_shift(both, mix, split, Packed.of([0, 1], [2, length], dst=[-1, 1]))[:, 2:])
            start += length
    assert same_bits(torch.cat(pieces, dim=1), expected)
    assert same_bits(split, whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_without_tokens_are_copied(dtype: torch.dtype) -> None:
    last = torch.arange(1.0, 1 + SLOTS * 2).view(SLOTS, 2).to(dtype)
    pool = last.clone()
    batch = Packed.of([2, 2, -1, 4], [0, 0, 0, 0], dst=[6, 1, 3, 4])
    assert token_shift(torch.empty(0, 2, dtype=dtype), torch.ones(3, 2), pool, batch).shape == (3, 0, 2)
    assert same_bits(pool[[6, 1]], last[[2, 2]])
    assert not pool[3].any()
    assert same_bits(pool[[0, 2, 4, 5, 7, 8]], last[[0, 2, 4, 5, 7, 8]])


def test_reference_has_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x, mix = uniform(generator, 5, 3).requires_grad_(), uniform(generator, 2, 3).requires_grad_()

    def expected(x: Tensor, mix: Tensor) -> Tensor:
        return torch.lerp(x, torch.cat([torch.ones(1, 3), x[:2], torch.zeros(1, 3), x[3:4]]), mix.unsqueeze(1))

    y = reference(x, mix, torch.ones(3, 3), Packed.of([1, -1], [3, 2], dst=[2, 0]))
    found, wanted = (torch.autograd.grad(z.square().sum(), (x, mix)) for z in (y, expected(x, mix)))
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(found, wanted, strict=True))


def test_arguments_that_do_not_fit_are_refused() -> None:
    batch, x, mix, last = Packed.of([0], [2]), torch.ones(2, 4), torch.ones(3, 4), torch.zeros(1, 4)
    with pytest.raises(TypeError, match="its memory"):
        token_shift(x, mix, last.bfloat16(), batch)
    for changed in (
        {"x": torch.ones(2, 5)},
        {"mix": torch.ones(3, 5)},
        {"mix": torch.ones(4)},
        {"last": torch.zeros(1, 5)},
        {"last": torch.zeros(1, 8)[:, ::2]},
    ):
        with pytest.raises(ValueError, match="do not fit"):
            token_shift(**({"x": x, "mix": mix, "last": last} | changed), batch=batch)
    with pytest.raises(TypeError, match="mix must be float32"):
        token_shift(x, mix.bfloat16(), last, batch)
    with pytest.raises(TypeError, match="float32, bfloat16 or float16"):
        token_shift(x.double(), mix, last.double(), batch)
