"""The Triton back end. Imported only where there is a GPU, and by tests, which run it in Triton's interpreter."""

import torch

from ostinato.kernels.gpu import conv, matmul, rows, shift

OPERATORS = {
    "causal_conv": conv.causal_conv,
    "layer_norm": rows.layer_norm,
    "linear": matmul.linear,
    "rms_norm": rows.rms_norm,
    "token_shift": shift.token_shift,
}


def register(library: torch.library.Library) -> None:
    """Registers every operator's launcher for CUDA tensors."""
    for name, launcher in OPERATORS.items():
        library.impl(name, launcher, "CUDA")
