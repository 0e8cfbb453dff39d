"""Projections on a GPU, and a matrix product for them whose every row has the same bits in any batch.

A library picks its algorithm, and with it the order of a sum, by the number of rows. Here the tiles depend on the
weight alone: a row's sum over K runs in blocks of one size from first to last, within one program, however many rows
there are and whichever they are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.gpu import pointwise
from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.launch import Launch
from ostinato.kernels.gpu.mode import batch_invariant
from ostinato.kernels.linear import Activation


@triton.jit(do_not_specialize=["rows"])
def fixed_tile_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    rows: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    X_ROW: tl.constexpr,
    WEIGHT_ROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Grid (row blocks, column blocks): programs that share a block of the weight run side by side.

    X_ROW and WEIGHT_ROW are strides; y and residual are contiguous; bias and residual may be None.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    x_at = x + row.to(tl.int64)[:, None] * X_ROW + inner[None, :]
    weight_at = weight + column.to(tl.int64)[:, None] * WEIGHT_ROW + inner[None, :]
    row_exists, column_exists = (row < rows)[:, None], (column < N)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(0, K, BLOCK_K):
        left = (inner < K - done)[None, :]
        x_tile = tl.load(x_at + done, mask=row_exists & left, other=0.0)
        weight_tile = tl.load(weight_at + done, mask=column_exists & left, other=0.0)
        total = tl.dot(x_tile, weight_tile.T, total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + column, mask=column < N, other=0.0)[None, :]
    at, inside = row.to(tl.int64)[:, None] * N + column[None, :], row_exists & (column < N)[None, :]
    if residual is not None:
        total += tl.load(residual + at, mask=inside, other=0.0)
    tl.store(y + at, total, mask=inside)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, outputs: int) -> Tensor:
    """`ostinato::linear`: see `ostinato.kernels.linear`. With fixed tiles in the batch-invariant mode."""
    if batch_invariant():
        return fixed_tile_linear(x, weight[:outputs], bias, residual)
    y = F.linear(x.to(weight.dtype), weight[:outputs]).float()
    for term in (bias, residual):
        y = y if term is None else y.add_(term)
    return y


def activated_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int, activation: Activation, dtype: torch.dtype
) -> Tensor:
    """`ostinato::activated_linear`: see `ostinato.kernels.linear`. Two kernels."""
    return pointwise.ACTIVATIONS[activation](linear(x, weight, bias, None, outputs), dtype)


def fixed_tile_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x W^T + bias + residual, summed in fp32.

    x: [M, K], rounded to the weight's dtype; weight: [N, K]; bias: [N] fp32; residual: [M, N] fp32. Returns [M, N]
    fp32.
    """
    x, weight = (t if t.stride(-1) == 1 else t.contiguous() for t in (x.to(weight.dtype), weight))
    rows, (columns, inner) = x.shape[0], weight.shape
    y = torch.empty((rows, columns), dtype=torch.float32, device=x.device)
    if y.numel():
        launch = _launch(columns, inner, x.stride(0), weight.stride(0), weight.dtype)
        block_m, block_n = launch.constexprs["BLOCK_M"], launch.constexprs["BLOCK_N"]
        grid = (triton.cdiv(rows, block_m), triton.cdiv(columns, block_n))
        terms = (None if term is None else term.contiguous() for term in (bias, residual))
        fixed_tile_kernel[grid](x, weight, *terms, y, rows, **launch.arguments())
    return y


def _launch(columns: int, inner: int, x_stride: int, weight_stride: int, dtype: torch.dtype) -> Launch:
    """By the weight's shape and dtype, never by the number of rows. Fits 99 KB of shared memory, a consumer card's."""
    if dtype == torch.float32:
        (block_m, block_n, block_k), stages = (32, 32, 32), 3
    elif columns <= 4096:  # more programs for a narrow weight
        (block_m, block_n, block_k), stages = (64, 32, 128), 3
    else:
        (block_m, block_n, block_k), stages = (64, 64, 64), 4
    sizes = {"N": columns, "K": inner, "X_ROW": x_stride, "WEIGHT_ROW": weight_stride}
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    return Launch({**sizes, **blocks}, num_warps=4, num_stages=stages)


def compile_cases() -> list[CompileCase]:
    """mamba-130m's projections, mamba2-2.7b's first, the head of RWKV-7 0.4B, an inner size that no tile divides."""
    return [
        _case("linear 3072x768 bf16", 3072, 768, torch.bfloat16),
        _case("linear 768x1536 residual fp32", 768, 1536, torch.float32, residual="*fp32"),
        _case("linear 10576x2560 bf16", 10576, 2560, torch.bfloat16),
        _case("linear 65536x1024 fp16", 65536, 1024, torch.float16),
        _case("linear 1536x48 bias bf16", 1536, 48, torch.bfloat16, bias="*fp32"),
    ]


_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def _case(name: str, columns: int, inner: int, dtype: torch.dtype, **terms: str) -> CompileCase:
    launch = _launch(columns, inner, inner, inner, dtype)
    signature = {"x": _TYPES[dtype], "weight": _TYPES[dtype], "y": "*fp32", "rows": "i32", **terms}
    return CompileCase.of(name, fixed_tile_kernel, signature, launch, absent={"bias", "residual"} - terms.keys())
