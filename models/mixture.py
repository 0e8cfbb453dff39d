"""A mixture of experts as models have it: experts that a router chooses, beside an MLP that all tokens share."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ostinato.kernels.experts import Experts, route
from ostinato.kernels.linear import Linear


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """Shazeer et al. 2017, section 2.1, and Dai et al. 2024 (DeepSeekMoE), section 3.2, for the shared MLP.

    router: logits of all experts; chosen: experts for every token; normalize: whether their weights sum up to one;
    scale: multiplies what they give. shared: called with x and the residual, to which it adds.
    """

    router: Linear
    experts: Experts
    shared: Callable[[Tensor, Tensor], Tensor]
    chosen: int
    normalize: bool
    scale: float = 1.0

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [T, hidden]; residual: [T, hidden] fp32, added to the result. Returns [T, hidden] fp32."""
        weights, experts = route(self.router(x), self.chosen, normalize=self.normalize)
        if self.scale != 1:
            weights = weights * self.scale
        return self.experts(x, experts, weights, self.shared(x, residual))
