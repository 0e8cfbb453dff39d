"""Projections: a matrix product whose every row is computed as if it were alone.

On the CPU the weight is packed once. Which product then gives each row the same bits, whatever the number of rows,
their order or the number of threads, depends on the processor:

- where there is AMX and the weight is bf16: a product of our own (`kernels/cpu/amx.h`), because oneDNN's use of AMX
  splits sums differently for different numbers of rows; it reads the weight in three quarters of its bytes, without
  loss (`kernels/cpu/coded_weight.h`);
- otherwise oneDNN on a weight that it has reordered, with one row padded to two, because the product of a single row
  is another algorithm (a matrix-vector product).

`tests/kernels/test_linear.py` holds both to it.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import dispatch
from ostinato.kernels.rows import geglu_ref, relu_square_ref, swiglu_ref

Activation = Literal["swiglu", "geglu", "relu_square"]
"""What stands between the two projections of an MLP: functions of `ostinato.kernels.rows`."""

_GATED = ("swiglu", "geglu")  # by the first half of the outputs
_ACTIVATIONS = {"swiglu": swiglu_ref, "geglu": geglu_ref, "relu_square": relu_square_ref}


def linear_ref(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, outputs: int) -> Tensor:
    """y = x W^T, in the weight's dtype, then bias and residual in fp32."""
    del outputs  # packed weights do not tell it; this one does
    y = F.linear(x.to(weight.dtype), weight).float()
    for term in (bias, residual):
        y = y if term is None else y + term
    return y


def _linear_meta(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty((x.shape[0], outputs), dtype=torch.float32)


def activated_linear_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int, activation: Activation, dtype: torch.dtype
) -> Tensor:
    """An activation of x W^T + bias, of fp32, rounded to `dtype`."""
    return _ACTIVATIONS[activation](linear_ref(x, weight, bias, None, outputs), dtype)


def _activated_meta(
    x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int, activation: Activation, dtype: torch.dtype
) -> Tensor:
    width = outputs // 2 if activation in _GATED else outputs
    return x.new_empty((x.shape[0], width), dtype=dtype)


dispatch.define(
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int outputs) -> Tensor",
    reference=linear_ref,
    meta=_linear_meta,
)
dispatch.define(
    "activated_linear(Tensor x, Tensor weight, Tensor? bias, int outputs, str activation, ScalarType dtype) -> Tensor",
    reference=activated_linear_ref,
    meta=_activated_meta,
)


def pack(weight: Tensor) -> Tensor:
    """A weight [N, K] as the product that is chosen for it reads it: a copy, but for the plain one."""
    match dispatch.product(weight):
        case "amx":
            coded: Tensor = torch.ops.ostinato.code_weight(weight)
            return coded
        case "onednn":
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
            return packed
        case _:
            return weight.contiguous()


class Linear:
    """y = x W^T + bias, with the weight packed at construction.

    weight: [out, in] in the dtype of the computation; bias: [out] or None. Raises ValueError: shapes that do not fit.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.dtype = weight.dtype
        self.outputs, self.inputs = weight.shape
        if not weight.numel():
            raise ValueError(f"linear: a weight {tuple(weight.shape)} has no elements")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"linear: a bias {tuple(bias.shape)} does not fit a weight {tuple(weight.shape)}")
        self._bias = None if bias is None else bias.float().contiguous()
        self._weight = pack(weight)
        self.packed = self._weight is not weight
        operators = dispatch.operators(weight)
        self._linear, self._activated = operators.linear.default, operators.activated_linear.default

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: [N, in] of any float dtype, rounded to the weight's; residual: [N, out] fp32, added to the result.

        Returns [N, out] fp32. Raises TypeError, ValueError: operands that do not fit.
        """
        self._check(x)
        y: Tensor = self._linear(x, self._weight, self._bias, residual, self.outputs)
        return y

    def activated(self, x: Tensor, activation: Activation, dtype: torch.dtype) -> Tensor:
        """An activation of the product, which on AMX is never in memory: fp32 until it is rounded to `dtype`.

        x: [N, in] of any float dtype, rounded to the weight's. Returns [N, out], or [N, out / 2] where the first half
        of the outputs is a gate for the second. Raises TypeError, ValueError: operands that do not fit.
        """
        self._check(x)
        if activation in _GATED and self.outputs % 2:
            raise ValueError(f"{activation}: a gate and what it multiplies cannot be {self.outputs} outputs")
        y: Tensor = self._activated(x, self._weight, self._bias, self.outputs, activation, dtype)
        return y

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.inputs:
            raise ValueError(f"linear: a weight for {self.inputs} inputs does not fit {tuple(x.shape)}")
