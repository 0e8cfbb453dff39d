"""The recurrence in C++ against the reference, in every form; what it leaves alone, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence
from tests.kernels.random_batches import (
    poisoned,
    random_packed,
    relative_error,
    same_bits,
    sequences,
    steps,
    tokens_of,
    unwritten,
    written,
)
from tests.kernels.recurrence_cases import FORMS, IDS, random_case

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@pytest.mark.parametrize("form", FORMS, ids=IDS)
@pytest.mark.parametrize("seed", range(16))
def test_native_equals_reference(form: tuple[str, str], seed: int) -> None:
    """One token each at even seeds, else scans, of up to 300 tokens at every third of them."""
    generator = torch.Generator().manual_seed(seed)
    batch = random_packed(generator, longest=300 if seed % 6 == 5 else 40)
    batch, tolerance = (steps(batch), 1e-5) if seed % 2 == 0 else (batch, 5e-5)
    case = random_case(form, tokens_of(batch), generator)
    pool, expected_state = poisoned(case.state, batch), case.state.clone()
    found_state = pool.clone()
    found, expected = case.run(batch, found_state), case.reference(batch, expected_state)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) <= tolerance
    kept = written(batch)
    assert relative_error(found_state[kept], expected_state[kept]) <= tolerance
    assert same_bits(found_state[unwritten(batch)], pool[unwritten(batch)])


@pytest.mark.parametrize("form", FORMS, ids=IDS)
@pytest.mark.parametrize("seed", range(4))
def test_state_in_bf16_is_rounded_after_every_token(form: tuple[str, str], seed: int) -> None:
    """As if the reference had read token by token."""
    generator = torch.Generator().manual_seed(seed)
    batch = random_packed(generator, longest=20)
    case = random_case(form, tokens_of(batch), generator, state_dtype=torch.bfloat16)
    pool = poisoned(case.state, batch)
    found_state = pool.clone()
    found = case.run(batch, found_state)
    for src, dst, start, stop in sequences(batch):
        state = torch.zeros_like(case.state[:1]) if src < 0 else case.state[src : src + 1].clone()
        for t in range(start, stop):
            expected = case.tokens(t, t + 1).reference(Packed.of([0], [1]), state)
            assert relative_error(found[t], expected[0]) <= 1e-2
        if dst >= 0:
            assert relative_error(found_state[dst], state[0]) <= 1e-2
    assert same_bits(found_state[unwritten(batch)], pool[unwritten(batch)])


def test_sequences_without_tokens_are_copied() -> None:
    case = random_case(("key", "ab"), 0, torch.Generator().manual_seed(0))
    state = case.state.clone()
    assert case.run(Packed.of([2, 2, -1, 4], [0, 0, 0, 0], dst=[6, 1, 3, 4]), state).shape[0] == 0
    assert same_bits(state[[6, 1]], case.state[[2, 2]])
    assert not state[3].any()
    assert same_bits(state[[0, 2, 4, 5]], case.state[[0, 2, 4, 5]])


def test_no_sequences_change_nothing() -> None:
    case = random_case(("matrix", "none"), 0, torch.Generator().manual_seed(0))
    state = case.state.clone()
    assert case.run(Packed.of([], []), state).shape[0] == 0
    assert same_bits(state, case.state)


ONES = {
    "q": torch.ones(2, 2, 4),
    "k": torch.ones(2, 2, 4),
    "v": torch.ones(2, 2, 3),
    "state": torch.zeros(2, 2, 3, 4),
}
LOG_DECAY, AB = {"log_decay": torch.ones(2, 2, 4)}, {"a": torch.ones(2, 2, 4), "b": torch.ones(2, 2, 4)}
BETA, BONUS = {"beta": torch.ones(2, 2)}, {"bonus": torch.ones(2, 4)}
RATE = {"rate": torch.ones(2), "step": torch.ones(2, 2)}
Change = dict[str, Tensor]


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.ones(2, 2, 4)},
        {"b": torch.ones(2, 2, 4)},
        {"rate": torch.ones(2)},
        {"step": torch.ones(2, 2)},
        LOG_DECAY | RATE,
        AB | BETA,
        AB | BONUS,
        BETA | BONUS,
        RATE | AB,
        RATE | BETA,
    ],
    ids=lambda change: "-".join(change),
)
def test_operands_that_contradict_each_other_are_refused(change: Change) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        recurrence(**(ONES | change), batch=Packed.of([0], [2]))


@pytest.mark.parametrize(
    "change",
    [
        {"k": torch.ones(2, 2, 5)},
        {"k": torch.ones(3, 2, 4)},
        {"q": torch.ones(2, 3, 4)},
        {"q": torch.ones(2, 0, 4)},
        {"v": torch.ones(2, 2, 4)},
        {"v": torch.ones(2, 2)},
        {"state": torch.zeros(2, 2, 4, 4)},
        {"state": torch.zeros(2, 0, 3, 4)},
        {"state": torch.zeros(2, 2, 0, 4), "v": torch.ones(2, 2, 0)},
        {"state": torch.zeros(2, 3, 4)},
        {"log_decay": torch.ones(2, 2, 3)},
        {"log_decay": torch.ones(2, 2, 4, 1)},
        {"beta": torch.ones(2, 2, 1)},
        AB | {"b": torch.ones(2, 2, 3)},
        RATE | {"rate": torch.ones(2, 3, 4)},
        RATE | {"step": torch.ones(2, 2, 3)},
        RATE | {"step": torch.ones(2, 1)},
        RATE | {"step_bias": torch.ones(2, 3)},
        {"bonus": torch.ones(1, 4)},
        {"skip": torch.ones(1)},
        {"skip": torch.ones(2, 4)},
        {"gate": torch.ones(2, 1, 3)},
    ],
    ids=lambda change: "-".join(f"{name}{tuple(x.shape)}" for name, x in change.items()),
)
def test_shapes_that_do_not_fit_are_refused(change: Change) -> None:
    with pytest.raises(ValueError, match="shapes do not fit"):
        recurrence(**(ONES | change), batch=Packed.of([0], [2]))


def test_other_arguments_that_do_not_fit_are_refused() -> None:
    def call(change: dict[str, Any]) -> None:
        recurrence(**({**ONES, "batch": Packed.of([0], [2])} | change))

    with pytest.raises(ValueError, match="step_bias needs a step"):
        call({"step_bias": torch.ones(2)})
    with pytest.raises(ValueError, match="one more start"):
        call({"batch": Packed(*(torch.tensor([0], dtype=torch.int32),) * 3, longest=1)})
    with pytest.raises(ValueError, match="must be contiguous"):
        call({"state": torch.zeros(2, 2, 4, 3).transpose(-1, -2)})
    with pytest.raises(TypeError, match=r"the state must be float32 or bfloat16, got torch\.float16"):
        call({"state": torch.zeros(2, 2, 3, 4, dtype=torch.float16)})
    for name, x in (ONES | LOG_DECAY).items():
        if name != "state":
            with pytest.raises(TypeError, match=rf"recurrence: {name} is torch\.float64"):
                call(LOG_DECAY | {name: x.double()})
    with pytest.raises(TypeError, match=r"recurrence: skip is torch\.bfloat16"):
        call({"skip": torch.ones(2, dtype=torch.bfloat16)})


def test_operands_need_not_be_contiguous() -> None:
    """Not even in their last dimension, where the operator makes a copy."""
    generator = torch.Generator().manual_seed(0)
    case = random_case(("key", "ab"), 7, generator)
    turned = {name: x.contiguous().mT.contiguous().mT for name, x in case.operands.items()}
    batch, left, right = Packed.of([1], [7]), case.state.clone(), case.state.clone()
    assert same_bits(case.run(batch, left), replace(case, operands=turned).run(batch, right))
    assert same_bits(left, right)
