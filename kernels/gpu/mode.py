"""What a forward pass asks of the GPU kernels, for the calling thread and as long as a context is open.

Batch-invariant: a token has the same bits whatever its batch and its split, because every operator adds up in an order
that depends on the model's sizes alone. It costs speed: the recurrence reads prompts token by token, and matrix
products keep one tile shape for every number of rows.

The model's dtype: what its projections round their inputs to. Factors of a scan's products are rounded alike, on the
way from memory to the multiplier; states, decays and sums stay in fp32.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch

# A thread's own: several engines may run side by side.
_enabled = ContextVar("batch_invariant", default=False)
_dtype = ContextVar("dtype", default=torch.float32)


def batch_invariant() -> bool:
    """Whether the mode is on. Launchers ask at every call."""
    return _enabled.get()


def model_dtype() -> torch.dtype:
    """The dtype of the model that calls, float32 if nobody said."""
    return _dtype.get()


@contextlib.contextmanager
def set_to(batch_invariant: bool, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Sets both, for the calling thread and as long as the context is open."""
    before = _enabled.set(batch_invariant), _dtype.set(dtype)
    try:
        yield
    finally:
        _enabled.reset(before[0])
        _dtype.reset(before[1])
