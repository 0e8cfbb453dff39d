"""Tapes against the functions that they were recorded from."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import dispatch, rows
from ostinato.kernels.packed import Packed
from ostinato.kernels.shift import token_shift
from ostinato.kernels.tape import record

pytestmark = pytest.mark.skipif(not dispatch.can_record(torch.device("cpu")), reason="needs the C++ operators")


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def test_a_replay_reads_what_the_inputs_hold_now() -> None:
    x = torch.randn(3, 8)
    result, replay = record(lambda: rows.tanh(x[1:]) + x.view(8, 3).T[1:, :8])
    assert torch.equal(result, rows.tanh(x[1:]) + x.view(8, 3).T[1:])
    for seed in range(3):
        x.copy_(torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)))
        assert torch.equal(replay(), rows.tanh(x[1:]) + x.view(8, 3).T[1:])


def test_views_lists_and_dtypes_of_results() -> None:
    x, order = torch.randn(6, 4), torch.tensor([2, 0, 1])

    def work() -> Tensor:
        left, right = rows.sigmoid(x).to(torch.bfloat16).float().chunk(2)
        parts = torch.cat([right.unflatten(-1, (2, 2)).flatten(1), left, x[:1]], dim=0)
        return parts[order] * torch.stack([left, right]).sum(0)

    _, replay = record(work)
    x.copy_(torch.randn(6, 4))
    order.copy_(torch.tensor([0, 5, 3]))
    assert torch.equal(replay(), work())


def test_results_are_new_tensors() -> None:
    x = torch.randn(4)
    first, replay = record(lambda: x + 1)
    second = replay()
    x.zero_()
    third = replay()
    assert torch.equal(first, second)
    assert torch.equal(third, torch.ones(4))
    assert not torch.equal(second, third)


def test_memory_is_updated_in_place_as_often_as_it_runs() -> None:
    x, mix, memory = torch.randn(2, 4), torch.ones(1, 4), torch.zeros(3, 4)
    slots = torch.tensor([2, 0], dtype=torch.int32)
    batch = Packed(slots, slots, torch.arange(3, dtype=torch.int32), 1)
    _, replay = record(lambda: token_shift(x, mix, memory, batch)[0])
    before = x.clone()
    x.copy_(torch.randn(2, 4))
    torch.testing.assert_close(replay(), before)
    assert torch.equal(memory[[2, 0]], x)
    slots.copy_(torch.tensor([1, -1]))
    assert not replay().any()
    assert torch.equal(memory[1], x[0])


def test_updates_of_what_an_operator_made() -> None:
    x = torch.zeros(3)

    def work() -> Tensor:
        total = x * 2
        total.add_(1.0)
        total[1:].mul_(3.0)
        return F.relu(total)

    _, replay = record(work)
    x.fill_(2.0)
    assert torch.equal(replay(), torch.tensor([5.0, 15.0, 15.0]))
    assert torch.equal(replay(), torch.tensor([5.0, 15.0, 15.0]))


def test_a_failing_operator_fails_and_the_next_run_does_not() -> None:
    table, index = torch.randn(4, 2), torch.tensor([1, 2])
    _, replay = record(lambda: F.embedding(index, table).relu())
    index.fill_(9)
    with pytest.raises(IndexError):
        replay()
    index.fill_(3)
    assert torch.equal(replay(), table[[3, 3]].relu())


@pytest.mark.parametrize("look", [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: float(x[0])])
def test_looking_at_values_is_refused(look: object) -> None:
    x = torch.ones(3)
    with pytest.raises(ValueError, match="looks at values"):
        record(lambda: x * look(x))  # type: ignore[operator]  # it is one of the lambdas above


def test_a_result_that_no_operator_made_is_refused() -> None:
    x = torch.ones(3)
    with pytest.raises(ValueError, match="no operator"):
        record(lambda: x[1:])
