"""A mixture of experts: against torch's own operators in double precision, and a token's bits in any company."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import dispatch
from ostinato.kernels.experts import Experts, route
from tests.kernels.random_batches import relative_error, same_bits, thread_counts, uniform

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

DTYPES = dispatch.supported_dtypes(torch.device("cpu"))
# In bf16 what is between the two products is rounded, and so is oneDNN's result.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
SIZES = [(1, 1, 3, 5), (7, 3, 20, 12), (16, 16, 31, 40), (64, 10, 128, 64)]  # experts, chosen, hidden, inner
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in DTYPES])
each_size = pytest.mark.parametrize(("count", "chosen", "hidden", "inner"), SIZES)


class Mixture:
    """Random experts, tokens, and what a router says of them."""

    def __init__(self, count: int, chosen: int, hidden: int, inner: int, dtype: torch.dtype, tokens: int = 37) -> None:
        g = torch.Generator().manual_seed(count)
        self.gate_up = (uniform(g, count, 2 * inner, hidden) * hidden**-0.5).to(dtype)
        self.down = (uniform(g, count, hidden, inner) * inner**-0.5).to(dtype)
        self.x, self.residual = uniform(g, tokens, hidden).to(dtype), uniform(g, tokens, hidden)
        self.weights, self.ids = route(uniform(g, tokens, count, high=5.0), chosen, normalize=True)
        self.experts = Experts(list(self.gate_up), list(self.down))

    def __call__(self, rows: slice | list[int] = slice(None)) -> Tensor:
        return self.experts(self.x[rows], self.ids[rows], self.weights[rows], self.residual[rows])

    def expected(self) -> Tensor:
        y = self.residual.double()
        for token, (ids, weights) in enumerate(zip(self.ids.tolist(), self.weights.double(), strict=True)):
            for expert, weight in zip(ids, weights, strict=True):
                gate, up = (self.gate_up[expert].double() @ self.x[token].double()).chunk(2)
                y[token] += weight * (self.down[expert].double() @ (F.silu(gate) * up))
        return y


@each_dtype
@each_size
def test_experts_equal_double(count: int, chosen: int, hidden: int, inner: int, dtype: torch.dtype) -> None:
    mixture = Mixture(count, chosen, hidden, inner, dtype)
    assert relative_error(mixture(), mixture.expected()) <= TOLERANCE[dtype]
    mixture.residual.zero_()  # beside which what experts give is small
    assert relative_error(mixture(), mixture.expected()) <= TOLERANCE[dtype]


@each_dtype
@each_size
def test_a_token_has_the_same_bits_in_any_company(
    count: int, chosen: int, hidden: int, inner: int, dtype: torch.dtype
) -> None:
    mixture = Mixture(count, chosen, hidden, inner, dtype)
    whole = mixture()
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1)).tolist()
    for _ in thread_counts(1, 2):
        assert same_bits(mixture(), whole)
        assert same_bits(mixture(order), whole[order])
        for row in range(37):
            assert same_bits(mixture(slice(row, row + 1)), whole[row : row + 1])
        assert same_bits(mixture(slice(5, 19)), whole[5:19])


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (7, 3), (16, 16), (512, 10)])
def test_route_equals_softmax_and_topk(count: int, chosen: int, normalize: bool) -> None:
    logits = uniform(torch.Generator().manual_seed(count), 50, count, low=-6.0, high=6.0)
    weights, experts = route(logits, chosen, normalize=normalize)
    best = logits.double().softmax(-1).topk(chosen)
    ids, order = best.indices.sort(-1)
    expected = best.values.gather(-1, order)
    assert experts.tolist() == ids.tolist()
    assert relative_error(weights, expected / expected.sum(-1, keepdim=True) if normalize else expected) <= 1e-6
    for row in range(50):
        alone = route(logits[row : row + 1], chosen, normalize=normalize)
        assert same_bits(alone[0], weights[row : row + 1])


def test_of_equal_logits_the_first_are_chosen() -> None:
    _, experts = route(torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), 2, normalize=True)
    assert experts.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_route_always_chooses_experts_that_are_there(value: float) -> None:
    logits = torch.full((3, 7), value)
    logits[1, 4] = 0.0
    _, experts = route(logits, 3, normalize=True)
    assert all(len(set(row)) == 3 and row == sorted(row) and set(row) <= set(range(7)) for row in experts.tolist())


def test_no_tokens_give_no_tokens() -> None:
    mixture = Mixture(7, 3, 20, 12, torch.float32)
    assert mixture(slice(0, 0)).shape == (0, 20)
    assert all(x.shape == (0, 3) for x in route(torch.empty(0, 7), 3, normalize=True))


def test_operands_that_do_not_fit_are_refused() -> None:
    mixture = Mixture(7, 3, 20, 12, torch.float32)
    with pytest.raises(ValueError, match="8 experts cannot be chosen"):
        route(torch.zeros(2, 7), 8, normalize=True)
    with pytest.raises(TypeError, match="float32"):
        route(torch.zeros(2, 7, dtype=torch.bfloat16), 2, normalize=True)
    with pytest.raises(ValueError, match="do not fit the weights"):
        mixture.experts(mixture.x[:, :5], mixture.ids, mixture.weights, mixture.residual)
    with pytest.raises(ValueError, match="37 tokens need experts"):
        mixture.experts(mixture.x, mixture.ids[:3], mixture.weights[:3], mixture.residual)
    with pytest.raises(IndexError, match="no expert 7 of 7"):
        mixture.experts(mixture.x, mixture.ids + 7 - mixture.ids, mixture.weights, mixture.residual)
    with pytest.raises(ValueError, match="one shape is needed"):
        Experts([torch.zeros(4, 3), torch.zeros(6, 3)], [torch.zeros(3, 2)] * 2)
    with pytest.raises(ValueError, match="outputs of gate and up"):
        Experts([torch.zeros(4, 3)], [torch.zeros(3, 3)])
