"""Whether the GPU kernels must give a token's bits whatever its batch and its split.

In batch-invariant mode every operator adds up in an order that depends on the model's sizes alone. It costs speed: the
recurrence reads prompts token by token, and matrix products keep one tile shape for every number of rows.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_enabled = ContextVar("batch_invariant", default=False)  # a thread's own: several engines may run side by side


def batch_invariant() -> bool:
    """Whether the mode is on. Launchers ask at every call."""
    return _enabled.get()


@contextlib.contextmanager
def set_to(enabled: bool) -> Iterator[None]:
    """Turns the mode on or off, for the calling thread and as long as the context is open."""
    before = _enabled.set(enabled)
    try:
        yield
    finally:
        _enabled.reset(before)
