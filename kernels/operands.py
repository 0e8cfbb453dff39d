"""Checks that operators with memory share: what is common to their operands, parameters and pools."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_operands(operator: str, **operands: Tensor) -> None:
    """Operands per token [T, ...]: of DTYPES, each token contiguous, with any stride between tokens.

    Raises TypeError, ValueError.
    """
    for name, x in operands.items():
        if x.dtype not in DTYPES:
            raise TypeError(f"{operator}: {name} must be float32, bfloat16 or float16, got {x.dtype}")
        if not x[:1].is_contiguous():
            raise ValueError(f"{operator}: every token of {name} must be contiguous, got strides {x.stride()}")


def check_float32(operator: str, **tensors: Tensor) -> None:
    """Parameters and state pools (which are updated in place): fp32, contiguous. Raises TypeError, ValueError."""
    for name, x in tensors.items():
        if x.dtype != torch.float32:
            raise TypeError(f"{operator}: {name} must be float32, got {x.dtype}")
        if not x.is_contiguous():
            raise ValueError(f"{operator}: {name} must be contiguous, got strides {x.stride()}")


def check_shapes(operator: str, fits: bool, **tensors: Tensor) -> None:
    """Raises ValueError, with all shapes, unless they fit."""
    if not fits:
        raise ValueError(f"{operator}: shapes do not fit: { {name: tuple(x.shape) for name, x in tensors.items()} }")
