"""What RWKV-7 does to every head of a token around the recurrence: one program per token and head."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.elementary import sigmoid
from ostinato.kernels.gpu.launch import Launch
from ostinato.kernels.rwkv7 import DECAY_SCALE, Inputs


@triton.jit
def rwkv7_inputs_kernel(
    key: tl.tensor,
    value: tl.tensor,
    decay: tl.tensor,
    rate: tl.tensor,
    first_value: tl.tensor,
    value_gate: tl.tensor,
    key_norm: tl.tensor,
    key_gate: tl.tensor,
    log_decay: tl.tensor,
    k: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    v: tl.tensor,
    DECAY: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (tokens * HEADS,). All contiguous; first_value and value_gate may be None."""
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    channel = tl.program_id(0) % HEADS * WIDTH + column
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    keys, rates = tl.load(key + at, mask=inside, other=0.0), sigmoid(tl.load(rate + at, mask=inside, other=0.0))
    values = tl.load(value + at, mask=inside, other=0.0)
    if first_value is not None:
        share = sigmoid(tl.load(value_gate + at, mask=inside, other=0.0))
        values += (tl.load(first_value + at, mask=inside, other=0.0) - values) * share
    removal = keys * tl.load(key_norm + channel, mask=inside, other=0.0)
    removal /= tl.maximum(tl.sqrt(tl.sum(removal * removal, axis=0)), 1e-12)
    gate = tl.load(key_gate + channel, mask=inside, other=0.0)
    tl.store(log_decay + at, sigmoid(tl.load(decay + at, mask=inside, other=0.0)) * -DECAY, mask=inside)
    tl.store(k + at, keys * (1.0 + (rates - 1.0) * gate), mask=inside)
    tl.store(a + at, -removal, mask=inside)
    tl.store(b + at, removal * rates, mask=inside)
    tl.store(v + at, values, mask=inside)


@triton.jit
def rwkv7_output_kernel(
    y: tl.tensor,
    r: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    gate: tl.tensor,
    bonus: tl.tensor,
    norm_weight: tl.tensor,
    norm_bias: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (tokens * HEADS,). All contiguous."""
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    channel = tl.program_id(0) % HEADS * WIDTH + column
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    read = tl.load(y + at, mask=inside, other=0.0)
    centred = tl.where(inside, read - tl.sum(read, axis=0) / WIDTH, 0.0)
    normal = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    x = normal * tl.load(norm_weight + channel, mask=inside, other=0.0)
    x += tl.load(norm_bias + channel, mask=inside, other=0.0)
    matches = tl.load(r + at, mask=inside, other=0.0) * tl.load(bonus + channel, mask=inside, other=0.0)
    matches *= tl.load(k + at, mask=inside, other=0.0)
    x += tl.sum(matches, axis=0) * tl.load(v + at, mask=inside, other=0.0)
    x *= tl.load(gate + at, mask=inside, other=0.0)
    tl.store(out + at, x.to(out.dtype.element_ty), mask=inside)


def rwkv7_inputs(
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    rate: Tensor,
    first_value: Tensor | None,
    value_gate: Tensor | None,
    key_norm: Tensor,
    key_gate: Tensor,
    heads: int,
) -> Inputs:
    """`ostinato::rwkv7_inputs`: see `ostinato.kernels.rwkv7`."""
    log_decay, k, a, b, v = (torch.empty(key.shape, dtype=key.dtype, device=key.device) for _ in range(5))
    if key.numel():
        launch = _launch(heads, key.shape[1] // heads, DECAY=DECAY_SCALE)
        operands = (key, value, decay, rate, first_value, value_gate, key_norm, key_gate)
        rwkv7_inputs_kernel[(key.shape[0] * heads,)](*operands, log_decay, k, a, b, v, **launch.arguments())
    return log_decay, k, a, b, v


def rwkv7_output(
    y: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    bonus: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """`ostinato::rwkv7_output`: see `ostinato.kernels.rwkv7`."""
    out, (heads, width) = torch.empty(gate.shape, dtype=dtype, device=gate.device), bonus.shape
    if out.numel():
        operands = (y, r, k, v, gate, bonus, norm_weight, norm_bias)
        rwkv7_output_kernel[(gate.shape[0] * heads,)](*operands, out, eps, **_launch(heads, width).arguments())
    return out


def _launch(heads: int, width: int, **constexprs: float) -> Launch:
    sizes = {"HEADS": heads, "WIDTH": width, "BLOCK": triton.next_power_of_2(width)}
    return Launch({**sizes, **constexprs}, num_warps=1)


def compile_cases() -> list[CompileCase]:
    """RWKV-7 2.9B: a layer after the first, the first, and what feeds the output projection."""
    inputs = dict.fromkeys("key value decay rate key_norm key_gate log_decay k a b v".split(), "*fp32")
    mixed = {**inputs, "first_value": "*fp32", "value_gate": "*fp32"}
    output = dict.fromkeys("y r k v gate bonus norm_weight norm_bias".split(), "*fp32")
    before, after = _launch(40, 64, DECAY=DECAY_SCALE), _launch(40, 64)
    absent = ("first_value", "value_gate")
    return [
        CompileCase.of("rwkv7_inputs 40x64", rwkv7_inputs_kernel, mixed, before),
        CompileCase.of("rwkv7_inputs first layer 40x64", rwkv7_inputs_kernel, inputs, before, absent),
        CompileCase.of(
            "rwkv7_output 40x64 bf16", rwkv7_output_kernel, {**output, "out": "*bf16", "eps": "fp32"}, after
        ),
    ]
