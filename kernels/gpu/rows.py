"""Norms over rows: one program per row, so a row's sum has one order whatever the rows around it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.elementary import silu
from ostinato.kernels.gpu.launch import Launch


@triton.jit
def rms_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    gate: tl.tensor,
    y: tl.tensor,
    eps: tl.tensor,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    X_TOKEN: tl.constexpr,
    X_GROUP: tl.constexpr,
    GATE_TOKEN: tl.constexpr,
    GATE_GROUP: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (tokens * GROUPS,). X_TOKEN to GATE_GROUP are strides; weight and y are contiguous; gate may be None."""
    row = tl.program_id(0)
    token, group = (row // GROUPS).to(tl.int64), row % GROUPS
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + token * X_TOKEN + group * X_GROUP + column, mask=inside, other=0.0)
    if gate is not None:
        opening = tl.load(gate + token * GATE_TOKEN + group * GATE_GROUP + column, mask=inside, other=0.0)
        opening = silu(opening.to(tl.float32))
        if GATE_FIRST:
            value *= opening
    mean = tl.sum(value * value, axis=0) / WIDTH
    value = value * tl.rsqrt(mean + eps) * tl.load(weight + group * WIDTH + column, mask=inside, other=0.0)
    if gate is not None and not GATE_FIRST:
        value *= opening
    tl.store(y + row.to(tl.int64) * WIDTH + column, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    eps: tl.tensor,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    X_TOKEN: tl.constexpr,
    X_GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (tokens * GROUPS,). X_TOKEN and X_GROUP are strides; the others are contiguous."""
    row = tl.program_id(0)
    token, group = (row // GROUPS).to(tl.int64), row % GROUPS
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + token * X_TOKEN + group * X_GROUP + column, mask=inside, other=0.0)
    centred = tl.where(inside, value - tl.sum(value, axis=0) / WIDTH, 0.0)
    variance = tl.sum(centred * centred, axis=0) / WIDTH
    scaled = centred * tl.rsqrt(variance + eps) * tl.load(weight + group * WIDTH + column, mask=inside, other=0.0)
    shifted = scaled + tl.load(bias + group * WIDTH + column, mask=inside, other=0.0)
    tl.store(y + row.to(tl.int64) * WIDTH + column, shifted.to(y.dtype.element_ty), mask=inside)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, gate: Tensor | None, gate_first: bool
) -> Tensor:
    """`ostinato::rms_norm`: see `ostinato.kernels.rows`."""
    rows, gates = _grouped(x, weight), None if gate is None else _grouped(gate, weight)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if y.numel():
        launch = _rms_launch(
            rows.shape[1], rows.shape[2], _strides(rows), _strides(rows if gates is None else gates), gate_first
        )
        grid = (rows.shape[0] * rows.shape[1],)
        rms_norm_kernel[grid](rows, weight.contiguous(), gates, y, eps, **launch.arguments())
    return y


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`ostinato::layer_norm`: see `ostinato.kernels.rows`."""
    rows = _grouped(x, weight)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if y.numel():
        launch = _layer_launch(rows.shape[1], rows.shape[2], _strides(rows))
        grid = (rows.shape[0] * rows.shape[1],)
        layer_norm_kernel[grid](rows, weight.contiguous(), bias.contiguous(), y, eps, **launch.arguments())
    return y


def _grouped(x: Tensor, weight: Tensor) -> Tensor:
    """x as [tokens, groups, width], with its columns side by side."""
    x = x.reshape(-1, weight.shape[:-1].numel(), weight.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(rows: Tensor) -> tuple[int, int]:
    return rows.stride(0), rows.stride(1)


def _rms_launch(
    groups: int, width: int, x_strides: tuple[int, int], gate_strides: tuple[int, int], gate_first: bool
) -> Launch:
    shared = _layer_launch(groups, width, x_strides)
    gate = {"GATE_TOKEN": gate_strides[0], "GATE_GROUP": gate_strides[1], "GATE_FIRST": gate_first}
    return Launch(shared.constexprs | gate, shared.num_warps)


def _layer_launch(groups: int, width: int, x_strides: tuple[int, int]) -> Launch:
    """8 elements a thread, where 16 warps are enough for that."""
    block = triton.next_power_of_2(width)
    sizes = {"GROUPS": groups, "WIDTH": width, "X_TOKEN": x_strides[0], "X_GROUP": x_strides[1], "BLOCK": block}
    return Launch(sizes, num_warps=min(16, max(1, block // 256)))


def compile_cases() -> list[CompileCase]:
    """At the widths of mamba-130m, mamba2-2.7b (gated), gla-340M's heads (gated), RWKV-7 2.9B and its heads."""
    return [
        _rms_case("rms_norm 768 bf16", 1, 768, "bf16"),
        _rms_case("rms_norm 2560 bf16", 1, 2560, "bf16"),
        _rms_case("rms_norm 5120 gate first bf16", 1, 5120, "bf16", gate="fp32", gate_first=True),
        _rms_case("rms_norm 4x256 gate last fp16", 4, 256, "fp16", gate="bf16"),
        _layer_case("layer_norm 2560 bf16", 1, 2560, "bf16"),
        _layer_case("layer_norm 40x64 fp32", 40, 64, "fp32"),
    ]


def _rms_case(
    name: str, groups: int, width: int, dtype: str, *, gate: str | None = None, gate_first: bool = False
) -> CompileCase:
    strides = groups * width, width
    launch = _rms_launch(groups, width, strides, strides, gate_first)
    signature = {"x": "*fp32", "weight": "*fp32", "y": f"*{dtype}", "eps": "fp32"}
    if gate is None:
        return CompileCase.of(name, rms_norm_kernel, signature, launch, absent=("gate",))
    return CompileCase.of(name, rms_norm_kernel, {**signature, "gate": f"*{gate}"}, launch)


def _layer_case(name: str, groups: int, width: int, dtype: str) -> CompileCase:
    launch = _layer_launch(groups, width, (groups * width, width))
    signature = {"x": "*fp32", "weight": "*fp32", "bias": "*fp32", "y": f"*{dtype}", "eps": "fp32"}
    return CompileCase.of(name, layer_norm_kernel, signature, launch)
