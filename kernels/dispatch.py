"""The only place that asks which device a tensor is on, and so which implementation runs.

Every operator is registered with PyTorch under `torch.ops.ostinato`: its schema, and what it returns for torch.compile.
Implementations are registered for a device the first time that an operator is called there, by one of three back ends:

- native, the C++ of `kernels/cpu`;
- triton, the kernels of `kernels/gpu`: on CUDA, and on the CPU in Triton's interpreter, for tests;
- reference, the equations in torch, anywhere: slowly, and not bit for bit.

The environment variable OSTINATO_KERNELS names one. By default (`auto`) it is native on the CPU, or reference where the
C++ cannot be built, and triton on CUDA.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, NoReturn, cast, get_args

import torch
from torch import Tensor

from ostinato.kernels import native

logger = logging.getLogger(__name__)

LIBRARY = torch.library.Library("ostinato", "FRAGMENT")
VARIABLE = "OSTINATO_KERNELS"

Backend = Literal["native", "reference", "triton"]
Implementation = Callable[..., Any]

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_references: dict[str, Implementation] = {}
_sources: dict[str, Callable[[str], Implementation]] = {}  # by dispatch key: an operator's name -> what runs there


class BackendError(RuntimeError):
    """The back end that is asked for, or needed, cannot run here."""


def define(schema: str, *, reference: Implementation, meta: Implementation) -> None:
    """Declares an operator: its schema, an implementation in torch, and one that gives shapes and dtypes only."""
    name = schema.split("(")[0]
    LIBRARY.define(schema)
    torch.library.register_fake(f"ostinato::{name}", meta, lib=LIBRARY)
    _references[name] = reference
    for key, source in _sources.items():
        LIBRARY.impl(name, source(name), key)


def operators(x: Tensor) -> Any:
    """`torch.ops.ostinato`, after making sure that its operators can run where `x` is. Raises BackendError."""
    if x.device.type in _KEYS:
        backend(x.device.type)
    return torch.ops.ostinato


@functools.cache
def backend(device: str) -> Backend:
    """What runs on "cpu" or "cuda", once it is registered there. Raises BackendError."""
    chosen = _choose(_wanted(), device)
    if chosen == "reference":
        _register(device, _references.__getitem__)
    elif chosen == "triton":
        launchers = _launchers(device)
        _register(device, lambda name: launchers.get(name) or functools.partial(_refuse, name))
    return chosen


def _wanted() -> Backend | None:
    """None leaves the choice. Raises BackendError: there is no such back end."""
    value = os.environ.get(VARIABLE) or "auto"
    if value not in ("auto", *get_args(Backend)):
        raise BackendError(f"{VARIABLE} must be one of auto, {', '.join(get_args(Backend))}, got {value!r}")
    return None if value == "auto" else cast(Backend, value)


def _choose(wanted: Backend | None, device: str) -> Backend:
    if wanted in ("reference", "triton"):
        return wanted
    if device != "cpu":
        if wanted == "native":
            raise BackendError(f"{VARIABLE}=native is C++ for the CPU: on {device} choose triton or reference")
        return "triton"
    reason = native.load()
    if reason is None:
        return "native"
    if wanted == "native":
        raise BackendError(f"{VARIABLE}=native is impossible: {reason}")
    logger.warning("slow and not bit-exact reference kernels are in use on the CPU: %s", reason)
    return "reference"


def _launchers(device: str) -> dict[str, Implementation]:
    try:
        from ostinato.kernels import gpu
    except ImportError as error:
        remedy = f"`pip install triton` (Linux), or set {VARIABLE}=reference, which is slow"
        raise BackendError(
            f"the kernels for {device} need Triton, which cannot be imported ({error}): {remedy}"
        ) from error
    if device == "cpu" and not gpu.interpreted():
        raise BackendError(
            f"{VARIABLE}=triton runs on the CPU in Triton's interpreter only: set TRITON_INTERPRET=1 too"
        )
    return gpu.OPERATORS


def _refuse(name: str, *_: object, **__: object) -> NoReturn:
    raise BackendError(f"there is no Triton kernel for {name!r}: {VARIABLE}=reference runs without, slowly")


def _register(device: str, source: Callable[[str], Implementation]) -> None:
    _sources[_KEYS[device]] = source
    for name in _references:
        LIBRARY.impl(name, source(name), _KEYS[device])


def product(weight: Tensor) -> Literal["amx", "onednn", "plain"]:
    """How projections with this weight are computed (`ostinato.kernels.linear` explains)."""
    if weight.device.type != "cpu" or backend("cpu") != "native":
        return "plain"
    if weight.dtype == torch.bfloat16 and _amx_available():
        return "amx"
    return "onednn" if _onednn_available() else "plain"


@functools.cache
def _amx_available() -> bool:
    return torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx() and bool(torch.ops.ostinato.can_decode())


@functools.cache
def _onednn_available() -> bool:
    if torch.backends.mkldnn.is_available():
        return True
    logger.warning("PyTorch was built without oneDNN: projections are slower and not bit-exact across batches")
    return False


def supported_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """In which dtypes projections are computed here: fp16 needs a GPU, bf16 a CPU that has instructions for it.

    Triton's interpreter, which is for the CPU, computes in fp32 only: it takes bf16 for integers.
    """
    if device.type != "cpu":
        return (torch.float32, torch.bfloat16, torch.float16)
    if _wanted() != "triton" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return (torch.float32, torch.bfloat16)
    return (torch.float32,)


def wait_for(device: torch.device) -> None:
    """Returns when everything that was started on `device` is done: a GPU runs behind the program."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batch_invariant(device: torch.device, dtype: torch.dtype, asked: bool) -> bool:
    """Whether a token has the same bits whatever its batch and its split, with projections in `dtype`.

    In C++ it always has, in Triton where that is `asked` for, in the reference never.
    """
    if backend(device.type) == "triton":
        return asked
    return product(torch.empty(0, dtype=dtype, device=device)) != "plain"


@contextlib.contextmanager
def running(device: torch.device, *, batch_invariant: bool, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """What a forward pass runs in: Triton launches on the current device, and has a batch-invariant mode.

    dtype: the model's. Triton's scans round to it what they multiply, in C++ only projections do.
    """
    if backend(device.type) != "triton":
        yield
        return
    from ostinato.kernels.gpu import mode

    with _current(device), mode.set_to(batch_invariant, dtype):
        yield


def _current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def can_capture(device: torch.device) -> bool:
    """Whether a step can be captured as a CUDA graph: compiled kernels never wait for the host, the others do."""
    if device.type != "cuda" or backend("cuda") != "triton":
        return False
    from ostinato.kernels import gpu

    return not gpu.interpreted()


def can_record(device: torch.device) -> bool:
    """Whether a step can be recorded as a tape: C++ never looks at values in Python, the reference does."""
    return device.type == "cpu" and backend("cpu") == "native"
