"""The state pool: the memory of all sequences, allocated once. A free slot is a zeroed slot."""

import torch
from torch import Tensor

from ostinato.models.base import StateSpec


class StatePool:
    """`tensors` holds each of the spec's tensors as [layers, slots, *shape], zero at first."""

    def __init__(self, spec: StateSpec, num_slots: int, device: str | torch.device = "cpu") -> None:
        self.spec = spec
        self.num_slots = num_slots
        self.tensors: dict[str, Tensor] = {
            tensor.name: torch.zeros(tensor.layers, num_slots, *tensor.shape, dtype=tensor.dtype, device=device)
            for tensor in spec.tensors
        }

    @property
    def num_bytes(self) -> int:
        return self.num_slots * self.spec.bytes_per_state

    def clear(self, slot: int) -> None:
        """Zeroes every tensor of a slot."""
        for tensor in self.tensors.values():
            tensor[:, slot].zero_()
