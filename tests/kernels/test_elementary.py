"""Elementwise functions: how exact they are over the whole range of fp32, and that position does not matter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import rows
from tests.kernels.random_batches import same_bits, thread_counts, uniform

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

Function = Callable[[Tensor], Tensor]
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
LARGEST = torch.finfo(torch.float32).max
# From where on units in the last place count: below, sigmoid is 0, and silu is that times an x of at most 86.
SMALLEST = {"sigmoid": 1e-37, "silu": 1e-35}


def log_sigmoid_of_sixteenth(x: Tensor) -> Tensor:
    return rows.log_sigmoid(x, 1 / 16)


# Ours, PyTorch's in fp64, and by how many units in the last place ours may be off.
FUNCTIONS: dict[str, tuple[Function, Function, float]] = {
    "exp": (rows.exp, torch.exp, 2),
    "softplus": (rows.softplus, lambda x: torch.logaddexp(x, torch.zeros_like(x)), 4),
    "log_sigmoid": (rows.log_sigmoid, lambda x: -torch.logaddexp(-x, torch.zeros_like(x)), 4),
    "log_sigmoid_of_sixteenth": (log_sigmoid_of_sixteenth, lambda x: F.logsigmoid(x) / 16, 4),
    "sigmoid": (rows.sigmoid, torch.sigmoid, 4),
    "silu": (rows.silu, F.silu, 5),
    "tanh": (rows.tanh, torch.tanh, 2),
}


def every_bf16() -> Tensor:
    """All finite values of bf16 as fp32: all magnitudes and signs."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float()
    return values[values.isfinite()]


def units_off(found: Tensor, expected: Tensor) -> Tensor:
    """The error in units in the last place of fp32 at what is expected (fp64, all of it normal numbers in fp32)."""
    exponent = torch.frexp(expected).exponent
    return (found.double() - expected).abs() / torch.exp2(exponent.double() - 24)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_exact_to_a_few_units(name: str) -> None:
    function, exact, units = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(0)
    spread = [uniform(generator, 300_000, low=-high, high=high) for high in (1.0, 20.0, 110.0)]
    near_edges = torch.tensor([[88.72283, 88.37, -87.33654, -87.7, 20.0, 0.0]]).T + uniform(generator, 6, 2000) * 0.1
    x = torch.cat([every_bf16(), *spread, near_edges.flatten()])
    found, expected = function(x), exact(x.double())
    smallest = SMALLEST.get(name, SMALLEST_NORMAL)
    below, above = expected.abs() < smallest, expected > LARGEST
    counted = ~(below | above)
    assert counted.sum() > 500_000
    assert float(units_off(found[counted], expected[counted]).max()) <= units
    assert float((found[below].double() - expected[below]).abs().max()) <= smallest
    assert (found[above] == torch.inf).all()


INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("exp", [-INF, -1e30, -150.0, -0.0, 0.0, 88.73, 1e30, INF, NAN], [0.0, 0.0, 0.0, 1.0, 1.0, INF, INF, INF, NAN]),
        ("softplus", [-INF, -1e30, 1e30, INF, NAN], [0.0, 0.0, 1e30, INF, NAN]),
        ("log_sigmoid", [-INF, -1e30, 1e30, INF, NAN], [-INF, -1e30, 0.0, 0.0, NAN]),
        ("sigmoid", [-INF, -1e30, 0.0, 1e30, INF, NAN], [0.0, 0.0, 0.5, 1.0, 1.0, NAN]),
        ("silu", [-1e30, 0.0, 1e30, INF, NAN], [0.0, 0.0, 1e30, INF, NAN]),
        ("tanh", [-INF, -1e30, 0.0, 1e30, INF, NAN], [-1.0, -1.0, 0.0, 1.0, 1.0, NAN]),
    ],
)
def test_limits_and_nan(name: str, x: list[float], expected: list[float]) -> None:
    found = FUNCTIONS[name][0](torch.tensor(x))
    assert torch.equal(found.isnan(), torch.tensor(expected).isnan())
    assert torch.equal(found.nan_to_num(7.0, INF, -INF), torch.tensor(expected).nan_to_num(7.0, INF, -INF))


def test_sqrt_is_rounded_correctly_and_zero_below_zero() -> None:
    x = torch.cat([every_bf16().abs(), uniform(torch.Generator().manual_seed(0), 100_003, high=1e6).abs()])
    assert same_bits(rows.sqrt(x), x.double().sqrt().float())
    assert same_bits(rows.sqrt(x.flip(0)[1:]), x.double().sqrt().float().flip(0)[1:])
    found = rows.sqrt(torch.tensor([-INF, -1e30, -1e-30, 0.0, 4.0, INF, NAN]))
    assert found[:6].tolist() == [0.0, 0.0, 0.0, 0.0, 2.0, INF]
    assert found[6].isnan()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_element_does_not_depend_on_its_position_or_thread(name: str) -> None:
    function = FUNCTIONS[name][0]
    x = uniform(torch.Generator().manual_seed(1), 40_003, low=-9.0, high=9.0)
    whole = function(x)
    for _ in thread_counts(1, 2):
        for start, stop in ((0, 1), (1, 18), (39_999, 40_003), (5, 33_000), (17, 17)):
            assert same_bits(function(x[start:stop].clone()), whole[start:stop])
    assert same_bits(function(x[::3]), whole[::3])
    assert same_bits(function(x[:40_000].view(8, 50, 100)).flatten(), whole[:40_000])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_dtypes_are_refused_and_nothing_is_nothing(name: str) -> None:
    function = FUNCTIONS[name][0]
    with pytest.raises(TypeError, match="expected float32"):
        function(torch.ones(3).double())
    assert function(torch.empty(0, 4)).shape == (0, 4)
