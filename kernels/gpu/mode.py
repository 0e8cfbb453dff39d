"""Whether the GPU kernels must give a token's bits whatever its batch and its split.

In batch-invariant mode every operator adds up in an order that depends on the model's sizes alone. It costs speed: the
recurrence reads prompts token by token, and matrix products keep one tile shape for every number of rows.
"""

_enabled = False


def set_batch_invariant(enabled: bool) -> None:
    """Turns the mode on or off for the whole process; a running forward pass is not affected halfway."""
    global _enabled
    _enabled = enabled


def batch_invariant() -> bool:
    """Whether the mode is on."""
    return _enabled
