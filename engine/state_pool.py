"""The state pool: the memory of all sequences, allocated once. A free slot is a zeroed slot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.models.base import StateSpec
from ostinato.models.recurrent_memory import ADDED_UP, DECAYS, PREVIOUS, recurrent_tensors


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
    """`tensors` holds each of the spec's tensors as [layers, slots, *shape], zero at first.

    window: what windows need besides (`window_spec` of `ostinato.models.recurrent_memory`); it is in `window_tensors`,
    and part of the state of those slots that have a window (`begin_window`).
    """

    def __init__(
        self, spec: StateSpec, num_slots: int, device: str | torch.device = "cpu", window: StateSpec | None = None
    ) -> None:
        self.spec = spec
        self.num_slots = num_slots
        self.tensors = _zeros(spec, num_slots, device)
        self.window_tensors = {} if window is None else _zeros(window, num_slots, device)
        self._window_bytes = 0 if window is None else window.bytes_per_state
        self._windowed: set[int] = set()

    @property
    def num_bytes(self) -> int:
        return self.num_slots * (self.spec.bytes_per_state + self._window_bytes)

    def clear(self, slot: int) -> None:
        """Zeroes every tensor of a slot."""
        self._windowed.discard(slot)
        for tensor in (*self.tensors.values(), *self.window_tensors.values()):
            tensor[:, slot].zero_()

    def save(self, slot: int) -> dict[str, Tensor]:
        """A copy of a slot, on the pool's device: each tensor as [layers, *shape]."""
        window = self.window_tensors if slot in self._windowed else {}
        return {name: tensor[:, slot].clone() for name, tensor in {**self.tensors, **window}.items()}

    def is_finite(self, slot: int) -> bool:
        """Whether every number of a slot is."""
        return all(all_finite(tensor[:, slot]) for tensor in self.tensors.values())

    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites a slot with what `save` gave, from any device."""
        for name, tensor in self.tensors.items():
            tensor[:, slot].copy_(tensors[name])
        self._windowed.discard(slot)
        for name, tensor in self.window_tensors.items():
            if name in tensors:
                self._windowed.add(slot)
                tensor[:, slot].copy_(tensors[name])
            else:
                tensor[:, slot].zero_()

    def begin_window(self, slot: int) -> None:
        """The slot's window is part of its state from now on."""
        self._windowed.add(slot)

    def cut_window(self, slot: int) -> None:
        """Takes out of a state what it had read at the last boundary: S - prod(decay) S_before, for each tensor.

        What is left is the state of the tokens since then, and the next boundary's `S_before`. Source: Chen et al. 2024
        (Stuffed Mamba, arXiv 2410.07145).
        """
        for state, before, sums in self._windows():
            state[:, slot].sub_(sums[:, slot].exp().unsqueeze(-2) * before[:, slot])
            before[:, slot].copy_(state[:, slot])
            sums[:, slot].zero_()
        self.window_tensors[ADDED_UP][:, slot] = 0

    def clip(self, slot: int, most: float) -> None:
        """Scales every head whose Frobenius norm is above `most` back to it: S <- S most / |S|.

        What a window is to take out later is scaled alike.
        """
        for tensor in recurrent_tensors(self.spec):
            state = self.tensors[tensor.name][:, slot]
            factor = (most / head_norms(state)).clamp(max=1.0).to(state.dtype)
            state.mul_(factor)
            if slot in self._windowed:
                self.window_tensors[PREVIOUS + tensor.name][:, slot].mul_(factor)

    def norms(self, slot: int) -> Tensor:
        """Frobenius norms of all heads of all layers of a slot: [N] fp64 on the pool's device."""
        tensors = (self.tensors[tensor.name][:, slot] for tensor in recurrent_tensors(self.spec))
        return torch.cat([head_norms(tensor).flatten() for tensor in tensors])

    def mean_decay(self, slot: int) -> float | None:
        """The geometric mean of the decays that were added up, over tokens, layers, heads and K; None of no tokens."""
        if not self.window_tensors or not (tokens := int(self.window_tensors[ADDED_UP][0, slot])):
            return None
        sums = torch.cat([sums[:, slot].flatten() for _, _, sums in self._windows()])
        return math.exp(float(sums.double().mean()) / tokens)

    def sums_of_decays(self) -> dict[int, Tensor]:
        """By the address of each layer's states, where its decays are added up: [slots, H, K] fp32."""
        if not self.window_tensors:
            return {}
        return {layer.data_ptr(): sums[i] for state, _, sums in self._windows() for i, layer in enumerate(state)}

    def count_decays(self, slot: int, tokens: int) -> None:
        """So many more decays have been added up."""
        self.window_tensors[ADDED_UP][:, slot] += tokens

    def _windows(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for tensor in recurrent_tensors(self.spec):
            before, sums = self.window_tensors[PREVIOUS + tensor.name], self.window_tensors[DECAYS + tensor.name]
            yield self.tensors[tensor.name], before, sums


def head_norms(state: Tensor) -> Tensor:
    """Frobenius norms of the matrices, or of the vectors, of all layers: [layers, *heads, 1, 1] or [layers, 1] fp64.

    Squares may overflow in fp32: only then it is done again in fp64, which takes ten times as long.
    """
    dims = (-2, -1) if state.dim() > 2 else (-1,)
    norms: Tensor = torch.linalg.vector_norm(state, dim=dims, keepdim=True, dtype=torch.float32).double()
    if not norms.isfinite().all():
        norms = torch.linalg.vector_norm(state, dim=dims, keepdim=True, dtype=torch.float64)
    return norms


def _zeros(spec: StateSpec, num_slots: int, device: str | torch.device) -> dict[str, Tensor]:
    return {
        tensor.name: torch.zeros(tensor.layers, num_slots, *tensor.shape, dtype=tensor.dtype, device=device)
        for tensor in spec.tensors
    }


def all_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite. A sum is finite only if every term is, which is far cheaper than to look at
    each; but it may overflow.
    """
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
