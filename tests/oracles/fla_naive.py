"""flash-linear-attention's own models with their Triton kernels replaced by plain torch, fp32.

Triton's interpreter takes seconds for a tiny model and minutes for any other. The recurrences, the norms, the rotation
and the decay of KDA are fla's own references, which its authors test the kernels against; convolutions and activations
are written out. `test_oracles.py` compares it with what the kernels themselves computed (the goldens). A kernel that is
not replaced fails: it needs a GPU or the interpreter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fla.layers.delta_net
import fla.layers.gated_deltanet
import fla.layers.gla
import fla.layers.hgrn
import fla.layers.hgrn2
import fla.layers.kda
import fla.layers.multiscale_retention
import fla.modules.mlp
import torch
from fla.modules import FusedRMSNormGated, RMSNorm, RotaryEmbedding, ShortConvolution
from fla.modules.activations import ACT2FN
from fla.modules.norm.layernorm import rms_norm_ref
from fla.modules.rotary.ops import rotary_embedding_ref
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.hgrn.naive import naive_recurrent_hgrn
from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate
from fla.ops.kda.naive import naive_recurrent_kda
from torch import Tensor
from torch.nn.functional import conv1d, linear, pad, sigmoid, silu, softplus

from tests.oracles.fla_models import read_model
from tests.oracles.worker import Forward, serve

Result = tuple[Tensor, None]
Rest = Any  # what layers pass on to kernels and is None, or the layout of a state that nobody asks for


def gla(q: Tensor, k: Tensor, v: Tensor, gk: Tensor, **_: Rest) -> Result:
    return naive_recurrent_gla(q, k, v, gk)[0], None


def retention(q: Tensor, k: Tensor, v: Tensor, **_: Rest) -> Result:
    """As GLA with the paper's decays, the same for all keys of a head."""
    decay = torch.log(1 - 2.0 ** (-5 - torch.arange(q.shape[2]).double())).float()
    return gla(q, k, v, decay[None, None, :, None].expand(q.shape))


def hgrn(x: Tensor, g: Tensor, **_: Rest) -> Result:
    return naive_recurrent_hgrn(x, g)[0], None


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, use_qk_l2norm_in_kernel: bool, **_: Rest) -> Result:
    assert use_qk_l2norm_in_kernel
    heads_first = (x.transpose(1, 2) for x in (unit(q), unit(k), v, beta))
    return delta_rule_recurrence(*heads_first)[0].transpose(1, 2), None


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, A_log: Tensor, dt_bias: Tensor, **rest: Rest
) -> Result:
    beta = sigmoid(beta) * (2 if rest["allow_neg_eigval"] else 1)
    q, k = (unit(x).repeat_interleave(v.shape[2] // x.shape[2], dim=2) for x in (q, k))
    return naive_recurrent_gated_delta_rule(q, k, v, beta, -A_log.exp() * softplus(g + dt_bias))[0], None


def kda(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, A_log: Tensor, dt_bias: Tensor, **rest: Rest
) -> Result:
    beta = sigmoid(beta) * (2 if rest["allow_neg_eigval"] else 1)
    bound = rest["lower_bound"]
    gate = naive_kda_gate(g, A_log, dt_bias) if bound is None else naive_kda_lowerbound_gate(g, A_log, dt_bias, bound)
    return naive_recurrent_kda(unit(q), unit(k), v, gate, beta)[0], None


def norm(self: RMSNorm, x: Tensor, residual: Tensor | None = None, prenorm: bool = False) -> Tensor:
    return rms_norm_ref(x, self.weight, self.bias, residual, eps=self.eps, prenorm=prenorm)


def gated_norm(self: FusedRMSNormGated, x: Tensor, g: Tensor) -> Tensor:
    gate = {"swish": silu, "silu": silu, "sigmoid": sigmoid}[self.activation]
    return rms_norm_ref(x, self.weight, None, eps=self.eps) * gate(g)


def norm_then_linear(x: Tensor, weight: Tensor, bias: None, matrix: Tensor, offset: None, eps: float = 1e-5) -> Tensor:
    """With fla's default for eps, which HGRN2 leaves at that."""
    return linear(rms_norm_ref(x, weight, bias, eps=eps), matrix, offset)


def swiglu_linear(gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(silu(gate) * up, weight, bias)


def convolution(self: ShortConvolution, x: Tensor, **_: Rest) -> tuple[Tensor, None]:
    channels, _, width = self.weight.shape
    y = conv1d(pad(x.transpose(1, 2), (width - 1, 0)), self.weight, groups=channels).transpose(1, 2)
    return silu(y), None


def rotated(self: RotaryEmbedding, q: Tensor, k: Tensor, max_seqlen: int, **_: Rest) -> tuple[Tensor, Tensor]:
    self._update_cos_sin_cache(max_seqlen, device=q.device, dtype=q.dtype)
    cos, sin = self._cos_cached[: q.shape[1]], self._sin_cached[: q.shape[1]]
    return rotary_embedding_ref(q, cos, sin), rotary_embedding_ref(k, cos, sin)


for layer, kernel, reference in (
    (fla.layers.gla, "fused_recurrent_gla", gla),
    (fla.layers.multiscale_retention, "fused_recurrent_retention", retention),
    (fla.layers.hgrn, "fused_recurrent_hgrn", hgrn),
    (fla.layers.hgrn2, "fused_recurrent_gla", gla),
    (fla.layers.delta_net, "fused_recurrent_delta_rule", delta_rule),
    (fla.layers.gated_deltanet, "fused_recurrent_gated_delta_rule", gated_delta_rule),
    (fla.layers.kda, "fused_recurrent_kda", kda),
    (fla.layers.hgrn, "swiglu", lambda gate, up: silu(gate) * up),
    (fla.layers.hgrn2, "swish", silu),
    (fla.layers.hgrn2, "rms_norm_linear", norm_then_linear),
    (fla.modules.mlp, "swiglu_linear", swiglu_linear),
    (RMSNorm, "forward", norm),
    (FusedRMSNormGated, "forward", gated_norm),
    (ShortConvolution, "forward", convolution),
    (RotaryEmbedding, "forward", rotated),
):
    assert hasattr(layer, kernel)
    setattr(layer, kernel, reference)
ACT2FN["swish"] = silu


def load(folder: Path) -> Forward:
    model = read_model(folder, attn_mode="fused_recurrent")
    # Gated DeltaNet joins its convolutions in one where it reads no state, by a kernel of their own.
    for layer in model.model.layers:
        if hasattr(layer.attn, "_use_fused_qkv_conv"):
            layer.attn._use_fused_qkv_conv = lambda **_: False
    return lambda ids: model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


if __name__ == "__main__":
    serve(load)
