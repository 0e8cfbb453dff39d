"""RWKV-5.2 "Eagle" (Peng et al. 2024), and the time mixing that it shares with RWKV-6.

Read in the original layout, and in that of the Rwkv5ForCausalLM which repositories bring along as code.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence
from ostinato.kernels.shift import token_shift
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.errors import UnsupportedModelError
from ostinato.models.layers import LayerNorm, WeightReader
from ostinato.models.rwkv_blocks import RWKV, Version, read_mixes
from ostinato.models.rwkv_layouts import TRANSFORMERS, Renamed, RWKVConfig, read_hf_config, read_original_config

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Shift(Protocol):
    """The token shift in front of the projections, and the decay: where RWKV-5 and RWKV-6 differ."""

    def __call__(self, x: Tensor, batch: Packed, last: Tensor) -> Inputs:
        """x: [T, C] in the model's dtype; last: [slots, C].

        Returns what goes into the projections to k, v, r and the gate, [T, C] each, and the logarithm of the decay,
        [T, heads, key] fp32.
        """


@dataclass(frozen=True, slots=True)
class FixedShift:
    """RWKV-5: constants. mix: [4, C] for k, v, r, g; log_decay: [heads, key]."""

    mix: Tensor
    log_decay: Tensor

    def __call__(self, x: Tensor, batch: Packed, last: Tensor) -> Inputs:
        """See `Shift`."""
        xk, xv, xr, xg = token_shift(x, self.mix, last, batch)
        return xk, xv, xr, xg, self.log_decay.expand(x.shape[0], -1, -1)


@dataclass(frozen=True, slots=True)
class TimeMix5:
    """Section 4 of the paper, for both versions. bonus: [heads, key]; the norm normalises heads apart."""

    shift: Shift
    key: Linear
    value: Linear
    receptance: Linear
    gate: Linear
    bonus: Tensor
    norm: LayerNorm
    output: Linear

    def __call__(self, x: Tensor, batch: Packed, shift: Tensor, state: Tensor, residual: Tensor) -> Tensor:
        """See `ostinato.models.rwkv_blocks.TimeMix`; state: [slots, heads, value, key]."""
        xk, xv, xr, xg, log_decay = self.shift(x, batch, shift)
        y = recurrence(
            self.receptance(xr).unflatten(-1, self.bonus.shape),
            self.key(xk).unflatten(-1, self.bonus.shape),
            self.value(xv).unflatten(-1, self.norm.weight.shape),
            state,
            batch,
            log_decay=log_decay,
            bonus=self.bonus,
        )
        gate = rows.silu(self.gate(xg))
        return self.output(self.norm(y, torch.float32).flatten(1) * gate, residual)


def read_time_mix(read: WeightReader, name: str, shift: Shift, c: RWKVConfig) -> TimeMix5:
    """Everything behind the token shift."""
    return TimeMix5(
        shift=shift,
        key=read.linear(f"{name}.key.weight", c.keys, c.hidden),
        value=read.linear(f"{name}.value.weight", c.values, c.hidden),
        receptance=read.linear(f"{name}.receptance.weight", c.keys, c.hidden),
        gate=read.linear(f"{name}.gate.weight", c.values, c.hidden),
        bonus=read.tensor(f"{name}.time_faaaa", c.heads, c.keys // c.heads),
        norm=LayerNorm(
            read.tensor(f"{name}.ln_x.weight", c.values).view(c.heads, -1),
            read.tensor(f"{name}.ln_x.bias", c.values).view(c.heads, -1),
            c.head_norm_eps,
        ),
        output=read.linear(f"{name}.output.weight", c.hidden, c.values),
    )


def state_shape(c: RWKVConfig) -> tuple[int, int, int]:
    """[heads, value, key]."""
    return c.heads, c.values // c.heads, c.keys // c.heads


def _read_time_mix(read: WeightReader, name: str, c: RWKVConfig) -> TimeMix5:
    decay = read.tensor(f"{name}.time_decay", c.heads, c.keys // c.heads)
    shift = FixedShift(read_mixes(read, f"{name}.time_mix", "kvrg", c.hidden), decay.exp().neg())
    return read_time_mix(read, name, shift, c)


VERSION = Version("RWKV-5.2", "time_mix", _read_time_mix, state_shape)


def load_original(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> RWKV:
    """The layout of the files published at BlinkDL's repositories."""
    config = read_original_config(checkpoint, heads=True)
    return RWKV(VERSION, WeightReader(checkpoint, device, dtype), config, checkpoint.architecture)


def load_hf(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> RWKV:
    """The layout of Rwkv5ForCausalLM. Raises UnsupportedModelError: it holds RWKV-5.0 or RWKV-5.1."""
    _require_5_2(checkpoint)
    config = read_hf_config(checkpoint, heads=True)
    read = WeightReader(Renamed(checkpoint, TRANSFORMERS), device, dtype)
    return RWKV(VERSION, read, config, checkpoint.architecture)


def _require_5_2(checkpoint: Checkpoint) -> None:
    """By what the config says, and by the decays: one for every channel, where older versions have one a head."""
    file = checkpoint.folder / "config.json"
    ConfigReader(checkpoint.config, file).only("model_version", "5_2")
    name = TRANSFORMERS.of("blocks.0.att.time_decay")
    if checkpoint.has(name) and checkpoint.shape(name)[1:] in ((), (1,), (1, 1)):
        raise UnsupportedModelError(
            f"{checkpoint.path}: RWKV-5.0 and RWKV-5.1 (one decay a head in '{name}') are not served; use RWKV-5.2"
        )
