"""The state pool: the memory of all sequences, allocated once. A free slot is a zeroed slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.models.base import StateSpec


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The memory of one sequence outside of the pool. It may be shared, so nobody writes into it.

    tensors: by name, [layers, *shape]. num_read: tokens that it has taken in. logits: [vocabulary] fp32 on the CPU,
    what it predicts next; None where nobody has asked for them.
    """

    tensors: Mapping[str, Tensor]
    num_read: int
    logits: Tensor | None = None

    def on_host(self) -> State:
        """The same in the host's memory; itself if it is there."""
        if all(tensor.device.type == "cpu" for tensor in self.tensors.values()):
            return self
        return State({name: tensor.cpu() for name, tensor in self.tensors.items()}, self.num_read, self.logits)

    @property
    def is_finite(self) -> bool:
        """Whether every number of it is; the logits are looked at where they are sampled from."""
        return all(map(all_finite, self.tensors.values()))

    @property
    def num_bytes(self) -> int:
        kept = [*self.tensors.values(), *(() if self.logits is None else (self.logits,))]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


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

    def save(self, slot: int) -> dict[str, Tensor]:
        """A copy of a slot, on the pool's device: each tensor as [layers, *shape]."""
        return {name: tensor[:, slot].clone() for name, tensor in self.tensors.items()}

    def is_finite(self, slot: int) -> bool:
        """Whether every number of a slot is."""
        return all(all_finite(tensor[:, slot]) for tensor in self.tensors.values())

    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites a slot with what `save` gave, from any device."""
        for name, tensor in self.tensors.items():
            tensor[:, slot].copy_(tensors[name])


def all_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite. A sum is finite only if every term is, which is far cheaper than to look at
    each; but it may overflow.
    """
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
