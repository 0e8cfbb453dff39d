"""Causal depthwise convolution over packed sequences.

A program computes a block of a sequence's tokens in a block of channels. Tokens before the block come from x, which
nothing writes; only the program of a sequence's first block reads the tail, and it alone writes it, afterwards.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.elementary import silu
from ostinato.kernels.gpu.launch import Launch


@triton.jit
def causal_conv_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    tail: tl.tensor,
    src: tl.tensor,
    dst: tl.tensor,
    starts: tl.tensor,
    y: tl.tensor,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    X_TOKEN: tl.constexpr,
    ACTIVATE: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Grid (channel blocks, sequences, token blocks). X_TOKEN is a stride, the others are contiguous; bias or None."""
    sequence, first = tl.program_id(1), tl.program_id(2) * BLOCK_T
    start = tl.load(starts + sequence).to(tl.int64)
    length = (tl.load(starts + sequence + 1) - start).to(tl.int32)
    if first > 0 and first >= length:
        return
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    inside = column < CHANNELS
    source = tl.load(src + sequence).to(tl.int64)
    oldest = tl.where(source >= 0, 1 - WIDTH, 0)
    x += start * X_TOKEN + column
    old_tail = tail + source * (WIDTH - 1) * CHANNELS + column
    token = first + tl.arange(0, BLOCK_T)[:, None]
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    if bias is not None:
        total += tl.load(bias + column, mask=inside, other=0.0)
    for tap in tl.static_range(WIDTH):
        at = token + (tap - WIDTH + 1)
        recent = tl.load(x + at.to(tl.int64) * X_TOKEN, mask=inside & (at >= 0) & (token < length), other=0.0)
        recent = recent.to(tail.dtype.element_ty)
        remembered = tl.load(old_tail + (at + WIDTH - 1) * CHANNELS, mask=inside & (at >= oldest) & (at < 0), other=0.0)
        scale = tl.load(weight + tap * CHANNELS + column, mask=inside, other=0.0)
        total = tl.fma(tl.where(at < 0, remembered, recent).to(tl.float32), scale, total)
    if ACTIVATE:
        total = silu(total)
    tl.store(y + (start + token) * CHANNELS + column, total, mask=inside & (token < length))
    if first == 0:
        destination = tl.load(dst + sequence).to(tl.int64)
        row = tl.arange(0, TAIL_BLOCK)[:, None]
        end = row + (length - WIDTH + 1)
        kept = inside & (row < tl.where(destination >= 0, WIDTH - 1, 0))
        new = tl.load(x + end.to(tl.int64) * X_TOKEN, mask=kept & (end >= 0), other=0.0).to(tail.dtype.element_ty)
        old = tl.load(old_tail + (end + WIDTH - 1) * CHANNELS, mask=kept & (end >= oldest) & (end < 0), other=0.0)
        # The slots may be the same one, and another thread may not have read it yet.
        tl.debug_barrier()
        tl.store(tail + (destination * (WIDTH - 1) + row) * CHANNELS + column, tl.where(end < 0, old, new), mask=kept)


def causal_conv(
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
    """`ostinato::causal_conv`: see `ostinato.kernels.conv`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    width, channels = weight.shape
    if src.numel() and channels:
        launch = _launch(channels, width, x.stride(0), longest, activate)
        grid = (
            triton.cdiv(channels, launch.constexprs["BLOCK_C"]),
            src.numel(),
            max(1, triton.cdiv(longest, launch.constexprs["BLOCK_T"])),
        )
        causal_conv_kernel[grid](x, weight, bias, tail, src, dst, starts, y, **launch.arguments())
    return y


def _launch(channels: int, width: int, x_stride: int, longest: int, activate: bool) -> Launch:
    """A step, where every sequence has one token at most, has blocks of its own; the arithmetic is the same."""
    block_t, block_c = (1, 256) if longest <= 1 else (16, 128)
    constexprs = {
        "CHANNELS": channels,
        "WIDTH": width,
        "X_TOKEN": x_stride,
        "ACTIVATE": activate,
        "TAIL_BLOCK": triton.next_power_of_2(max(1, width - 1)),
        "BLOCK_T": block_t,
        "BLOCK_C": block_c,
    }
    return Launch(constexprs, num_warps=4)


def compile_cases() -> list[CompileCase]:
    """mamba-130m and mamba2-2.7b, whose x is part of a wider projection; RecurrentGemma-2b, which does not activate."""
    return [
        _case("causal_conv step 1536 bf16", 1536, 3072, 1, "bf16"),
        _case("causal_conv scan 1536 bf16", 1536, 3072, 512, "bf16"),
        _case("causal_conv step 5376 bf16", 5376, 10576, 1, "bf16"),
        _case("causal_conv scan 5376 bf16", 5376, 10576, 512, "bf16"),
        _case("causal_conv scan 5376 fp32", 5376, 10576, 512, "fp32"),
        _case("causal_conv scan 2560 linear fp16", 2560, 2560, 512, "fp16", activate=False),
    ]


def _case(name: str, channels: int, stride: int, longest: int, dtype: str, *, activate: bool = True) -> CompileCase:
    parameters = {"weight": "*fp32", "bias": "*fp32", "y": "*fp32"}
    slots = dict.fromkeys(("src", "dst", "starts"), "*i32")
    launch = _launch(channels, 4, stride, longest, activate)
    signature = {"x": "*fp32", "tail": f"*{dtype}", **parameters, **slots}
    return CompileCase.of(name, causal_conv_kernel, signature, launch)
