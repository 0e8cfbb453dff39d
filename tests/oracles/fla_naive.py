"""GLA by flash-linear-attention's own model with its Triton kernels replaced by plain torch, fp32.

For sizes at which Triton's interpreter takes many minutes. The recurrence and the norms are fla's own references, which
its authors test the kernels against; the activations are written out. `test_oracles.py` compares it with the kernels
themselves on small models. A kernel that is not replaced fails: it needs a GPU or the interpreter.
"""

from __future__ import annotations

import fla.layers.gla
import fla.modules.mlp
import torch
from fla.modules import FusedRMSNormGated, RMSNorm
from fla.modules.activations import ACT2FN
from fla.modules.norm.layernorm import rms_norm_ref
from fla.ops.gla.naive import naive_recurrent_gla
from torch.nn.functional import linear, silu

from tests.oracles.fla_models import load
from tests.oracles.worker import serve


def recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gk: torch.Tensor,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
    state_v_first: bool,
    cu_seqlens: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The state's layout is nobody else's business: it comes back as `initial_state`."""
    assert cu_seqlens is None
    return naive_recurrent_gla(q, k, v, gk, initial_state, output_final_state)


def norm(self: RMSNorm, x: torch.Tensor, residual: torch.Tensor | None = None, prenorm: bool = False) -> torch.Tensor:
    return rms_norm_ref(x, self.weight, self.bias, residual, eps=self.eps, prenorm=prenorm)


def gated_norm(self: FusedRMSNormGated, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    assert self.activation == "swish"
    return rms_norm_ref(x, self.weight, None, eps=self.eps) * silu(g)


def swiglu(gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return linear(silu(gate) * up, weight, bias)


fla.layers.gla.fused_recurrent_gla = recurrence
fla.modules.mlp.swiglu_linear = swiglu
ACT2FN["swish"] = silu
RMSNorm.forward = norm
FusedRMSNormGated.forward = gated_norm

if __name__ == "__main__":
    serve(load)
