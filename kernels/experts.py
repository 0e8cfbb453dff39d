"""A mixture of experts: a router chooses a few MLPs for every token, and their outputs are added up.

A token's bits do not depend on the others. On the CPU the tokens of an expert are gathered and go through projections
that compute each row by itself (`kernels/linear.py`); on a GPU every token is multiplied by itself. What the experts
of a token give is added in the order of the experts, whichever tokens they share. Neither looks at values on the host,
so that a step can be recorded or captured.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import dispatch
from ostinato.kernels.linear import pack
from ostinato.kernels.rows import swiglu_ref


def route_ref(logits: Tensor, chosen: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """Softmax, and the experts that have most of it: of equal ones, the first."""
    best = torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, :chosen]
    experts = best.sort(dim=-1).values
    weights = F.softmax(logits, dim=-1).gather(-1, experts)
    return weights / weights.sum(-1, keepdim=True) if normalize else weights, experts.int()


def experts_ref(
    x: Tensor,
    gate_up: list[Tensor],
    down: list[Tensor],
    experts: Tensor,
    weights: Tensor,
    residual: Tensor,
    inner: int,
) -> Tensor:
    """residual + sum_e weights_e down_e(swiglu(gate_up_e x)), expert by expert."""
    del inner  # packed weights do not tell it; these do
    y = residual.clone()
    for expert in range(gate_up[0].shape[0]):
        token, place = torch.nonzero(experts == expert, as_tuple=True)
        gates = F.linear(x[token].to(gate_up[0].dtype), gate_up[0][expert]).float()
        given = F.linear(swiglu_ref(gates, down[0].dtype), down[0][expert]).float()
        y.index_add_(0, token, given * weights[token, place].unsqueeze(-1))
    return y


def _route_meta(logits: Tensor, chosen: int, normalize: bool) -> tuple[Tensor, Tensor]:
    del normalize
    shape = (logits.shape[0], chosen)
    return logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int32)


def _experts_meta(x: Tensor, *rest: object) -> Tensor:
    residual = rest[4]
    assert isinstance(residual, Tensor)
    return x.new_empty(residual.shape, dtype=torch.float32)


dispatch.define(
    "route(Tensor logits, int chosen, bool normalize) -> (Tensor, Tensor)", reference=route_ref, meta=_route_meta
)
dispatch.define(
    "experts(Tensor x, Tensor[] gate_up, Tensor[] down, Tensor experts, Tensor weights, Tensor residual, "
    "int inner) -> Tensor",
    reference=experts_ref,
    meta=_experts_meta,
)


def route(logits: Tensor, chosen: int, *, normalize: bool) -> tuple[Tensor, Tensor]:
    """Chooses experts for every token (Shazeer et al. 2017, section 2.1, without noise; softmax before the choice).

    logits: [T, E] fp32. Returns weights [T, chosen] fp32, which are parts of a softmax over all experts, or over those
    chosen when `normalize`, and experts [T, chosen] int32, in ascending order. Raises TypeError, ValueError.
    """
    if logits.dtype != torch.float32:
        raise TypeError(f"route: expected float32, got {logits.dtype}")
    if logits.dim() != 2 or not 1 <= chosen <= logits.shape[1]:
        raise ValueError(f"route: {chosen} experts cannot be chosen by logits {tuple(logits.shape)}")
    weights, experts = dispatch.operators(logits).route(logits.contiguous(), chosen, normalize)
    return weights, experts


class Experts:
    """MLPs of one shape, down(silu(gate x) * up x) each, with weights packed at construction (`kernels/linear.py`).

    gate_up: [2 inner, in] of every expert, gate first; down: [out, inner]. Raises ValueError: shapes that do not fit.
    """

    def __init__(self, gate_up: Sequence[Tensor], down: Sequence[Tensor]) -> None:
        shapes = {(*a.shape, *b.shape) for a, b in zip(gate_up, down, strict=True)}
        if len(shapes) != 1:
            raise ValueError(f"experts: one shape is needed, got {sorted(shapes)}")
        ((joined, self.inputs, self.outputs, self.inner),) = shapes
        if joined != 2 * self.inner:
            raise ValueError(f"experts: {joined} outputs of gate and up do not fit {self.inner} inputs of down")
        self.count, self.dtype = len(gate_up), gate_up[0].dtype
        self._gate_up, self._down = _packed(gate_up), _packed(down)
        self._experts = dispatch.operators(gate_up[0]).experts.default

    def __call__(self, x: Tensor, experts: Tensor, weights: Tensor, residual: Tensor) -> Tensor:
        """Adds to `residual` what the experts of every token give.

        x: [T, in] of any float dtype, rounded to the weights'; experts, weights: [T, chosen] as `route` returns them;
        residual: [T, out] fp32. Returns [T, out] fp32. Raises ValueError: operands that do not fit.
        """
        tokens = x.shape[0]
        if x.shape[1:] != (self.inputs,) or residual.shape != (tokens, self.outputs):
            raise ValueError(f"experts: x {tuple(x.shape)} and residual {tuple(residual.shape)} do not fit the weights")
        if experts.shape != weights.shape or experts.shape[:1] != (tokens,):
            raise ValueError(f"experts: {tokens} tokens need experts and weights, got {tuple(experts.shape)}")
        y: Tensor = self._experts(x, self._gate_up, self._down, experts, weights, residual, self.inner)
        return y


def _packed(weights: Sequence[Tensor]) -> list[Tensor]:
    """One by one, or, where weights are not packed, all in one: [E, N, K]."""
    if dispatch.product(weights[0]) == "plain":
        return [torch.stack(list(weights))]
    return [pack(weight) for weight in weights]
