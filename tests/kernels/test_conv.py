"""The causal convolution and the token shift: against PyTorch's own, and continued by slot."""

import pytest
import torch
from torch.nn import functional as F

from ostinato.kernels.conv import causal_conv, causal_conv_ref
from ostinato.kernels.packed import token_shift
from ostinato.kernels.recurrence import recurrence
from tests.kernels.random_batches import SLOTS, pack, random_batch, relative_error, uniform


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_native_equals_reference(seed: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, channels = random_batch(generator), int(torch.randint(1, 70, (), generator=generator))
    x, tail = (
        uniform(generator, batch.tokens, channels).to(dtype),
        uniform(generator, SLOTS, width - 1, channels).to(dtype),
    )
    weight = uniform(generator, width, channels)
    bias = uniform(generator, channels) if seed % 2 else None
    found_tail, expected_tail = tail.clone(), tail.clone()
    activate = seed > 1
    found = causal_conv(x, weight, bias, found_tail, batch.slots, batch.starts, activate=activate)
    expected = causal_conv_ref(x, weight, bias, expected_tail, batch.slots, batch.starts, activate=activate)
    assert relative_error(found, expected) <= 1e-6
    assert torch.equal(found_tail, expected_tail)
    assert torch.equal(found_tail[batch.untouched], tail[batch.untouched])


@pytest.mark.parametrize("length", [1, 2, 3, 4, 50])
def test_reference_is_torch_conv1d(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    x, weight, bias = uniform(generator, length, 6), uniform(generator, 4, 6), uniform(generator, 6)
    batch, tail = pack([length], [2]), torch.zeros(SLOTS, 3, 6)
    expected = F.conv1d(x.T, weight.T.unsqueeze(1), bias, padding=3, groups=6)[:, :length].T
    found = causal_conv_ref(x, weight, bias, tail, batch.slots, batch.starts, activate=False)
    assert relative_error(found, expected) <= 1e-6
    assert torch.equal(tail[2], torch.cat([torch.zeros(3, 6), x])[-3:])


@pytest.mark.parametrize("seed", range(4))
def test_any_split_gives_the_same_bits(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight, tokens = uniform(generator, 40, 19), uniform(generator, 4, 19), 40
    whole, split = torch.zeros(SLOTS, 3, 19), torch.zeros(SLOTS, 3, 19)
    batch = pack([tokens], [1])
    expected = causal_conv(x, weight, None, whole, batch.slots, batch.starts)
    start, pieces = 0, []
    while start < tokens:
        length = min(tokens - start, int(torch.randint(1, 6, (), generator=generator)))
        batch = pack([length], [1])
        pieces.append(causal_conv(x[start : start + length], weight, None, split, batch.slots, batch.starts))
        start += length
    assert torch.equal(torch.cat(pieces), expected)
    assert torch.equal(split, whole)


@pytest.mark.parametrize("seed", range(6))
def test_token_shift_is_the_row_before(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = random_batch(generator)
    x, last = uniform(generator, batch.tokens, 5), uniform(generator, SLOTS, 5)
    found_last = last.clone()
    found = token_shift(x, found_last, batch.slots, batch.starts)
    start = 0
    for slot, length in zip(batch.slots.tolist(), batch.lengths, strict=True):
        before = last[slot] if slot >= 0 else torch.zeros(5)
        expected = torch.cat([before.unsqueeze(0), x[start : start + length]])
        assert torch.equal(found[start : start + length], expected[:-1])
        if slot >= 0:
            assert torch.equal(found_last[slot], expected[-1])
        start += length
    assert torch.equal(found_last[batch.untouched], last[batch.untouched])


def test_arguments_that_do_not_fit_are_refused() -> None:
    batch, x = pack([2], [0]), torch.ones(2, 4)
    with pytest.raises(ValueError, match="do not fit"):
        causal_conv(x, torch.ones(4, 4), None, torch.zeros(1, 2, 4), batch.slots, batch.starts)
    with pytest.raises(ValueError, match="do not fit"):
        causal_conv(x, torch.ones(4, 4), None, torch.zeros(1, 3, 4, dtype=torch.bfloat16), batch.slots, batch.starts)
    with pytest.raises(ValueError, match="as many biases"):
        causal_conv(x, torch.ones(4, 4), torch.ones(1), torch.zeros(1, 3, 4), batch.slots, batch.starts)
    with pytest.raises(ValueError, match="must be contiguous"):
        causal_conv(x, torch.ones(4, 4), None, torch.zeros(1, 4, 3).transpose(1, 2), batch.slots, batch.starts)
    with pytest.raises(TypeError, match="its memory"):
        token_shift(x, torch.zeros(1, 4, dtype=torch.bfloat16), batch.slots, batch.starts)
    empty = pack([], [])
    with pytest.raises(ValueError, match="belong to no sequence"):
        token_shift(x, torch.zeros(1, 4), empty.slots, empty.starts)


@pytest.mark.parametrize(
    ("slots", "starts", "message"),
    [([1], [0, 2], "slot 1 is not in a pool of 1"), ([-2], [0, 2], "slot -2"), ([0], [0, 1], "from 0 to 2")],
)
def test_slots_and_starts_that_would_leave_memory_are_refused(
    slots: list[int], starts: list[int], message: str
) -> None:
    where = (torch.tensor(slots, dtype=torch.int32), torch.tensor(starts, dtype=torch.int32))
    with pytest.raises(RuntimeError, match=message):
        causal_conv(torch.ones(2, 4), torch.ones(4, 4), None, torch.zeros(1, 3, 4), *where)
    q = torch.ones(2, 1, 4)
    with pytest.raises(RuntimeError, match=message):
        recurrence(q, q, q, torch.zeros(1, 1, 4, 4), *where)


def test_a_transposed_weight_is_the_same_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, batch = uniform(generator, 9, 5), uniform(generator, 5, 4), pack([9], [0])
    found, expected = (
        causal_conv(x, w, None, torch.zeros(1, 3, 5), batch.slots, batch.starts)
        for w in (weight.T, weight.T.contiguous())
    )
    assert torch.equal(found, expected)
