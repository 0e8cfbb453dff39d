"""What every architecture offers to the engine, and how it declares its state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from ostinato.kernels.packed import Packed


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One kind of memory: `layers` tensors of `shape` for every slot, in `dtype`."""

    name: str
    layers: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes for one slot, all layers."""
        return self.layers * math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StateSpec:
    """All memory of one sequence. The state pool holds each tensor as [layers, slots, *shape].

    encoder_length: tokens of the encoder region, 0 where there is none. So many tokens at the beginning of a prompt, or
    all of a shorter one, are read at once, since each of them sees those behind it. There is no state inside of the
    region, and a state goes back to its region's end: where that is less than `encoder_length`, a longer prompt that
    begins with the same tokens would have given another one.
    """

    tensors: tuple[StateTensor, ...]
    encoder_length: int = 0

    @property
    def bytes_per_state(self) -> int:
        """Bytes for one slot, all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def dtype(self) -> torch.dtype:
        """Of the recurrent memory: of its largest tensor. Windows of attention are in the dtype of the computation."""
        recurrent = [tensor for tensor in self.tensors if not tensor.name.startswith("window_")]
        return max(recurrent or self.tensors, key=lambda tensor: tensor.num_bytes).dtype


StateTensors: TypeAlias = Mapping[str, Tensor]
"""The state pool by name: each [layers, slots, *shape]."""


class Model(Protocol):
    """A loaded architecture. It owns weights only: all memory of sequences is in the state pool."""

    family: str  # as its authors write it
    architecture: str
    vocab_size: int  # token ids are 0 .. vocab_size - 1
    dtype: torch.dtype  # of the projections' weights and inputs
    weight_bytes: int
    matmul_params: int  # elements of all projections that every token passes
    head_params: int  # elements of the output projection
    state_spec: StateSpec

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """Reads tokens: advances the states in place and returns the hidden vectors after the final norm.

        tokens: [T] int64, packed as `batch` says; of a sequence that begins, where the model has an encoder region, at
        least the whole region. Returns [T, hidden] in `dtype`.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [N, hidden], rows of what `forward` returned. Returns [N, rows] fp32.

        `rows` is the height of the output matrix: `vocab_size`, or more where the checkpoint's vocabulary is padded.
        """
        ...
