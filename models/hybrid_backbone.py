"""The model around layers of which some, or all, attend over a window."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.models.base import StateSpec, StateTensors
from ostinato.models.layers import Embedding, RMSNorm, WeightReader
from ostinato.models.mamba_backbone import BackboneConfig
from ostinato.models.window import Places, Rotary, WindowSizes, advance


class Layer(Protocol):
    def __call__(self, x: Tensor, batch: Packed, places: Places, pool: StateTensors, dtype: torch.dtype) -> Tensor:
        """x: [T, hidden] fp32; pool: the model's; dtype: of the norms' outputs. Returns [T, hidden] fp32."""
        ...


@dataclass(frozen=True, slots=True)
class Ends:
    """What comes before the layers and after them. scale: of what is looked up; finish: applied to the logits."""

    embedding: Embedding
    norm: RMSNorm
    head: Linear
    scale: float = 1.0
    finish: Callable[[Tensor], Tensor] | None = None


def read_ends(
    read: WeightReader,
    c: BackboneConfig,
    norm: str,
    *,
    scale: float = 1.0,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Ends:
    """Of a model whose output projection is `lm_head`. norm: the name of the last norm's weight."""
    embedding = Embedding(read.matrix(c.embedding_name, c.vocab_rows, c.hidden))
    head = read.head("lm_head.weight", c.vocab_rows, c.hidden, embedding, c.tied)
    return Ends(embedding, RMSNorm(read.tensor(norm, c.hidden), c.norm_eps), head, scale, finish)


class HybridBackbone:
    """See `ostinato.models.base.Model`. `read` has read all the model's tensors.

    rotary: what turns queries and keys, or None; sizes: of the attention, whose `position` is in the state.
    """

    def __init__(
        self,
        *,
        family: str,
        architecture: str,
        vocab_size: int,
        read: WeightReader,
        state: StateSpec,
        sizes: WindowSizes,
        rotary: Rotary | None,
        ends: Ends,
        layers: Sequence[Layer],
    ) -> None:
        self.family, self.architecture, self.vocab_size = family, architecture, vocab_size
        self.dtype, self.state_spec = read.dtype, state
        self._sizes, self._rotary, self._ends, self._layers = sizes, rotary, ends, layers
        self.weight_bytes = read.num_bytes
        self.matmul_params, self.head_params = read.matmul_params, read.head_params

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        places = advance(pool, batch, tokens.shape[0], self._rotary, self._sizes.reach)
        x = self._ends.embedding(tokens)
        if self._ends.scale != 1:
            x = x * self._ends.scale
        for layer in self._layers:
            x = layer(x, batch, places, pool, self.dtype)
        return self._ends.norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        logits = self._ends.head(hidden)
        return logits if self._ends.finish is None else self._ends.finish(logits)
