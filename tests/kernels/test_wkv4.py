"""RWKV-4's attention against independent forms of it."""

import pytest
import torch

from ostinato.kernels.packed import Packed
from ostinato.kernels.wkv4 import wkv4
from tests.kernels.random_batches import relative_error, uniform


@pytest.mark.parametrize("seed", range(3))
def test_transformers(seed: int) -> None:
    """Against its loop for CPUs, from an empty state and going on."""
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    generator = torch.Generator().manual_seed(seed)
    k, v = uniform(generator, 40, 23, low=-60.0, high=60.0), uniform(generator, 40, 23)
    time_decay, bonus = uniform(generator, 23, low=-8.0, high=2.0), uniform(generator, 23)
    state, pool = None, torch.zeros(2, 3, 23)
    for piece in (slice(0, 30), slice(30, 40)):
        expected, state = rwkv_linear_attention_cpu(
            time_decay, bonus, k[piece].unsqueeze(0), v[piece].unsqueeze(0), state=state, return_state=True
        )
        found = wkv4(k[piece], v[piece], -time_decay.exp(), bonus, pool, Packed.of([1], [piece.stop - piece.start]))
        assert relative_error(found, expected[0]) <= 1e-6
        assert relative_error(pool[1], torch.cat(state)) <= 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_weighted_average(seed: int) -> None:
    """The published sum over all pairs of tokens, in float64 and with no state."""
    generator = torch.Generator().manual_seed(seed)
    k, v = uniform(generator, 25, 6, low=-20.0, high=20.0), uniform(generator, 25, 6)
    decay, bonus = -uniform(generator, 6, low=-5.0, high=1.0).exp(), uniform(generator, 6)
    age = (torch.arange(25).unsqueeze(1) - 1 - torch.arange(25)).unsqueeze(-1)  # [T, T, 1]; -1: the token itself
    exponent = torch.where(age < 0, bonus.double(), age * decay.double()) + k.double()
    weight = torch.where(age < -1, 0.0, exponent.exp())
    expected = (weight * v.double()).sum(1) / weight.sum(1)
    found = wkv4(k, v, decay, bonus, torch.zeros(1, 3, 6), Packed.of([0], [25]))
    assert relative_error(found, expected) <= 1e-5


def test_maximum_of_an_empty_slot_means_nothing() -> None:
    """A slot is empty when its second row is zero, whatever stands in the third."""
    generator = torch.Generator().manual_seed(0)
    k, v, decay, bonus = (uniform(generator, *shape) for shape in ((3, 5), (3, 5), (5,), (5,)))
    pool = torch.zeros(2, 3, 5)
    pool[1, 2] = 1e30
    first, second = (wkv4(k, v, -decay.exp(), bonus, pool, Packed.of([slot], [3])) for slot in (0, 1))
    assert torch.equal(first, second)
    assert torch.equal(pool[0], pool[1])
