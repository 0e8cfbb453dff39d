"""Which memory of a state is recurrent, and what a sliding window by state difference needs besides it."""

import torch

from ostinato.models.base import StateSpec, StateTensor
from ostinato.models.mitigations import remedies

RECURRENT = ("recurrent", "ssm", "wkv", "linear", "mlstm")  # names of recurrent memory
PREVIOUS, DECAYS, ADDED_UP = "previous_", "decays_", "added_up"


def recurrent_tensors(spec: StateSpec) -> tuple[StateTensor, ...]:
    """The recurrent memory alone: no convolution tails, token shifts, attention windows or positions."""
    return tuple(tensor for tensor in spec.tensors if tensor.name in RECURRENT)


def window_spec(family: str, spec: StateSpec) -> StateSpec:
    """What a window needs besides the state, for each recurrent tensor [layers, H, V, K].

    `previous_*`, the state at the window's last boundary, of the same form; `decays_*` [layers, H, K] fp32, the sums of
    the logarithms of the decays since. Once, `added_up`: tokens since. Raises ValueError: the family has no window.
    """
    if "window" not in remedies(family):
        raise ValueError(f"{family} has no sliding window by state difference")
    tensors = [StateTensor(ADDED_UP, 1, (), torch.int64)]
    for tensor in recurrent_tensors(spec):
        heads, _, width = tensor.shape
        tensors.append(StateTensor(PREVIOUS + tensor.name, tensor.layers, tensor.shape, tensor.dtype))
        tensors.append(StateTensor(DECAYS + tensor.name, tensor.layers, (heads, width), torch.float32))
    return StateSpec(tuple(tensors))
