"""RWKV-4 (Peng et al. 2023), in its original layout and in that of transformers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.kernels.shift import token_shift
from ostinato.kernels.wkv4 import wkv4
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.layers import WeightReader
from ostinato.models.rwkv_blocks import RWKV, Version, read_mixes
from ostinato.models.rwkv_layouts import TRANSFORMERS, Renamed, RWKVConfig, read_hf_config, read_original_config


@dataclass(frozen=True, slots=True)
class TimeMix4:
    """Section 3.1 of the paper. mix: [3, C] for k, v, r; decay, bonus: w and u, [attention channels]."""

    mix: Tensor
    decay: Tensor
    bonus: Tensor
    key: Linear
    value: Linear
    receptance: Linear
    output: Linear

    def __call__(self, x: Tensor, batch: Packed, shift: Tensor, state: Tensor, residual: Tensor) -> Tensor:
        """See `ostinato.models.rwkv_blocks.TimeMix`; state: [slots, 3, attention channels]."""
        xk, xv, xr = token_shift(x, self.mix, shift, batch)
        y = wkv4(self.key(xk), self.value(xv), self.decay, self.bonus, state, batch)
        return self.output(rows.sigmoid(self.receptance(xr)) * y, residual)


def _read_time_mix(read: WeightReader, name: str, c: RWKVConfig) -> TimeMix4:
    return TimeMix4(
        mix=read_mixes(read, f"{name}.time_mix", "kvr", c.hidden),
        decay=read.vector(f"{name}.time_decay", c.values).exp().neg(),
        bonus=read.vector(f"{name}.time_first", c.values),
        key=read.linear(f"{name}.key.weight", c.values, c.hidden),
        value=read.linear(f"{name}.value.weight", c.values, c.hidden),
        receptance=read.linear(f"{name}.receptance.weight", c.values, c.hidden),
        output=read.linear(f"{name}.output.weight", c.hidden, c.values),
    )


VERSION = Version("RWKV-4", "time_mix", _read_time_mix, lambda c: (3, c.values))


def load_original(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> RWKV:
    """The layout of the files published at BlinkDL's repositories."""
    config = read_original_config(checkpoint, heads=False)
    return RWKV(VERSION, WeightReader(checkpoint, device, dtype), config, checkpoint.architecture)


def load_hf(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> RWKV:
    """The layout of transformers' RwkvForCausalLM."""
    config = read_hf_config(checkpoint, heads=False)
    read = WeightReader(Renamed(checkpoint, TRANSFORMERS), device, dtype)
    return RWKV(VERSION, read, config, checkpoint.architecture)
