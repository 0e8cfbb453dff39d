"""What prefix linear attention sees: all of the encoder region from everywhere, and nothing else that lies ahead."""

from __future__ import annotations

import pytest
import torch

from ostinato.kernels.packed import Packed
from ostinato.models.base import Model
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.models.goldens import PATHS
from tests.models.running import Reader
from tests.models.test_contract import Reader as Batches
from tests.models.test_contract import random_tokens

LENGTH = 16


@pytest.fixture(scope="module")
def model() -> Model:
    model = load_model(open_checkpoint(PATHS["jrt"]), dtype=torch.float32)
    assert model.state_spec.encoder_length == LENGTH
    return model


def changed(tokens: list[int], at: int) -> list[int]:
    return [*tokens[:at], (tokens[at] + 1) % 200, *tokens[at + 1 :]]


@pytest.mark.parametrize("count", [9, LENGTH, 30])
def test_all_of_the_region_sees_its_last_token(model: Model, count: int) -> None:
    tokens, last = random_tokens(model, count, count), min(count, LENGTH) - 1
    logits = Reader(model).read(tokens) - Reader(model).read(changed(tokens, last))
    assert (logits.abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("at", [LENGTH, 25])
def test_nothing_sees_a_later_token_behind_the_region(model: Model, at: int) -> None:
    tokens = random_tokens(model, 30, at)
    left, right = Reader(model).read(tokens), Reader(model).read(changed(tokens, at))
    assert torch.equal(left[:at], right[:at])
    assert (left[at:] != right[at:]).any(-1).all()


def test_a_shorter_prompt_has_a_state_of_its_own(model: Model) -> None:
    """Read on by one token, it is not the state of the longer prompt: what the engine must never mistake it for."""
    tokens = random_tokens(model, 10, 0)
    reader = Reader(model)
    reader.read(tokens[:9])
    assert (reader.read(tokens[9:])[0] - Reader(model).read(tokens)[9]).abs().max() > 0.1


def test_what_begins_may_share_a_batch_with_what_goes_on(model: Model) -> None:
    """Prompts shorter and longer than the region, two that go on, in any order of slots."""
    texts = {slot: random_tokens(model, 40, slot) for slot in range(5)}
    whole = {slot: Batches(model).read({slot: text})[slot] for slot, text in texts.items() if slot != 2}
    whole[2] = Batches(model).read({2: texts[2][:5]})[2]
    together = Batches(model)
    first = together.read({1: texts[1][:16], 4: texts[4][:29]})
    second = together.read({3: texts[3], 1: texts[1][16:], 2: texts[2][:5], 4: texts[4][29:30], 0: texts[0][:17]})
    assert torch.equal(torch.cat([first[1], second[1]]), whole[1])
    assert torch.equal(torch.cat([first[4], second[4]]), whole[4][:30])
    assert torch.equal(second[3], whole[3])
    assert torch.equal(second[2], whole[2])
    assert torch.equal(second[0], whole[0][:17])


def test_a_sequence_may_begin_into_another_slot_than_it_reads(model: Model) -> None:
    """From nothing (-1) into a slot, whatever was in it."""
    tokens, reader = random_tokens(model, 20, 3), Batches(model)
    expected = reader.read({1: tokens})[1]
    for tensor in reader.pool.tensors.values():
        tensor[:, 4] = 7
    batch = Packed.of([-1], [20], dst=[4], begins=[0])
    found = model.logits(model.forward(torch.tensor(tokens), batch, reader.pool.tensors))
    assert torch.equal(found, expected)
    assert all(torch.equal(tensor[:, 4], tensor[:, 1]) for tensor in reader.pool.tensors.values())
