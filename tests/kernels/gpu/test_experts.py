"""A mixture of experts in Triton: against the references in double precision."""

import pytest
import torch

from ostinato.kernels.experts import experts_ref, route_ref
from ostinato.kernels.gpu.experts import experts, route
from tests.kernels.random_batches import relative_error, same_bits, uniform

SIZES = [(1, 1, 3, 5), (7, 3, 20, 12), (5, 5, 150, 17)]  # experts, chosen, hidden, inner


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (7, 3), (16, 16), (100, 10)])
def test_route_equals_the_reference(count: int, chosen: int, normalize: bool) -> None:
    logits = uniform(torch.Generator().manual_seed(count), 6, count, low=-6.0, high=6.0)
    logits[2] = 1.0  # of equal ones the first
    weights, ids = route(logits, chosen, normalize)
    expected, expected_ids = route_ref(logits.double(), chosen, normalize)
    assert ids.tolist() == expected_ids.tolist()
    assert relative_error(weights, expected) <= 1e-6


@pytest.mark.parametrize(("count", "chosen", "hidden", "inner"), SIZES)
def test_experts_equal_the_reference(count: int, chosen: int, hidden: int, inner: int) -> None:
    g = torch.Generator().manual_seed(count)
    gate_up, down = uniform(g, count, 2 * inner, hidden), uniform(g, count, hidden, inner)
    x, residual = uniform(g, 9, hidden), uniform(g, 9, hidden)
    weights, ids = route_ref(uniform(g, 9, count), chosen, True)
    found = experts(x, [gate_up], [down], ids, weights, residual, inner)
    doubled = (x.double(), [gate_up.double()], [down.double()], ids, weights.double(), residual.double(), inner)
    assert relative_error(found, experts_ref(*doubled)) <= 1e-6
    alone = experts(x[4:5], [gate_up], [down], ids[4:5], weights[4:5], residual[4:5], inner)
    assert same_bits(alone, found[4:5])


def test_no_tokens_give_no_tokens() -> None:
    assert all(x.shape == (0, 3) for x in route(torch.empty(0, 7), 3, True))
    none, ids = torch.empty(0, 20), torch.empty(0, 3, dtype=torch.int32)
    weights = [torch.ones(7, 24, 20)], [torch.ones(7, 20, 12)]
    assert experts(none, *weights, ids, ids.float(), none, 12).shape == (0, 20)
