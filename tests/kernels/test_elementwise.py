"""The operators without a matrix state: C++ against the references, exactness, and what they refuse."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from tests.kernels.elementwise_cases import OPERATORS, SLOTS, inputs, random_packed, state_error, unused, written
from tests.kernels.random_batches import relative_error

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def _poisoned_memory() -> Iterator[None]:
    """New tensors hold NaN until they are written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("seed", range(8))
def test_native_equals_reference(seed: int, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = random_packed(generator, longest=(1, 40, 300)[seed % 3])
    case = inputs(name, int(batch.starts[-1]), generator, dtype=dtype)
    poisoned, expected_state = case.state.clone(), case.state.clone()
    poisoned[unused(batch)] = torch.nan
    found_state = poisoned.clone()
    found, expected = case.run(batch, found_state), case.reference(batch, expected_state)
    assert relative_error(found, expected) <= 1e-5
    assert state_error(found_state[written(batch)], expected_state[written(batch)]) <= 1e-5
    kept = [slot for slot in range(SLOTS) if slot not in written(batch)]
    assert torch.equal(found_state[kept].nan_to_num(), poisoned[kept].nan_to_num())


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("seed", range(6))
def test_any_split_gives_the_same_bits(seed: int, name: str) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    tokens = 50
    case = inputs(name, tokens, generator)
    whole, split = case.state.clone(), case.state.clone()
    expected = case.run(Packed.of([4], [tokens]), whole)
    start, pieces = 0, []
    while start < tokens:
        length = min(tokens - start, int(torch.randint(1, 20, (), generator=generator)))
        # A batch mate before it, which reads the slot that it began from, must not matter.
        both = case.tokens(0, 3).before(case.tokens(start, start + length))
        batch = Packed.of([int(torch.randint(0, 4, (), generator=generator)), 4], [3, length], dst=[-1, 4])
        pieces.append(both.run(batch, split)[3:])
        start += length
    assert torch.equal(torch.cat(pieces), expected)
    assert torch.equal(split, whole)


@pytest.mark.parametrize("name", OPERATORS)
def test_threads_do_not_matter(name: str) -> None:
    case = inputs(name, 400, torch.Generator().manual_seed(7), channels=130)
    batch = Packed.of([3, 0, 5, -1], [200, 1, 143, 56], dst=[3, 0, 5, 7])
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            state = case.state.clone()
            results.append((case.run(batch, state), state))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(y, results[0][0]) and torch.equal(s, results[0][1]) for y, s in results)


@pytest.mark.parametrize("name", OPERATORS)
def test_fork_gives_every_sequence_the_same_bits(name: str) -> None:
    case = inputs(name, 5, torch.Generator().manual_seed(1))
    both, state = case.before(case), case.state.clone()
    y = both.run(Packed.of([2, 2], [5, 5], dst=[6, 1]), state)
    assert torch.equal(y[:5], y[5:])
    assert torch.equal(state[6], state[1])
    assert torch.equal(state[2], case.state[2])


@pytest.mark.parametrize("name", OPERATORS)
def test_sequence_without_tokens_is_copied(name: str) -> None:
    case = inputs(name, 0, torch.Generator().manual_seed(2))
    state = case.state.clone()
    assert case.run(Packed.of([2, -1], [0, 0], dst=[6, 1]), state).numel() == 0
    assert torch.equal(state[6], case.state[2])
    assert not state[1].any()


@pytest.mark.parametrize("name", OPERATORS)
def test_zeroed_slot_is_the_empty_state(name: str) -> None:
    case = inputs(name, 4, torch.Generator().manual_seed(3))
    state = case.state.clone()
    state[3] = 0.0
    both = case.before(case)
    y = both.run(Packed.of([3, -1], [4, 4], dst=[3, 5]), state)
    assert torch.equal(y[:4], y[4:])
    assert torch.equal(state[3], state[5])


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_is_declared_truly(name: str) -> None:
    """Schema, mutation and shapes, as torch.compile relies on them."""
    case = inputs(name, 7, torch.Generator().manual_seed(4))
    arguments = case.arguments(Packed.of([1, 4], [3, 4]), case.state.clone())
    case.run(Packed.of([1, 4], [3, 4]), case.state.clone())  # registers the CPU's implementations
    torch.library.opcheck(getattr(torch.ops.ostinato, name).default, arguments)


@pytest.mark.parametrize("name", OPERATORS)
def test_reference_has_gradients(name: str) -> None:
    """Also where a sequence begins, whose minus infinities must not turn into NaN."""
    case = inputs(name, 6, torch.Generator().manual_seed(5))
    leaves = [x.clone().requires_grad_() for x in (*case.operands, *case.parameters)]
    batch = Packed.of([-1], [6])
    y = OPERATORS[name][1](*leaves, case.state, batch.src, batch.dst, batch.starts, batch.longest)
    gradients = torch.autograd.grad(y.square().sum(), leaves)
    assert all(x.isfinite().all() and x.abs().sum() > 0 for x in gradients)


def refused(name: str, position: int, change: Tensor) -> None:
    case = inputs(name, 2, torch.Generator().manual_seed(6))
    arguments = [*case.operands, *case.parameters, case.state]
    arguments[position] = change
    OPERATORS[name][0](*arguments, Packed.of([0], [2]))


@pytest.mark.parametrize("name", OPERATORS)
def test_arguments_that_do_not_fit_are_refused(name: str) -> None:
    case = inputs(name, 2, torch.Generator().manual_seed(6))
    for position, x in enumerate((*case.operands, *case.parameters, case.state)):
        with pytest.raises(ValueError, match="do not fit"):
            refused(name, position, x.unsqueeze(-1))
        with pytest.raises(TypeError, match=f"{name}: .* must be float32"):
            refused(name, position, x.double())
        if x.shape[-1] > 1:
            with pytest.raises(ValueError, match="must be contiguous"):
                refused(name, position, x.repeat_interleave(2, dim=-1)[..., ::2])
