"""The operators without a matrix state: C++ against the references, exactness, and what they refuse."""

import pytest
import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from tests.kernels.elementwise_cases import NAMES, PUBLIC, REFERENCES, Inputs, check, inputs
from tests.kernels.random_batches import random_packed, same_bits, thread_counts, tokens_of


def native(case: Inputs) -> Inputs:
    """Makes sure that the CPU's implementations are registered."""
    case.tokens(0, 0).run(Packed.of([], []), case.state)
    return case


@pytest.mark.usefixtures("poisoned_outputs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(12))
def test_native_equals_reference(seed: int, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = random_packed(generator, longest=(1, 40, 300)[seed % 3])
    case = native(inputs(name, tokens_of(batch), generator, dtype=dtype))
    check(case, batch, getattr(torch.ops.ostinato, name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(8))
def test_any_split_gives_the_same_bits(seed: int, name: str) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    tokens = 50
    case = inputs(name, tokens, generator)
    whole, split = case.state.clone(), case.state.clone()
    expected = case.run(Packed.of([4], [tokens]), whole)
    start, pieces = 0, []
    while start < tokens:
        length = min(tokens - start, int(torch.randint(1, 20, (), generator=generator)))
        # Up to four batch mates before it, enough to be computed together with it, must not matter either.
        mates = int(torch.randint(0, 5, (), generator=generator))
        both = case.tokens(0, 3 * mates).before(case.tokens(start, start + length))
        batch = Packed.of([*range(mates), 4], [3] * mates + [length], dst=[-1] * mates + [4])
        pieces.append(both.run(batch, split)[3 * mates :])
        start += length
    assert same_bits(torch.cat(pieces), expected)
    assert same_bits(split, whole)


@pytest.mark.parametrize("name", NAMES)
def test_threads_do_not_matter(name: str) -> None:
    case = inputs(name, 400, torch.Generator().manual_seed(7), channels=130)
    batch = Packed.of([3, 0, 5, -1, 2], [150, 1, 143, 56, 50], dst=[3, 0, 5, 7, 2])
    results = []
    for _ in thread_counts(1, 2, 3):
        state = case.state.clone()
        results.append((case.run(batch, state), state))
    assert all(same_bits(y, results[0][0]) and same_bits(s, results[0][1]) for y, s in results)


@pytest.mark.parametrize("name", NAMES)
def test_fork_gives_every_sequence_the_same_bits(name: str) -> None:
    case = inputs(name, 5, torch.Generator().manual_seed(1))
    both, state = case.before(case), case.state.clone()
    y = both.run(Packed.of([2, 2], [5, 5], dst=[6, 1]), state)
    assert same_bits(y[:5], y[5:])
    assert same_bits(state[6], state[1])
    assert same_bits(state[2], case.state[2])


@pytest.mark.parametrize("name", NAMES)
def test_sequence_without_tokens_is_copied(name: str) -> None:
    case = inputs(name, 0, torch.Generator().manual_seed(2))
    state = case.state.clone()
    assert case.run(Packed.of([2, -1], [0, 0], dst=[6, 1]), state).numel() == 0
    assert same_bits(state[6], case.state[2])
    assert not state[1].any()


@pytest.mark.parametrize("name", NAMES)
def test_zeroed_slot_is_the_empty_state(name: str) -> None:
    case = inputs(name, 4, torch.Generator().manual_seed(3))
    state = case.state.clone()
    state[3] = 0.0
    y = case.before(case).run(Packed.of([3, -1], [4, 4], dst=[3, 5]), state)
    assert same_bits(y[:4], y[4:])
    assert same_bits(state[3], state[5])


@pytest.mark.parametrize("name", NAMES)
def test_operator_is_declared_truly(name: str) -> None:
    """Schema, mutation and shapes, as torch.compile relies on them."""
    case = native(inputs(name, 7, torch.Generator().manual_seed(4)))
    arguments = case.arguments(Packed.of([1, 4], [3, 4]), case.state.clone())
    torch.library.opcheck(getattr(torch.ops.ostinato, name).default, arguments)


@pytest.mark.parametrize("name", NAMES)
def test_reference_has_gradients(name: str) -> None:
    """Also where a sequence begins, whose minus infinities must not turn into NaN."""
    case = inputs(name, 6, torch.Generator().manual_seed(5))
    leaves = [x.clone().requires_grad_() for x in (*case.operands, *case.parameters)]
    batch = Packed.of([-1], [6])
    y = REFERENCES[name](*leaves, case.state, batch.src, batch.dst, batch.starts, batch.longest)
    gradients = torch.autograd.grad(y.square().sum(), leaves)
    assert all(x.isfinite().all() and x.abs().sum() > 0 for x in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_that_do_not_fit_are_refused(name: str) -> None:
    case = inputs(name, 2, torch.Generator().manual_seed(6), channels=5)
    tensors = (*case.operands, *case.parameters, case.state)

    def run_with(position: int, change: Tensor) -> None:
        PUBLIC[name](*tensors[:position], change, *tensors[position + 1 :], Packed.of([0], [2]))

    for position, x in enumerate(tensors):
        with pytest.raises(ValueError, match="do not fit"):
            run_with(position, x.unsqueeze(-1))
        with pytest.raises(TypeError, match=f"{name}: .* must be float32"):
            run_with(position, x.double())
        with pytest.raises(ValueError, match="must be contiguous"):
            run_with(position, x.repeat_interleave(2, dim=-1)[..., ::2])
