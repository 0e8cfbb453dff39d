"""The only place that asks which device a tensor is on, and so which implementation runs.

Today: the C++ operators on the CPU where they can be built, the reference everywhere else.
"""

import functools
import logging
import os

import torch
from torch import Tensor

from ostinato.kernels import native

logger = logging.getLogger(__name__)

# No AMX: `ostinato.kernels.linear` says why. oneDNN reads this once, at its first use in the process, so it stands
# here, where whatever leads to such a use passes. A value that the user has set is left alone.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


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
    if not torch.backends.mkldnn.is_available():
        logger.warning("PyTorch was built without oneDNN: projections are slower and not bit-exact across batches")
        return False
    if torch.ops.mkldnn._is_mkldnn_bf16_supported() and not rows_are_exact():
        logger.warning(
            "projections are not bit-exact across batches, because oneDNN was in use before Ostinato could switch "
            "AMX off: set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 before the process starts"
        )
    return True


def rows_are_exact() -> bool:
    """Whether a bf16 product of 5 rows has the bits that the same rows have among 64: not so with AMX."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2048, 2048, generator=generator).bfloat16()
    rows = torch.randn(64, 2048, generator=generator).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    few, many = (torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "") for x in (rows[:5], rows))
    return torch.equal(few, many[:5])


def supported_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """In which dtypes projections are computed here: fp16 needs a GPU, bf16 a CPU that has instructions for it."""
    if device.type != "cpu":
        return (torch.float32, torch.bfloat16, torch.float16)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return (torch.float32, torch.bfloat16)
    return (torch.float32,)
