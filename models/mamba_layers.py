"""The layer of models that have Mamba in some layers and attention over a window in the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from ostinato.models.base import StateTensors
from ostinato.models.layers import GatedMLP, RMSNorm
from ostinato.models.mamba import MambaMixer
from ostinato.models.mamba2 import Mamba2Mixer
from ostinato.models.mixture import MixtureOfExperts
from ostinato.models.window import Places, WindowAttention


@dataclass(frozen=True, slots=True)
class MambaOrWindowLayer:
    """A mixer and an MLP, each behind a norm and with a residual connection. index: among the layers of its kind."""

    index: int
    mixer_norm: RMSNorm
    mixer: MambaMixer | Mamba2Mixer | WindowAttention
    mlp_norm: RMSNorm
    mlp: GatedMLP | MixtureOfExperts

    def __call__(self, x: Tensor, batch: Packed, places: Places, pool: StateTensors, dtype: torch.dtype) -> Tensor:
        """x: [T, hidden] fp32; pool: the model's; dtype: of the norms' outputs. Returns [T, hidden] fp32."""
        u, i = self.mixer_norm(x, dtype), self.index
        if isinstance(self.mixer, WindowAttention):
            x = self.mixer(u, batch, places, pool["window_keys"][i], pool["window_values"][i], x)
        else:
            x = self.mixer(u, batch, pool["conv"][i], pool["ssm"][i], x)
        return self.mlp(self.mlp_norm(x, dtype), x)
