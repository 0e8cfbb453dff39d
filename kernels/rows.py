"""Operators on rows: elementwise functions, gates and norms.

All take and compute fp32; what feeds a projection can be rounded to its dtype at once. On the CPU every row is computed
by itself in a fixed order, so it has the same bits in any batch (`kernels/cpu/simd.h` says how).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import dispatch


def _like(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _rounded_like(x: Tensor, *rest: object) -> Tensor:
    (dtype,) = (value for value in rest if isinstance(value, torch.dtype))
    return torch.empty_like(x, dtype=dtype)


def swiglu_ref(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Shazeer 2020, SwiGLU without its projections."""
    gate, up = x.chunk(2, dim=-1)
    return (F.silu(gate) * up).to(dtype)


def geglu_ref(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Shazeer 2020, GEGLU without its projections, with the tanh form of GELU."""
    gate, up = x.chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") * up).to(dtype)


def sqrt_ref(x: Tensor) -> Tensor:
    """Square root, and 0 of what is below zero."""
    return x.clamp(min=0).sqrt()


def relu_square_ref(x: Tensor, dtype: torch.dtype) -> Tensor:
    """So et al. 2021 (Primer), section 4."""
    return x.relu().square().to(dtype)


def log_sigmoid_ref(x: Tensor, scale: float) -> Tensor:
    """log(1 / (1 + e^-x)) times a constant."""
    return F.logsigmoid(x) * scale


def rms_norm_ref(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, gate: Tensor | None = None, gate_first: bool = False
) -> Tensor:
    """Zhang and Sennrich 2019, equation 4, with eps inside the root."""
    if gate is not None and gate_first:
        x = x * F.silu(gate.view(x.shape))
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    return (y if gate is None or gate_first else y * F.silu(gate.view(x.shape))).to(dtype)


def layer_norm_ref(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Ba et al. 2016, equation 4, with the biased variance."""
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * scale * weight + bias).to(dtype)


def _gated_meta(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2), dtype=dtype)


for _schema, _reference, _meta in (
    ("sigmoid(Tensor x) -> Tensor", torch.sigmoid, _like),
    ("silu(Tensor x) -> Tensor", F.silu, _like),
    ("tanh(Tensor x) -> Tensor", torch.tanh, _like),
    ("exp(Tensor x) -> Tensor", torch.exp, _like),
    ("softplus(Tensor x) -> Tensor", F.softplus, _like),
    ("sqrt(Tensor x) -> Tensor", sqrt_ref, _like),
    ("log_sigmoid(Tensor x, float scale) -> Tensor", log_sigmoid_ref, _like),
    ("swiglu(Tensor x, ScalarType dtype) -> Tensor", swiglu_ref, _gated_meta),
    ("geglu(Tensor x, ScalarType dtype) -> Tensor", geglu_ref, _gated_meta),
    ("relu_square(Tensor x, ScalarType dtype) -> Tensor", relu_square_ref, _rounded_like),
    (
        "rms_norm(Tensor x, Tensor weight, float eps, ScalarType dtype, Tensor? gate, bool gate_first) -> Tensor",
        rms_norm_ref,
        _rounded_like,
    ),
    (
        "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> Tensor",
        layer_norm_ref,
        _rounded_like,
    ),
):
    dispatch.define(_schema, reference=_reference, meta=_meta)


def _float32(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise TypeError(f"expected float32, got {x.dtype}")
    return x.contiguous()


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), elementwise, fp32."""
    y: Tensor = dispatch.operators(x).sigmoid(_float32(x))
    return y


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), elementwise, fp32 (Elfwing et al. 2017)."""
    y: Tensor = dispatch.operators(x).silu(_float32(x))
    return y


def tanh(x: Tensor) -> Tensor:
    """Elementwise, fp32."""
    y: Tensor = dispatch.operators(x).tanh(_float32(x))
    return y


def exp(x: Tensor) -> Tensor:
    """Elementwise, fp32."""
    y: Tensor = dispatch.operators(x).exp(_float32(x))
    return y


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), elementwise, fp32; the identity above 20."""
    y: Tensor = dispatch.operators(x).softplus(_float32(x))
    return y


def sqrt(x: Tensor) -> Tensor:
    """Square root, and 0 of what is below zero, elementwise, fp32."""
    y: Tensor = dispatch.operators(x).sqrt(_float32(x))
    return y


def log_sigmoid(x: Tensor, scale: float = 1.0) -> Tensor:
    """scale * log(sigmoid(x)) = -scale * softplus(-x), elementwise, fp32."""
    y: Tensor = dispatch.operators(x).log_sigmoid(_float32(x), scale)
    return y


def swiglu(x: Tensor, dtype: torch.dtype) -> Tensor:
    """silu of the first half of every row times the second: [..., 2 D] fp32 -> [..., D] in `dtype` (Shazeer 2020)."""
    _check_halves("swiglu", x)
    y: Tensor = dispatch.operators(x).swiglu(_float32(x), dtype)
    return y


def geglu(x: Tensor, dtype: torch.dtype) -> Tensor:
    """GELU, in its tanh form, of the first half of every row times the second: as `swiglu` (Shazeer 2020).

    x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)): Hendrycks and Gimpel 2016, section 2, where sigmoid(2 u) is
    (1 + tanh u) / 2.
    """
    _check_halves("geglu", x)
    y: Tensor = dispatch.operators(x).geglu(_float32(x), dtype)
    return y


def relu_square(x: Tensor, dtype: torch.dtype) -> Tensor:
    """max(x, 0)^2, elementwise: fp32 -> `dtype` (So et al. 2021, Primer)."""
    y: Tensor = dispatch.operators(x).relu_square(_float32(x), dtype)
    return y


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype = torch.float32,
    *,
    gate: Tensor | None = None,
    gate_first: bool = False,
) -> Tensor:
    """RMSNorm over the last dimension, with an optional gate.

    x: [..., D] with weight [D], or [..., G, D] with weight [G, D]; gate: as many elements as x, whose silu multiplies
    the result, or x itself when `gate_first`; all fp32. Returns x's shape in `dtype`.

    Sources: Zhang and Sennrich 2019, equation 4; for the gate Yang et al. 2023 (GLA), section 4.4, and, first, Dao and
    Gu 2024 (Mamba-2), section 7.
    """
    x, weight = _float32(x), _float32(weight)
    _check_weight("rms_norm", x, weight)
    if gate is not None:
        if gate.numel() != x.numel():
            raise ValueError(f"rms_norm: a gate {tuple(gate.shape)} does not fit {tuple(x.shape)}")
        gate = _float32(gate)
    y: Tensor = dispatch.operators(x).rms_norm(x, weight, eps, dtype, gate, gate_first)
    return y


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """LayerNorm over the last dimension; with weights per head it is the GroupNorm of RWKV.

    x: [..., D] with weight, bias [D], or [..., H, D] with weight, bias [H, D]; fp32. Returns x's shape in `dtype`.
    Source: Ba et al. 2016, equation 4; Wu and He 2018 for groups.
    """
    x, weight, bias = _float32(x), _float32(weight), _float32(bias)
    _check_weight("layer_norm", x, weight)
    if bias.shape != weight.shape:
        raise ValueError(f"layer_norm: bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}")
    y: Tensor = dispatch.operators(x).layer_norm(x, weight, bias, eps, dtype)
    return y


def _check_halves(name: str, x: Tensor) -> None:
    if x.shape[-1] % 2:
        raise ValueError(f"{name} needs rows of two halves, got {x.shape[-1]} elements")


def _check_weight(name: str, x: Tensor, weight: Tensor) -> None:
    if weight.dim() == 0 or weight.shape != x.shape[x.dim() - weight.dim() :]:
        raise ValueError(f"{name}: weight {tuple(weight.shape)} does not fit rows of {tuple(x.shape)}")
