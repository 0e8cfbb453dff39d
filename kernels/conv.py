"""Causal depthwise convolution over packed sequences, continued from slot to slot."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import dispatch
from ostinato.kernels.packed import Packed, read_slots, write_slots


def causal_conv_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor,
    src: Tensor,
    dst: Tensor,
    starts: Tensor,
    longest: int,
    activate: bool,
) -> Tensor:
    """y[t] = bias + sum_j weight[j] x[t - W + 1 + j], sequence by sequence, with the tail before the first token."""
    del longest
    width, bounds = weight.shape[0], starts.tolist()
    before, outputs, tails = read_slots(tail, src), [x.new_empty((0, x.shape[1]), dtype=torch.float32)], []
    for past, start, stop in zip(before, bounds[:-1], bounds[1:], strict=True):
        inputs = torch.cat([past, x[start:stop].to(tail.dtype)])
        taps = [weight[j] * inputs[j : j + stop - start].float() for j in range(width)]
        outputs.append(torch.stack(taps).sum(0) + (0.0 if bias is None else bias))
        tails.append(inputs[stop - start :])
    if tails:
        write_slots(tail, dst, torch.stack(tails))
    y = torch.cat(outputs)
    return F.silu(y) if activate else y


def _causal_conv_meta(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


dispatch.define(
    "causal_conv(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) tail, Tensor src, Tensor dst, Tensor starts, "
    "int longest, bool activate) -> Tensor",
    reference=causal_conv_ref,
    meta=_causal_conv_meta,
)


_TAILS = (torch.float32, torch.bfloat16, torch.float16)


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, batch: Packed, *, activate: bool = True
) -> Tensor:
    """Depthwise convolution over time, then SiLU when `activate`.

    x: [T, C] of any float dtype, rounded to the tail's, contiguous in its last dimension; weight: [W, C] fp32, oldest
    tap first; bias: [C] fp32 or None; tail: [slots, W-1, C] fp32, bf16 or fp16, the last W-1 inputs, updated in place.
    Returns [T, C] fp32. Raises TypeError, ValueError: operands that do not fit.

    Source: Gu and Dao 2023 (Mamba), section 3.4.
    """
    batch.check(x.shape[0])
    if tail.shape[1:] != (weight.shape[0] - 1, x.shape[1]) or weight.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"causal_conv: x {tuple(x.shape)}, weight {tuple(weight.shape)} and tail {tuple(tail.shape)} do not fit"
        )
    if bias is not None and bias.shape != x.shape[1:]:
        raise ValueError(f"causal_conv: {x.shape[1]} channels need as many biases, got {tuple(bias.shape)}")
    parameters = (weight,) if bias is None else (weight, bias)
    if not all(tensor.is_contiguous() for tensor in (tail, *parameters)):
        raise ValueError("causal_conv: weight, bias and the tail, which is updated in place, must be contiguous")
    dtypes = (tail.dtype, *(parameter.dtype for parameter in parameters))
    if tail.dtype not in _TAILS or any(parameter.dtype != torch.float32 for parameter in parameters):
        raise TypeError(f"causal_conv: a tail of float32, bfloat16 or float16 needs fp32 parameters, got {dtypes}")
    y: Tensor = dispatch.operators(x).causal_conv(
        x, weight, bias, tail, batch.src, batch.dst, batch.starts, batch.longest, activate
    )
    return y
