"""What a model says about the size of its projections, against the products that it computes."""

import pytest
import torch
from torch import Tensor

from ostinato.kernels.experts import Experts
from ostinato.kernels.linear import Activation, Linear
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.models.running import Reader
from tests.models.test_contract import CHECKPOINTS


@pytest.mark.parametrize("architecture", CHECKPOINTS)
def test_projections_are_counted(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The elements of each weight that one token meets are in times out, whatever the layout of its memory."""
    sizes: list[int] = []
    product, activated_product, mixture = Linear.__call__, Linear.activated, Experts.__call__

    def recorded(self: Linear, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = product(self, x, residual)
        sizes.append(x.shape[-1] * y.shape[-1])
        return y

    def activated(self: Linear, x: Tensor, activation: Activation, dtype: torch.dtype) -> Tensor:
        sizes.append(x.shape[-1] * self.outputs)
        return activated_product(self, x, activation, dtype)

    def mixed(self: Experts, x: Tensor, experts: Tensor, *rest: Tensor) -> Tensor:
        sizes.append(experts.shape[1] * self.inner * (2 * self.inputs + self.outputs))
        return mixture(self, x, experts, *rest)

    model = load_model(open_checkpoint(CHECKPOINTS[architecture]), dtype=torch.float32)
    reader = Reader(model)
    reader.read([1])  # the first token of a prompt may pass more than every other
    monkeypatch.setattr(Linear, "__call__", recorded)
    monkeypatch.setattr(Linear, "activated", activated)
    monkeypatch.setattr(Experts, "__call__", mixed)
    reader.read([1])
    *projections, head = sizes
    assert (model.matmul_params, model.head_params) == (sum(projections), head)
