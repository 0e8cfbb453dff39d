"""Elementary functions that several kernels share."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """1 / (1 + e^-x) of a block of fp32, with no exponential that could overflow."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def silu(x: tl.tensor) -> tl.tensor:
    """x * sigmoid(x) of a block of fp32."""
    return x * sigmoid(x)
