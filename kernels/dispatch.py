"""The only place that asks which device a tensor is on, and so which implementation runs.

Today: the C++ operators on the CPU where they can be built, the reference everywhere else.
"""

import functools
import logging

import torch
from torch import Tensor

from ostinato.kernels import native

logger = logging.getLogger(__name__)


@functools.cache
def _cpu_operators() -> bool:
    if reason := native.load():
        logger.warning("slow and not bit-exact reference kernels are in use on the CPU: %s", reason)
        return False
    return True


def use_native(x: Tensor) -> bool:
    """Whether operators on `x` run in C++ (`torch.ops.ostinato`)."""
    return x.device.type == "cpu" and _cpu_operators()


def use_prepacked(x: Tensor) -> bool:
    """Whether projections of `x` run on weights prepacked by oneDNN."""
    return x.device.type == "cpu" and _onednn_available()


@functools.cache
def _onednn_available() -> bool:
    if torch.backends.mkldnn.is_available():
        return True
    logger.warning("PyTorch was built without oneDNN: projections are slower and not bit-exact across batches")
    return False


def supported_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """In which dtypes projections are computed here: fp16 needs a GPU, bf16 a CPU that has instructions for it."""
    if device.type != "cpu":
        return (torch.float32, torch.bfloat16, torch.float16)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return (torch.float32, torch.bfloat16)
    return (torch.float32,)
