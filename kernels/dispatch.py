"""The only place that asks which device a tensor is on, and so which implementation runs.

Every operator is registered with PyTorch under `torch.ops.ostinato`: its schema, and what it returns for torch.compile.
An implementation is registered for a device the first time that an operator is called there:

- on the CPU the C++ of `kernels/cpu`, or, where that cannot be built, the references;
- on CUDA the Triton kernels of `kernels/gpu`.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ostinato.kernels import native

logger = logging.getLogger(__name__)

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


def product(weight: Tensor) -> Literal["amx", "onednn", "plain"]:
    """How projections with this weight are computed (`ostinato.kernels.linear` explains)."""
    operators(weight)
    if weight.device.type != "cpu" or "CPU" in _devices_on_references:
        return "plain"
    if weight.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx():
        return "amx"
    return "onednn" if _onednn_available() else "plain"


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


def wait_for(device: torch.device) -> None:
    """Returns when everything that was started on `device` is done: a GPU runs behind the program."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
