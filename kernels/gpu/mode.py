"""Whether results on a GPU may depend on what else is in the batch."""

_enabled = False


def set_batch_invariant(enabled: bool) -> None:
    """Makes every operator that has a faster form, whose bits depend on the batch, use its fixed form instead."""
    global _enabled
    _enabled = enabled


def batch_invariant() -> bool:
    """Whether `set_batch_invariant` has asked for it. Off at the start."""
    return _enabled
