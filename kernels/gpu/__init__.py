"""The Triton back end. Imported only where there is a GPU, and by tests, which run it in Triton's interpreter."""

from collections.abc import Callable
from typing import Any

import triton

from ostinato.kernels.gpu import (
    attention,
    conv,
    diagonal,
    experts,
    matmul,
    pointwise,
    recurrence,
    rows,
    rwkv7,
    shift,
    slstm,
    wkv4,
)

OPERATORS: dict[str, Callable[..., Any]] = {  # launchers, each with the arguments of its operator
    **{function: pointwise.pointwise(function) for function in pointwise.FUNCTIONS},
    "activated_linear": matmul.activated_linear,
    "causal_conv": conv.causal_conv,
    "diagonal": diagonal.diagonal,
    "experts": experts.experts,
    "geglu": pointwise.geglu,
    "layer_norm": rows.layer_norm,
    "linear": matmul.linear,
    "log_sigmoid": pointwise.log_sigmoid,
    "recurrence": recurrence.recurrence,
    "relu_square": pointwise.relu_square,
    "rms_norm": rows.rms_norm,
    "route": experts.route,
    "rwkv7_inputs": rwkv7.rwkv7_inputs,
    "rwkv7_output": rwkv7.rwkv7_output,
    "slstm": slstm.slstm,
    "swiglu": pointwise.swiglu,
    "token_shift": shift.token_shift,
    "window_attention": attention.window_attention,
    "wkv4": wkv4.wkv4,
}


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1), on tensors in the CPU's memory."""
    return bool(triton.knobs.runtime.interpret)
