"""The sLSTM cell: one program per sequence and head.

The head's recurrent matrix stays in registers where it fits there; a larger one is read in slices for every token, from
the second-level cache, which holds the matrices of all heads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.elementary import sigmoid, softplus, tanh
from ostinato.kernels.gpu.launch import Launch


@triton.jit
def recurrent_tile(recurrent: tl.tensor, row: tl.tensor, column: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """Rows and columns of one gate's matrix [WIDTH, WIDTH], zeros past its edge."""
    inside = (row < WIDTH)[:, None] & (column < WIDTH)[None, :]
    return tl.load(recurrent + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)


@triton.jit
def slstm_kernel(
    x: tl.tensor,
    recurrent: tl.tensor,
    bias: tl.tensor,
    state: tl.tensor,
    y: tl.tensor,
    src: tl.tensor,
    dst: tl.tensor,
    starts: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    X_TOKEN: tl.constexpr,
    BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
) -> None:
    """Grid (heads, sequences). SLICE: rows of the recurrent matrices held at a time; BLOCK if all are, for good.

    X_TOKEN is a stride; everything else is contiguous.
    """
    head, sequence = tl.program_id(0), tl.program_id(1)
    channel, part = tl.arange(0, BLOCK), tl.arange(0, SLICE)
    row: tl.constexpr = HEADS * WIDTH
    gate: tl.constexpr = WIDTH * WIDTH
    inside, column = channel < WIDTH, head * WIDTH + channel
    source, target = tl.load(src + sequence).to(tl.int64), tl.load(dst + sequence).to(tl.int64)
    first, last = tl.load(starts + sequence).to(tl.int64), tl.load(starts + sequence + 1).to(tl.int64)
    recurrent += head * 4 * gate
    bias += column
    bias_i = tl.load(bias, mask=inside, other=0.0)
    bias_f = tl.load(bias + row, mask=inside, other=0.0)
    bias_z = tl.load(bias + 2 * row, mask=inside, other=0.0)
    bias_o = tl.load(bias + 3 * row, mask=inside, other=0.0)
    known, kept = channel < tl.where(source >= 0, WIDTH, 0), channel < tl.where(target >= 0, WIDTH, 0)
    before, after = state + source * 4 * row + column, state + target * 4 * row + column
    h = tl.load(before, mask=known, other=0.0)
    c = tl.load(before + row, mask=known, other=0.0)
    n = tl.load(before + 2 * row, mask=known, other=0.0)
    m = tl.load(before + 3 * row, mask=known, other=0.0)
    if SLICE == BLOCK:
        matrix_i = recurrent_tile(recurrent, part, channel, WIDTH)
        matrix_f = recurrent_tile(recurrent + gate, part, channel, WIDTH)
        matrix_z = recurrent_tile(recurrent + 2 * gate, part, channel, WIDTH)
        matrix_o = recurrent_tile(recurrent + 3 * gate, part, channel, WIDTH)
    x += first * X_TOKEN + column
    y += first * row + column
    for _ in tl.range(0, last - first):
        i = tl.load(x, mask=inside, other=0.0).to(tl.float32) + bias_i
        f = tl.load(x + row, mask=inside, other=0.0).to(tl.float32) + bias_f
        z = tl.load(x + 2 * row, mask=inside, other=0.0).to(tl.float32) + bias_z
        o = tl.load(x + 3 * row, mask=inside, other=0.0).to(tl.float32) + bias_o
        mixed_i = tl.zeros((SLICE, BLOCK), tl.float32)
        mixed_f, mixed_z, mixed_o = mixed_i, mixed_i, mixed_i
        slices = tl.reshape(h, (BLOCK // SLICE, SLICE))
        for s in tl.range(0, tl.cdiv(WIDTH, SLICE)):
            # A block in registers cannot be indexed: the slice is singled out by a sum of itself and zeros.
            chosen = (tl.arange(0, BLOCK // SLICE) == s)[:, None]
            weight = tl.sum(tl.where(chosen, slices, 0.0), axis=0)[:, None]
            if SLICE != BLOCK:
                matrix_i = recurrent_tile(recurrent, s * SLICE + part, channel, WIDTH)
                matrix_f = recurrent_tile(recurrent + gate, s * SLICE + part, channel, WIDTH)
                matrix_z = recurrent_tile(recurrent + 2 * gate, s * SLICE + part, channel, WIDTH)
                matrix_o = recurrent_tile(recurrent + 3 * gate, s * SLICE + part, channel, WIDTH)
            mixed_i += weight * matrix_i
            mixed_f += weight * matrix_f
            mixed_z += weight * matrix_z
            mixed_o += weight * matrix_o
        i += tl.sum(mixed_i, axis=0)
        f += tl.sum(mixed_f, axis=0)
        z += tl.sum(mixed_z, axis=0)
        o += tl.sum(mixed_o, axis=0)
        carried = tl.where(n > 0, m, float("-inf")) - softplus(-f)
        m = tl.maximum(carried, i)
        past, now = tl.exp(carried - m), tl.exp(i - m)
        c, n = past * c + now * tanh(z), past * n + now
        h = sigmoid(o) * c / n
        tl.store(y, h, mask=inside)
        x += X_TOKEN
        y += row
    # The slots may be the same one, and another thread may not have read it yet.
    tl.debug_barrier()
    tl.store(after, h, mask=kept)
    tl.store(after + row, c, mask=kept)
    tl.store(after + 2 * row, n, mask=kept)
    tl.store(after + 3 * row, m, mask=kept)


def slstm(
    x: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    state: Tensor,
    src: Tensor,
    dst: Tensor,
    starts: Tensor,
    longest: int,
) -> Tensor:
    """`ostinato::slstm`: see `ostinato.kernels.slstm`. Every program knows its own length: `longest` is not needed."""
    heads, width = state.shape[2:]
    y = torch.empty((x.shape[0], heads, width), dtype=torch.float32, device=x.device)
    if src.numel() and heads and width:
        launch = _launch(heads, width, x.stride(0))
        slstm_kernel[(heads, src.numel())](x, recurrent, bias, state, y, src, dst, starts, **launch.arguments())
    return y


def _launch(heads: int, width: int, x_stride: int) -> Launch:
    """Four matrices of up to 64 x 64 stay in the registers of 8 warps; of larger ones, 4096 elements at a time."""
    block = max(16, triton.next_power_of_2(width))
    part = block if block <= 64 else max(1, 4096 // block)
    sizes = {"HEADS": heads, "WIDTH": width, "X_TOKEN": x_stride, "BLOCK": block, "SLICE": part}
    return Launch(sizes, num_warps=min(8, max(1, block * part // 512)))


def compile_cases() -> list[CompileCase]:
    """At head widths of xLSTM models: matrices that are kept (64), and read in slices."""
    return [
        _case(f"slstm 4x{width} {dtype}", width, dtype) for width, dtype in ((64, "fp32"), (192, "bf16"), (512, "bf16"))
    ]


def _case(name: str, width: int, dtype: str) -> CompileCase:
    operands = {"x": f"*{dtype}"} | dict.fromkeys(("recurrent", "bias", "state", "y"), "*fp32")
    signature = operands | dict.fromkeys(("src", "dst", "starts"), "*i32")
    return CompileCase.of(name, slstm_kernel, signature, _launch(4, width, 4 * 4 * width))
