"""The Triton back end. Imported only where there is a GPU, and by tests, which run it in Triton's interpreter."""

import torch

from ostinato.kernels.gpu import conv, diagonal, matmul, pointwise, rows, rwkv7, shift, slstm, wkv4

OPERATORS = {
    "causal_conv": conv.causal_conv,
    "diagonal": diagonal.diagonal,
    "layer_norm": rows.layer_norm,
    "linear": matmul.linear,
    "log_sigmoid": pointwise.log_sigmoid,
    "relu_square": pointwise.relu_square,
    "rms_norm": rows.rms_norm,
    "rwkv7_inputs": rwkv7.rwkv7_inputs,
    "rwkv7_output": rwkv7.rwkv7_output,
    "slstm": slstm.slstm,
    "swiglu": pointwise.swiglu,
    "token_shift": shift.token_shift,
    "wkv4": wkv4.wkv4,
    **{function: pointwise.pointwise(function) for function in pointwise.FUNCTIONS},
}


def register(library: torch.library.Library) -> None:
    """Registers every operator's launcher for CUDA tensors."""
    for name, launcher in OPERATORS.items():
        library.impl(name, launcher, "CUDA")
