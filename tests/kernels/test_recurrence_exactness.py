"""The recurrence in C++ gives a token the same bits however its sequence is read, and whoever is read beside it."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from tests.kernels.random_batches import same_bits, thread_counts
from tests.kernels.recurrence_cases import FORMS, IDS, Case, random_case

STATE_DTYPES = [torch.float32, torch.bfloat16]
FIRST = 8  # the slot that every sequence starts from, and none writes


def read_alone(case: Case, rows: range) -> tuple[Tensor, Tensor]:
    """The outputs of one call with one sequence, and its state at the end."""
    pool = case.state.clone()
    y = case.tokens(rows.start, rows.stop).run(Packed.of([FIRST], [len(rows)], dst=[2]), pool)
    return y, pool[2]


def read_together(case: Case, sequences: list[range], longest: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The same in random pieces of 0 to `longest` tokens, in random company, from slot to slot."""
    generator = torch.Generator().manual_seed(seed)
    pool, slots, done = case.state.clone(), [FIRST] * len(sequences), [0] * len(sequences)
    outputs: list[list[Tensor]] = [[] for _ in sequences]
    while any(count < len(rows) for count, rows in zip(done, sequences, strict=True)):
        order = torch.randperm(len(sequences), generator=generator).tolist()
        chosen = order[: int(torch.randint(1, len(order) + 1, (), generator=generator))]
        free = [slot for slot in range(FIRST) if slot not in slots]
        lengths, rows, dst = [], [], []
        for i in chosen:
            length = int(torch.randint(0, longest + 1, (), generator=generator))
            rows += list(sequences[i][done[i] : done[i] + length])
            lengths.append(min(length, len(sequences[i]) - done[i]))
            stays = slots[i] != FIRST and torch.rand((), generator=generator) < 0.5
            dst.append(slots[i] if stays else free.pop())
        y = case.at(rows).run(Packed.of([slots[i] for i in chosen], lengths, dst=dst), pool)
        for i, length, slot, part in zip(chosen, lengths, dst, y.split(lengths), strict=True):
            outputs[i].append(part)
            slots[i], done[i] = slot, done[i] + length
    return [(torch.cat(parts), pool[slot]) for parts, slot in zip(outputs, slots, strict=True)]


@pytest.mark.parametrize("dtype", STATE_DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS, ids=IDS)
@pytest.mark.parametrize(("seed", "longest"), [(0, 1), (1, 5), (2, 20), (3, 40)])
def test_any_split_and_company_gives_the_same_bits(
    form: tuple[str, str], dtype: torch.dtype, seed: int, longest: int
) -> None:
    """`longest` 1: a step repeated is a scan."""
    case = random_case(form, 100, torch.Generator().manual_seed(seed), state_dtype=dtype)
    sequences = [range(37), range(37, 38), range(38, 100)]
    for _ in thread_counts(2 if longest == 40 else 1):
        found = read_together(case, sequences, longest, seed)
    for rows, (y, state) in zip(sequences, found, strict=True):
        expected_y, expected_state = read_alone(case, rows)
        assert same_bits(y, expected_y)
        assert same_bits(state, expected_state)


@pytest.mark.parametrize("form", FORMS, ids=IDS)
def test_all_threads_give_the_same_bits(form: tuple[str, str]) -> None:
    case = random_case(form, 400, torch.Generator().manual_seed(7))
    batch, results = Packed.of([FIRST, 0, -1], [200, 1, 199], dst=[3, 0, 5]), []
    for _ in thread_counts(1, 2, 3):
        state = case.state.clone()
        results.append((case.run(batch, state), state))
    assert all(same_bits(y, results[0][0]) and same_bits(state, results[0][1]) for y, state in results)


@pytest.mark.parametrize("dtype", STATE_DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS, ids=IDS)
def test_zeroed_slot_is_no_slot_and_fork_is_a_copy(form: tuple[str, str], dtype: torch.dtype) -> None:
    case = random_case(form, 14, torch.Generator().manual_seed(3), state_dtype=dtype)
    case.state[1] = 0.0
    rows, pool = [*range(7), *range(7), *range(7, 14), *range(7, 14)], case.state.clone()
    y = case.at(rows).run(Packed.of([1, -1, 2, 2], [7] * 4, dst=[3, 4, 5, 6]), pool).split(7)
    assert same_bits(y[0], y[1])
    assert same_bits(y[2], y[3])
    assert same_bits(pool[[3, 5]], pool[[4, 6]])
    assert same_bits(pool[[1, 2]], case.state[[1, 2]])


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.parametrize("fill", [0x80, 0x7F], ids=["large", "tiny"])
@pytest.mark.parametrize("dtype", STATE_DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS, ids=IDS)
def test_what_memory_held_before_does_not_matter(form: tuple[str, str], dtype: torch.dtype, fill: int) -> None:
    """Neither in outputs nor in the operator's own scratch memory."""
    case = random_case(form, 23, torch.Generator().manual_seed(5), state_dtype=dtype)
    batch, states = Packed.of([0, 4, -1], [20, 1, 2], dst=[0, 2, 1]), (case.state.clone(), case.state.clone())
    expected = case.run(batch, states[0])
    with filled_memory(fill):
        assert same_bits(case.run(batch, states[1]), expected)
    assert same_bits(states[1], states[0])


def test_memory_is_filled() -> None:
    """Otherwise the test above would show nothing."""
    with filled_memory(0x80):
        assert torch.empty(1000).min() > 3e38


@contextlib.contextmanager
def filled_memory(complement: int) -> Iterator[None]:
    """Every byte of newly allocated memory is the complement of the parameter: numbers of 3e38 or -1e-38."""
    set_option = ctypes.CDLL(None).mallopt
    set_option(-6, complement)  # M_PERTURB
    yield
    set_option(-6, 0)
