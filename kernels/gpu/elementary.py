"""Elementary functions of blocks of fp32 that several kernels share: nothing in them overflows.

Where Triton has no logarithm or exponential near 1, they are found as in Goldberg 1991, theorem 4: the error of a
rounded 1 + x cancels against that of its logarithm.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """1 / (1 + e^-x)."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def silu(x: tl.tensor) -> tl.tensor:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


@triton.jit
def gelu(x: tl.tensor) -> tl.tensor:
    """In its tanh form, x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return x * sigmoid(x * (0.0713548163 * x * x + 1.59576912))


@triton.jit
def softplus(x: tl.tensor) -> tl.tensor:
    """log(1 + e^x)."""
    small = tl.exp(-tl.abs(x))
    rounded = 1.0 + small
    lost = rounded == 1.0
    logarithm = tl.where(lost, small, tl.log(rounded) * small / tl.where(lost, 1.0, rounded - 1.0))
    return tl.maximum(x, 0.0) + logarithm


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """(e^x - e^-x) / (e^x + e^-x), by way of e^-2|x| - 1, which never cancels."""
    power = -2.0 * tl.abs(x)
    rounded = tl.maximum(tl.exp(power), 1e-30)  # its logarithm is finite
    lost = rounded == 1.0
    below = tl.where(lost, power, (rounded - 1.0) * power / tl.where(lost, 1.0, tl.log(rounded)))
    below = tl.where(power < -40.0, -1.0, below)
    return tl.where(x < 0, below, -below) / (2.0 + below)
