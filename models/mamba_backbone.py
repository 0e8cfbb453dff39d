"""The model of the Mamba family: norms, mixers with a residual connection, and nothing else."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from ostinato.models.base import StateSpec, StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.layers import Embedding, RMSNorm, WeightReader


class BackboneConfig(Protocol):
    """What the model needs to know of its configuration. Sizes in elements."""

    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding: padded in the original layout."""
        ...

    @property
    def norm_eps(self) -> float: ...
    @property
    def tied(self) -> bool: ...
    @property
    def embedding_name(self) -> str: ...
    def state(self, dtype: torch.dtype) -> StateSpec:
        """`ssm` and `conv` of every layer. dtype: of the computation."""
        ...


class Mixer(Protocol):
    def __call__(self, u: Tensor, batch: Packed, conv: Tensor, ssm: Tensor, residual: Tensor) -> Tensor:
        """u: [T, hidden]; conv, ssm: of this layer, every slot; residual: [T, hidden] fp32, added to the result."""
        ...


Config = TypeVar("Config", bound=BackboneConfig)


class MambaBackbone:
    """See `ostinato.models.base.Model`. `read_mixer` reads the layer whose tensors begin with a name."""

    def __init__(
        self,
        family: str,
        checkpoint: Checkpoint,
        config: Config,
        read_mixer: Callable[[WeightReader, str, Config], Mixer],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        c, read = config, WeightReader(checkpoint, device, dtype)
        self.family, self.architecture = family, checkpoint.architecture
        self.vocab_size, self.dtype = c.vocab_size, dtype
        self.state_spec = c.state(dtype)
        self._embedding = Embedding(read.matrix(c.embedding_name, c.vocab_rows, c.hidden))
        self._layers = [
            (
                RMSNorm(read.tensor(f"backbone.layers.{i}.norm.weight", c.hidden), c.norm_eps),
                read_mixer(read, f"backbone.layers.{i}.mixer", config),
            )
            for i in range(c.layers)
        ]
        self._norm = RMSNorm(read.tensor("backbone.norm_f.weight", c.hidden), c.norm_eps)
        self._head = read.head("lm_head.weight", c.vocab_rows, c.hidden, self._embedding, c.tied)
        self.weight_bytes = read.num_bytes
        self.matmul_params, self.head_params = read.matmul_params, read.head_params

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        x = self._embedding(tokens)
        for i, (norm, mixer) in enumerate(self._layers):
            x = mixer(norm(x, self.dtype), batch, pool["conv"][i], pool["ssm"][i], x)
        return self._norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._head(hidden)
