"""The only place that asks which device a tensor is on, and so which implementation runs.

Every operator is registered with PyTorch under `torch.ops.ostinato`: its schema, and what it returns for torch.compile.
An implementation is registered for a device the first time that an operator is called there:

- on the CPU the C++ of `kernels/cpu`, or, where that cannot be built, the references;
- on CUDA the Triton kernels of `kernels/gpu`.
"""

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ostinato.kernels import native

logger = logging.getLogger(__name__)

# No AMX: `ostinato.kernels.linear` says why. oneDNN reads this once, at its first use in the process, so it stands
# here, where whatever leads to such a use passes. A value that the user has set is left alone.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

LIBRARY = torch.library.Library("ostinato", "FRAGMENT")

Implementation = Callable[..., Any]
_references: dict[str, Implementation] = {}
_devices_on_references: set[str] = set()


def define(schema: str, *, reference: Implementation, meta: Implementation) -> None:
    """Declares an operator: its schema, an implementation in torch, and one that gives shapes and dtypes only."""
    name = schema.split("(")[0]
    LIBRARY.define(schema)
    torch.library.register_fake(f"ostinato::{name}", meta, lib=LIBRARY)
    _references[name] = reference
    for device in _devices_on_references:
        LIBRARY.impl(name, reference, device)


def operators(x: Tensor) -> Any:
    """`torch.ops.ostinato`, after making sure that its operators can run where `x` is."""
    _prepare(x.device.type)
    return torch.ops.ostinato


@functools.cache
def _prepare(device: str) -> None:
    if device == "cpu":
        if reason := native.load():
            logger.warning("slow and not bit-exact reference kernels are in use on the CPU: %s", reason)
            _use_references("CPU")
    elif device == "cuda":
        from ostinato.kernels import gpu

        gpu.register(LIBRARY)


def _use_references(device: str) -> None:
    _devices_on_references.add(device)
    for name, reference in _references.items():
        LIBRARY.impl(name, reference, device)


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
