"""Operators on rows: elementwise functions, dot products and norms.

All take and compute fp32; norms can round their result to the dtype of the projection that follows. On the CPU every
row is computed by itself in a fixed order, so it has the same bits in any batch (`kernels/cpu/simd.h` says how).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.dispatch import use_native


def _float32(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise TypeError(f"expected float32, got {x.dtype}")
    return x.contiguous()


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), elementwise, fp32."""
    x = _float32(x)
    return torch.ops.ostinato.sigmoid(x) if use_native(x) else torch.sigmoid(x)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), elementwise, fp32 (Elfwing et al. 2017)."""
    x = _float32(x)
    return torch.ops.ostinato.silu(x) if use_native(x) else F.silu(x)


def tanh(x: Tensor) -> Tensor:
    """Elementwise, fp32."""
    x = _float32(x)
    return torch.ops.ostinato.tanh(x) if use_native(x) else torch.tanh(x)


def exp(x: Tensor) -> Tensor:
    """Elementwise, fp32."""
    x = _float32(x)
    return torch.ops.ostinato.exp(x) if use_native(x) else torch.exp(x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), elementwise, fp32; the identity above 20."""
    x = _float32(x)
    return torch.ops.ostinato.softplus(x) if use_native(x) else F.softplus(x)


def log_sigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)) = -softplus(-x), elementwise, fp32."""
    return softplus(x.neg()).neg_()


def row_dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum of x * y over the last dimension: [..., K], [..., K] -> [..., 1], fp32."""
    x, y = _float32(x), _float32(y)
    if x.shape != y.shape:
        raise ValueError(f"row_dot needs equal shapes, got {tuple(x.shape)} and {tuple(y.shape)}")
    if use_native(x):
        dots: Tensor = torch.ops.ostinato.row_dot(x, y)
        return dots.view(*x.shape[:-1], 1)
    return (x * y).sum(-1, keepdim=True)


def row_norm(x: Tensor) -> Tensor:
    """Euclidean norm over the last dimension: [..., K] -> [..., 1], fp32, with a correctly rounded root."""
    x = _float32(x)
    if use_native(x):
        norms: Tensor = torch.ops.ostinato.row_norm(x)
        return norms.view(*x.shape[:-1], 1)
    return row_dot(x, x).sqrt()


def rms_norm_ref(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Zhang and Sennrich 2019, equation 4, with eps inside the root."""
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (x * scale * weight).to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """RMSNorm over the last dimension.

    x: [..., D] fp32; weight: [D] fp32. Returns [..., D] in `dtype`. Source: Zhang and Sennrich 2019, equation 4.
    """
    x, weight = _float32(x), _float32(weight)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: rows of {x.shape[-1]} need as many weights, got {tuple(weight.shape)}")
    if use_native(x):
        y: Tensor = torch.ops.ostinato.rms_norm(x, weight, eps, dtype)
        return y
    return rms_norm_ref(x, weight, eps, dtype)


def layer_norm_ref(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Ba et al. 2016, equation 4, with the biased variance."""
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * scale * weight + bias).to(dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """LayerNorm over the last dimension; with weights per head it is the GroupNorm of RWKV.

    x: [..., D] with weight, bias [D], or [..., H, D] with weight, bias [H, D]; fp32. Returns x's shape in `dtype`.
    Source: Ba et al. 2016, equation 4; Wu and He 2018 for groups.
    """
    x, weight, bias = _float32(x), _float32(weight), _float32(bias)
    if weight.shape != x.shape[x.dim() - weight.dim() :] or bias.shape != weight.shape:
        raise ValueError(
            f"layer_norm: weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit rows of {tuple(x.shape)}"
        )
    if use_native(x):
        y: Tensor = torch.ops.ostinato.layer_norm(x, weight, bias, eps, dtype)
        return y
    return layer_norm_ref(x, weight, bias, eps, dtype)
