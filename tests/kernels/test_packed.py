"""Packed batches: how they are made, and what is refused before memory is touched."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ostinato.kernels.conv import causal_conv
from ostinato.kernels.packed import Packed, read_slots, write_slots
from ostinato.kernels.recurrence import recurrence
from ostinato.kernels.shift import token_shift

TOKENS, SLOTS = 2, 3


def test_lengths_become_starts() -> None:
    batch = Packed.of([4, -1, 4], [3, 0, 5], dst=[1, -1, 2])
    assert batch.starts.tolist() == [0, 3, 3, 8]
    assert batch.longest == 5
    assert (batch.src.tolist(), batch.dst.tolist()) == ([4, -1, 4], [1, -1, 2])
    assert {x.dtype for x in (batch.src, batch.dst, batch.starts)} == {torch.int32}


def test_sequences_go_on_in_place_unless_told_otherwise() -> None:
    batch = Packed.of([2, 0], [1, 1])
    assert torch.equal(batch.dst, batch.src)


def test_no_sequences_have_no_tokens() -> None:
    batch = Packed.of([], [])
    assert (batch.starts.tolist(), batch.longest) == ([0], 0)
    batch.check(0)
    with pytest.raises(ValueError, match="2 tokens belong to no sequence"):
        batch.check(2)


@pytest.mark.parametrize("name", ["src", "dst", "starts"])
def test_other_dtypes_than_int32_are_refused(name: str) -> None:
    fields = {"src": int32(0), "dst": int32(0), "starts": int32(0, 2)}
    fields[name] = fields[name].long()
    with pytest.raises(TypeError, match="must be int32"):
        Packed(**fields, longest=2).check(2)


@pytest.mark.parametrize(
    ("src", "dst", "starts"),
    [((0, 1), (0, 1), (0, 2)), ((0,), (0, 1), (0, 2)), ((0,), (0,), (0, 1, 2)), ((0,), (0,), ())],
)
def test_fields_of_other_lengths_are_refused(src: tuple[int], dst: tuple[int], starts: tuple[int]) -> None:
    with pytest.raises(ValueError, match="as many destinations"):
        Packed(int32(*src), int32(*dst), int32(*starts), 2).check(2)


def test_slots_are_rows_of_the_pool() -> None:
    pool = torch.arange(6.0).view(3, 2)
    assert torch.equal(read_slots(pool, int32(2, -1, 2)), torch.tensor([[4.0, 5.0], [0.0, 0.0], [4.0, 5.0]]))
    write_slots(pool, int32(1, -1), torch.tensor([[7.0, 8.0], [9.0, 9.0]]))
    assert torch.equal(pool, torch.tensor([[0.0, 1.0], [7.0, 8.0], [4.0, 5.0]]))


def test_what_no_slot_holds_is_zero_even_beside_nan() -> None:
    assert not read_slots(torch.full((2, 3), torch.nan), int32(-1)).any()


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def call_recurrence(batch: Packed) -> Tensor:
    pool, q = torch.zeros(SLOTS, 1, 4, 4), torch.ones(TOKENS, 1, 4)
    recurrence(q, q, q, pool, batch)
    return pool


def call_causal_conv(batch: Packed) -> Tensor:
    pool = torch.zeros(SLOTS, 3, 4)
    causal_conv(torch.ones(TOKENS, 4), torch.ones(4, 4), None, pool, batch)
    return pool


def call_token_shift(batch: Packed) -> Tensor:
    pool = torch.zeros(SLOTS, 4)
    token_shift(torch.ones(TOKENS, 4), torch.ones(1, 4), pool, batch)
    return pool


CALLS = [call_recurrence, call_causal_conv, call_token_shift]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("src", "dst", "starts", "message"),
    [
        ((3,), (0,), (0, 2), "slot 3 is not in a pool of 3"),
        ((0,), (3,), (0, 2), "slot 3 is not in a pool of 3"),
        ((-2,), (0,), (0, 2), "slot -2 is not in a pool of 3"),
        ((0,), (-2,), (0, 2), "slot -2 is not in a pool of 3"),
        ((2**31 - 1,), (0,), (0, 2), "slot 2147483647 is not"),
        ((0, 1), (2, 2), (0, 1, 2), "slot 2 is the destination of two sequences"),
        ((0, 2), (2, 1), (0, 1, 2), "slot 2 is the source of one sequence and the destination of another"),
        ((1, 2), (2, 0), (0, 1, 2), "slot 2 is the source of one sequence and the destination of another"),
        ((0,), (0,), (0, 1), "starts must go from 0 to 2"),
        ((0,), (0,), (1, 2), "starts must go from 0 to 2"),
        ((0,), (0,), (0, 3), "starts must go from 0 to 2"),
        ((0, 1), (0, 1), (0, 3, 2), "starts must not decrease"),
        ((0, 1), (0, 1), (0, -1, 2), "starts must not decrease"),
    ],
)
def test_what_would_leave_memory_or_race_is_refused(
    call: Callable[[Packed], Tensor],
    src: tuple[int, ...],
    dst: tuple[int, ...],
    starts: tuple[int, ...],
    message: str,
) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(Packed(int32(*src), int32(*dst), int32(*starts), 2))


@pytest.mark.parametrize("call", CALLS)
def test_forks_padding_and_steps_in_place_are_not(call: Callable[[Packed], Tensor]) -> None:
    for src, dst in (((0, 0), (1, 2)), ((-1, -1), (-1, -1)), ((1, 1), (-1, -1)), ((-1, 0), (1, -1)), ((2, 0), (2, 0))):
        pool = call(Packed.of(src, [1, 1], dst=dst))
        assert [bool(row.any()) for row in pool] == [slot in dst for slot in range(SLOTS)]
