"""Sliding-window attention in Triton's interpreter: against PyTorch's own over the whole history."""

from dataclasses import replace

import pytest
import torch

from ostinato.kernels.gpu import mode
from ostinato.kernels.gpu.attention import window_attention
from ostinato.kernels.packed import Packed
from tests.kernels.attention_cases import (
    Call,
    Shape,
    expected_output,
    expected_rings,
    make_case,
    random_calls,
    random_shape,
    same_bits,
)
from tests.kernels.random_batches import relative_error


@pytest.mark.parametrize("sinks", [0, 3, 20])
@pytest.mark.parametrize("seed", range(8))
def test_equals_attention_over_the_whole_history(seed: int, sinks: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = random_shape(generator, sinks)
    case = make_case(generator, shape, random_calls(generator, shape.window, 1 + seed * 11))
    found, *rings = case.run(window_attention)
    assert relative_error(found, expected_output(case)) <= 1e-5
    assert all(same_bits(x, y) for x, y in zip(rings, expected_rings(case), strict=True))


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize(("window", "sinks"), [(7, 0), (64, 0), (300, 0), (700, 0), (300, 4), (50, 40)])
def test_steps_of_many_slots(window: int, sinks: int, invariant: bool) -> None:
    """Windows of one and of several parts, none of them full, all full, and some parts with no key at all."""
    generator = torch.Generator().manual_seed(window)
    shape = Shape(window, 10 if window == 64 else 2, 1, 16, sinks)
    pasts = [0, 1, window - 1, window, 2 * window + 5]
    calls = [Call(past, 1, i, (i, 7, -1)[i % 3]) for i, past in enumerate(pasts)]
    case = make_case(generator, shape, [*calls, Call(0, 1, -1, -1), Call(0, 1, -1, 6), Call(9, 0, 5, 5)])
    with mode.set_to(invariant):
        found, *rings = case.run(window_attention)
    assert relative_error(found, expected_output(case)) <= 1e-5
    assert all(same_bits(x, y) for x, y in zip(rings, expected_rings(case), strict=True))


@pytest.mark.parametrize("length", [1, 70])
@pytest.mark.parametrize(
    ("q_dtype", "dtype"), [(None, torch.bfloat16), (None, torch.float16), (torch.float32, torch.bfloat16)]
)
def test_short_dtypes(q_dtype: torch.dtype | None, dtype: torch.dtype, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    case = make_case(generator, Shape(50, 4, 2, 20), [Call(31, length, 0, 1), Call(0, length // 2, -1, 2)], dtype)
    case = replace(case, q=case.q.to(q_dtype or dtype))
    found, *rings = case.run(window_attention)
    assert relative_error(found, expected_output(case)) <= 1e-2
    assert all(same_bits(x, y) for x, y in zip(rings, expected_rings(case), strict=True))


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("split", [[1] * 9, [1, 2, 17, 10], [11, 19]])
def test_any_split_gives_the_same_rows(split: list[int], sinks: int) -> None:
    """Within rounding; the same bits where batch-invariance is asked for."""
    case = make_case(torch.Generator().manual_seed(0), Shape(6, 2, 1, 6, sinks), [Call(0, sum(split), -1, 0)])
    expected = expected_output(case)
    for invariant in (False, True):
        with mode.set_to(invariant):
            whole, *_ = case.run(window_attention)
            rings, start, pieces = (case.keys.clone(), case.values.clone()), 0, []
            for length in split:
                batch, past = Packed.of([0 if start else -1], [length], dst=[0]), torch.tensor([start])
                q, k, v = (x[start : start + length] for x in (case.q, case.k, case.v))
                far = None if case.far is None else case.far[start : start + length]
                where = (past, batch.src, batch.dst, batch.starts, batch.longest)
                pieces.append(window_attention(q, k, v, *rings, *where, case.scale, far, sinks))
                start += length
            assert relative_error(torch.cat(pieces), expected) <= 1e-5
            if invariant:
                assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.usefixtures("programs_run_backwards")
def test_the_order_of_programs_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(3)
    case = make_case(generator, Shape(17, 2, 2, 16), random_calls(generator, 17, 60))
    found, *rings = case.run(window_attention)
    assert relative_error(found, expected_output(case)) <= 1e-5
    assert all(same_bits(x, y) for x, y in zip(rings, expected_rings(case), strict=True))


def test_no_sequences_give_no_rows() -> None:
    ring, batch, x = torch.zeros(1, 4, 1, 2), Packed.of([], []), torch.zeros(0, 1, 2)
    where = (torch.zeros(0).int(), batch.src, batch.dst, batch.starts, batch.longest)
    assert window_attention(x, x, x, ring, ring.clone(), *where, 1.0).shape == (0, 1, 2)
