"""Causal depthwise convolution over packed sequences, continued from slot to slot."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.dispatch import use_native
from ostinato.kernels.packed import check_packed


def causal_conv_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor,
    slots: Tensor,
    starts: Tensor,
    *,
    activate: bool,
) -> Tensor:
    """y[t] = bias + sum_j weight[j] x[t - W + 1 + j], sequence by sequence, with the tail before the first token."""
    outputs = [x.new_zeros((0, x.shape[1]), dtype=torch.float32)]
    width, bounds = weight.shape[0], starts.tolist()
    for slot, start, stop in zip(slots.tolist(), bounds[:-1], bounds[1:], strict=True):
        before = tail[slot] if slot >= 0 else x.new_zeros(tail.shape[1:])
        inputs = torch.cat([before, x[start:stop]])
        windows = (
            inputs.float().unfold(0, width, 1) if stop > start else inputs.new_zeros((0, x.shape[1], width)).float()
        )
        outputs.append((windows * weight.T).sum(-1) + (0.0 if bias is None else bias))
        if slot >= 0:
            tail[slot] = inputs[inputs.shape[0] - width + 1 :]
    y = torch.cat(outputs)
    return F.silu(y) if activate else y


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor,
    slots: Tensor,
    starts: Tensor,
    *,
    activate: bool = True,
) -> Tensor:
    """Depthwise convolution over time, then SiLU when `activate`.

    x: [T, C] fp32, bf16 or fp16; weight: [W, C] fp32, oldest tap first; bias: [C] fp32 or None; tail:
    [slots, W-1, C] in x's dtype, the last W-1 inputs, updated in place; slots, starts: see `ostinato.kernels.packed`.
    Returns [T, C] fp32.

    Source: Gu and Dao 2023 (Mamba), section 3.4.
    """
    check_packed(x.shape[0], slots, starts)
    if tail.shape[1:] != (weight.shape[0] - 1, x.shape[1]) or weight.shape[1] != x.shape[1] or tail.dtype != x.dtype:
        raise ValueError(
            f"causal_conv: x {tuple(x.shape)} {x.dtype}, weight {tuple(weight.shape)} and "
            f"tail {tuple(tail.shape)} {tail.dtype} do not fit"
        )
    if bias is not None and bias.shape != x.shape[1:]:
        raise ValueError(f"causal_conv: {x.shape[1]} channels need as many biases, got {tuple(bias.shape)}")
    if not tail.is_contiguous():
        raise ValueError("causal_conv: the tail must be contiguous, since it is updated in place")
    weight = weight.contiguous()
    if use_native(x):
        y: Tensor = torch.ops.ostinato.causal_conv(x.contiguous(), weight, bias, tail, slots, starts, activate)
        return y
    return causal_conv_ref(x, weight, bias, tail, slots, starts, activate=activate)
