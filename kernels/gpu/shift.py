"""Token shift: mixes of every token with the one before it, over packed sequences.

As in `ostinato.kernels.gpu.conv`, only the program of a sequence's first block of tokens reads the slot, and it alone
writes it, afterwards.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.launch import Launch


@triton.jit(do_not_specialize=["tokens"])
def token_shift_kernel(
    x: tl.tensor,
    mix: tl.tensor,
    last: tl.tensor,
    src: tl.tensor,
    dst: tl.tensor,
    starts: tl.tensor,
    y: tl.tensor,
    tokens: tl.tensor,
    CHANNELS: tl.constexpr,
    MIXES: tl.constexpr,
    X_TOKEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Grid (channel blocks, sequences, token blocks). X_TOKEN is a stride; the others are contiguous."""
    sequence, first = tl.program_id(1), tl.program_id(2) * BLOCK_T
    start = tl.load(starts + sequence).to(tl.int64)
    length = (tl.load(starts + sequence + 1) - start).to(tl.int32)
    if first > 0 and first >= length:
        return
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    inside = column < CHANNELS
    source = tl.load(src + sequence).to(tl.int64)
    x += start * X_TOKEN + column
    token = first + tl.arange(0, BLOCK_T)[:, None]
    present = inside & (token < length)
    row = token.to(tl.int64)
    value = tl.load(x + row * X_TOKEN, mask=present, other=0.0).to(tl.float32)
    before = tl.load(x + (row - 1) * X_TOKEN, mask=present & (token > 0), other=0.0)
    known = tl.where((source >= 0) & (first == 0), CHANNELS, 0)
    remembered = tl.load(last + source * CHANNELS + column, mask=column < known, other=0.0)
    difference = tl.where(token > 0, before, remembered).to(tl.float32) - value
    y += (start + row) * CHANNELS + column
    for i in tl.static_range(MIXES):
        share = tl.load(mix + i * CHANNELS + column, mask=inside, other=0.0)
        mixed = tl.fma(difference, share, value)
        tl.store(y + i * tokens.to(tl.int64) * CHANNELS, mixed.to(y.dtype.element_ty), mask=present)
    if first == 0:
        destination = tl.load(dst + sequence).to(tl.int64)
        kept = column < tl.where(destination >= 0, CHANNELS, 0)
        newest = tl.load(
            x + (length - 1).to(tl.int64) * X_TOKEN, mask=column < tl.where(length > 0, CHANNELS, 0), other=0.0
        )
        # The slots may be the same one, and another thread may not have read it yet.
        tl.debug_barrier()
        tl.store(last + destination * CHANNELS + column, tl.where(length > 0, newest, remembered), mask=kept)


def token_shift(x: Tensor, mix: Tensor, last: Tensor, src: Tensor, dst: Tensor, starts: Tensor, longest: int) -> Tensor:
    """`ostinato::token_shift`: see `ostinato.kernels.shift`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    (tokens, channels), mixes = x.shape, mix.shape[0]
    y = torch.empty((mixes, tokens, channels), dtype=x.dtype, device=x.device)
    if src.numel() and channels:
        launch = _launch(channels, mixes, x.stride(0), longest)
        grid = (
            triton.cdiv(channels, launch.constexprs["BLOCK_C"]),
            src.numel(),
            max(1, triton.cdiv(longest, launch.constexprs["BLOCK_T"])),
        )
        token_shift_kernel[grid](x, mix, last, src, dst, starts, y, tokens, **launch.arguments())
    return y


def _launch(channels: int, mixes: int, x_stride: int, longest: int) -> Launch:
    """A step, where every sequence has one token at most, has blocks of its own; the arithmetic is the same."""
    block_t, block_c = (1, 256) if longest <= 1 else (8, 256)
    sizes = {"CHANNELS": channels, "MIXES": mixes, "X_TOKEN": x_stride}
    return Launch({**sizes, "BLOCK_T": block_t, "BLOCK_C": block_c}, num_warps=4)


def compile_cases() -> list[CompileCase]:
    """Time mixing (6) and channel mixing (1) of RWKV-7 0.4B and 2.9B."""
    return [
        _case("token_shift step 6x1024 bf16", 1024, 6, 1, "bf16"),
        _case("token_shift scan 6x1024 bf16", 1024, 6, 512, "bf16"),
        _case("token_shift step 1x2560 fp16", 2560, 1, 1, "fp16"),
        _case("token_shift scan 6x2560 fp32", 2560, 6, 512, "fp32"),
    ]


def _case(name: str, channels: int, mixes: int, longest: int, dtype: str) -> CompileCase:
    rows = dict.fromkeys(("x", "last", "y"), f"*{dtype}")
    slots = dict.fromkeys(("src", "dst", "starts"), "*i32")
    signature = {**rows, "mix": "*fp32", **slots, "tokens": "i32"}
    return CompileCase.of(name, token_shift_kernel, signature, _launch(channels, mixes, channels, longest))
