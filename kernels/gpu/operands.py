"""Operands of the recurrence as kernels see them: rows addressed by token and head, tiles, dots.

An operand is a tensor [T, G, ...] that may be a slice of a joined projection, may repeat one token for all (a token
stride of 0), and may have fewer heads G than the state. Tiles outside an operand's bounds are zeros.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.mode import model_dtype

NORMALIZE_EPS = tl.constexpr(1e-6)
# Triton's interpreter drops bits where it casts fp32 to bf16, multiplies bf16 tiles as if their bit patterns were
# integers, and multiplies in fp32 where tf32 is asked for. Here it does what a GPU does.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Rows(NamedTuple):
    """A pointer, the strides of tokens and heads in elements, and how many heads share a group."""

    pointer: Tensor
    token: int
    head: int
    share: int


def rows(x: Tensor | None, heads: int) -> Rows | None:
    """How a kernel addresses `x` [T, G, ...], contiguous in what follows G; None stays None."""
    if x is None:
        return None
    # One token's stride is arbitrary in torch and never used; a fixed one keeps kernels from being compiled again.
    token = x.stride(0) if x.shape[0] > 1 else 0
    return Rows(x, token, x.stride(1), heads // x.shape[1])


def dot_dtype(*operands: Tensor) -> torch.dtype:
    """In which dtype tiles of these are multiplied: bf16 if that is all they hold or the model's dtype, otherwise fp32.

    Never fp16, in which a state could overflow.
    """
    narrow = all(x.dtype == torch.bfloat16 for x in operands) or model_dtype() == torch.bfloat16
    return torch.bfloat16 if narrow else torch.float32


def dot_precision(*operands: Tensor) -> str:
    """How fp32 tiles of these are multiplied: tf32 holds whatever fp16 and bf16 hold, fp32 needs all bits."""
    return "ieee" if any(x.dtype == torch.float32 for x in operands) else "tf32"


@triton.jit
def load_row(x: Rows, token: tl.tensor, head: tl.tensor, columns: tl.tensor, known: tl.tensor) -> tl.tensor:
    """x[token, head's group, columns] in fp32, 0 where not `known`. token: int64."""
    start = x.pointer + token * tl.cast(x.token, tl.int64) + (head // x.share) * x.head
    return tl.load(start + columns, mask=known, other=0.0).to(tl.float32)


@triton.jit
def load_tile(x: Rows, tokens: tl.tensor, head: tl.tensor, columns: tl.tensor, known: tl.tensor) -> tl.tensor:
    """x[tokens, head's group, columns] in fp32, [tokens, columns], 0 where not `known`."""
    starts = x.pointer + tokens.to(tl.int64)[:, None] * x.token + (head // x.share) * x.head
    return tl.load(starts + columns[None, :], mask=known, other=0.0).to(tl.float32)


@triton.jit
def unit(x: tl.tensor) -> tl.tensor:
    """Rows of [.., K] scaled to length one."""
    return x * tl.rsqrt(tl.sum(x * x, -1, keep_dims=True) + NORMALIZE_EPS)


@triton.jit
def load_keys(
    x: Rows, tokens: tl.tensor, head: tl.tensor, keys: tl.tensor, known: tl.tensor, NORMALIZE: tl.constexpr
) -> tl.tensor:
    """`load_tile` for q or k, with rows of unit length if so asked."""
    tile = load_tile(x, tokens, head, keys, known)
    if NORMALIZE:
        tile = unit(tile)
    return tile


@triton.jit
def softplus(x: tl.tensor) -> tl.tensor:
    """log(1 + exp(x)) to full precision also where it is tiny, which the hardware's logarithm near 1 is not.

    log(1 + u) = 2 artanh(z) with z = u / (2 + u), which is at most 1/3 since u = exp(-|x|) is at most 1.
    """
    u = tl.exp(-tl.abs(x))
    z = u / (2.0 + u)
    square = z * z
    series = 1.0 / 17
    for i in tl.static_range(8):
        series = series * square + 1.0 / (15 - 2 * i)
    return tl.maximum(x, 0.0) + 2.0 * z * series


@triton.jit
def silu(x: tl.tensor) -> tl.tensor:
    return x / (1.0 + tl.exp(-x))


@triton.jit
def cast(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """A tile in another precision, rounded to nearest."""
    if _INTERPRETED and x.dtype == tl.float32 and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot(x: tl.tensor, y: tl.tensor, dtype: tl.constexpr, precision: tl.constexpr) -> tl.tensor:
    """x y for tiles in fp32, rounded to dtype, accumulated in fp32."""
    x, y = cast(x, dtype), cast(y, dtype)
    if _INTERPRETED:
        x, y = x.to(tl.float32), y.to(tl.float32)
        if dtype == tl.float32 and precision == "tf32":  # 10 bits of mantissa, the rest dropped
            x = (x.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
            y = (y.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
    return tl.dot(x, y, input_precision=precision)


@triton.jit
def state_mask(
    slot: tl.tensor, values: tl.tensor, keys: tl.tensor, VALUES: tl.constexpr, KEYS: tl.constexpr
) -> tl.tensor:
    """Which of [values, keys] are cells of a state: none where the slot is -1."""
    return (values < tl.where(slot >= 0, VALUES, 0))[:, None] & (keys < KEYS)[None, :]
