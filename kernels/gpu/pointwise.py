"""Elementwise functions and gates: every element by itself."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.elementary import gelu, sigmoid, silu, softplus, tanh
from ostinato.kernels.gpu.launch import Launch

BLOCK = 1024


@triton.jit(do_not_specialize=["count"])
def pointwise_kernel(
    x: tl.tensor, y: tl.tensor, count: tl.tensor, scale: tl.tensor, FUNCTION: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """Grid (blocks,). The function of that name, times `scale` where it is log_sigmoid."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count, other=0.0)
    if FUNCTION == "sigmoid":
        value = sigmoid(value)
    elif FUNCTION == "silu":
        value = silu(value)
    elif FUNCTION == "tanh":
        value = tanh(value)
    elif FUNCTION == "exp":
        value = tl.exp(value)
    elif FUNCTION == "softplus":
        value = softplus(value)
    elif FUNCTION == "sqrt":
        value = tl.sqrt_rn(tl.where(value < 0.0, 0.0, value))
    elif FUNCTION == "log_sigmoid":
        value = -softplus(-value) * scale
    else:
        tl.static_assert(FUNCTION == "relu_square")
        value = tl.maximum(value, 0.0)
        value *= value
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < count)


@triton.jit(do_not_specialize=["count"])
def gated_kernel(
    x: tl.tensor, y: tl.tensor, count: tl.tensor, GELU: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """Grid (blocks,), over y [.., WIDTH]: SwiGLU or GEGLU."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // WIDTH, at % WIDTH
    gate = tl.load(x + row * (2 * WIDTH) + column, mask=at < count, other=0.0)
    up = tl.load(x + row * (2 * WIDTH) + WIDTH + column, mask=at < count, other=0.0)
    opening = gelu(gate) if GELU else silu(gate)
    tl.store(y + at, (opening * up).to(y.dtype.element_ty), mask=at < count)


def _map(function: str, x: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    x, y = x.contiguous(), torch.empty(x.shape, dtype=dtype, device=x.device)
    if y.numel():
        launch = _launch(FUNCTION=function)
        pointwise_kernel[(triton.cdiv(y.numel(), BLOCK),)](x, y, y.numel(), scale, **launch.arguments())
    return y


def pointwise(function: str) -> Callable[[Tensor], Tensor]:
    """`ostinato::<function>`, fp32 to fp32: see `ostinato.kernels.rows`."""
    return lambda x: _map(function, x, torch.float32)


def log_sigmoid(x: Tensor, scale: float) -> Tensor:
    """`ostinato::log_sigmoid`: see `ostinato.kernels.rows`."""
    return _map("log_sigmoid", x, torch.float32, scale)


def relu_square(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`ostinato::relu_square`: see `ostinato.kernels.rows`."""
    return _map("relu_square", x, dtype)


def swiglu(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`ostinato::swiglu`: see `ostinato.kernels.rows`."""
    return _gated(x, dtype, gelu=False)


def geglu(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`ostinato::geglu`: see `ostinato.kernels.rows`."""
    return _gated(x, dtype, gelu=True)


ACTIVATIONS = {"swiglu": swiglu, "geglu": geglu, "relu_square": relu_square}


def _gated(x: Tensor, dtype: torch.dtype, *, gelu: bool) -> Tensor:
    x, width = x.contiguous(), x.shape[-1] // 2
    y = torch.empty((*x.shape[:-1], width), dtype=dtype, device=x.device)
    if y.numel():
        launch = _launch(GELU=gelu, WIDTH=width)
        gated_kernel[(triton.cdiv(y.numel(), BLOCK),)](x, y, y.numel(), **launch.arguments())
    return y


def _launch(**constexprs: object) -> Launch:
    """8 elements a thread."""
    return Launch({**constexprs, "BLOCK": BLOCK}, num_warps=4)


FUNCTIONS = ("sigmoid", "silu", "tanh", "exp", "softplus", "sqrt")


def compile_cases() -> list[CompileCase]:
    """Every function; the SwiGLU of gla-340M; the GEGLU of recurrentgemma-2b."""
    pointers = {"x": "*fp32", "y": "*bf16"}
    swiglu_launch, geglu_launch = _launch(GELU=False, WIDTH=2816), _launch(GELU=True, WIDTH=7680)
    return [
        *(_case(function, "fp32") for function in (*FUNCTIONS, "log_sigmoid")),
        _case("relu_square", "bf16"),
        CompileCase.of("swiglu 2816 bf16", gated_kernel, {**pointers, "count": "i32"}, swiglu_launch),
        CompileCase.of("geglu 7680 bf16", gated_kernel, {**pointers, "count": "i32"}, geglu_launch),
    ]


def _case(function: str, dtype: str) -> CompileCase:
    signature = {"x": "*fp32", "y": f"*{dtype}", "count": "i32", "scale": "fp32"}
    return CompileCase.of(f"{function} {dtype}", pointwise_kernel, signature, _launch(FUNCTION=function))
