"""What RWKV-4, 5 and 6 (Peng et al. 2023 and 2024) have in common: all but time mixing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.kernels.shift import token_shift
from ostinato.models.base import StateSpec, StateTensor, StateTensors
from ostinato.models.layers import Embedding, LayerNorm, WeightReader
from ostinato.models.rwkv_layouts import RWKVConfig


class TimeMix(Protocol):
    """Time mixing of one layer, in the form of any version."""

    def __call__(self, x: Tensor, batch: Packed, shift: Tensor, state: Tensor, residual: Tensor) -> Tensor:
        """x: [T, C] in the model's dtype; shift: [slots, C]; state: [slots, ...] fp32; residual: [T, C] fp32.

        Returns residual and output together: [T, C] fp32.
        """


@dataclass(frozen=True, slots=True)
class ChannelMix:
    """Peng et al. 2023, section 3.1: `channel mixing`. mix: [2, C] for key and receptance."""

    mix: Tensor
    key: Linear
    receptance: Linear
    value: Linear

    def __call__(self, x: Tensor, batch: Packed, shift: Tensor, residual: Tensor) -> Tensor:
        """x: [T, C] in the model's dtype; shift: [slots, C]; residual: [T, C] fp32.

        Returns residual and output together: [T, C] fp32.
        """
        xk, xr = token_shift(x, self.mix, shift, batch)
        value = self.value(self.key.activated(xk, "relu_square", self.value.dtype))
        return residual + rows.sigmoid(self.receptance(xr)) * value


@dataclass(frozen=True, slots=True)
class RWKVBlock:
    """One layer. The norms give the model's dtype."""

    time_norm: LayerNorm
    time: TimeMix
    channel_norm: LayerNorm
    channel: ChannelMix


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one version of RWKV from another.

    family: as its authors write it. mixes: how its constants of the token shift are called, and what they mean: a
    `time_mix` is the share of the token itself, a `time_maa` that of the one before. time_mix: reads the time mixing
    of the block of that name. state: the shape of the recurrent state of a layer.
    """

    family: str
    mixes: Literal["time_mix", "time_maa"]
    time_mix: Callable[[WeightReader, str, RWKVConfig], TimeMix]
    state: Callable[[RWKVConfig], tuple[int, ...]]


class RWKV:
    """See `ostinato.models.base.Model`. State per layer: `wkv` fp32, as the version says, and two token-shift vectors.

    `read` names tensors as the original layout does.
    """

    def __init__(self, version: Version, read: WeightReader, config: RWKVConfig, architecture: str) -> None:
        c = config
        self.family, self.architecture = version.family, architecture
        self.vocab_size, self.dtype = c.vocab_size, read.dtype
        self.state_spec = state_spec(version, c, read.dtype)
        self._embedding = Embedding(read.matrix("emb.weight", c.vocab_size, c.hidden))
        self._embedding_norm = _read_norm(read, "blocks.0.ln0", c.hidden, c.norm_eps)
        self._blocks = [_read_block(read, f"blocks.{i}", version, c) for i in range(c.layers)]
        self._norm = _read_norm(read, "ln_out", c.hidden, c.last_norm_eps)
        self._head = read.head("head.weight", c.vocab_size, c.hidden, self._embedding, c.tied)
        self.weight_bytes = read.num_bytes
        self.matmul_params, self.head_params = read.matmul_params, read.head_params

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        x = self._embedding_norm(self._embedding(tokens), torch.float32)
        for i, block in enumerate(self._blocks):
            x = block.time(block.time_norm(x, self.dtype), batch, pool["time_shift"][i], pool["wkv"][i], x)
            x = block.channel(block.channel_norm(x, self.dtype), batch, pool["channel_shift"][i], x)
        return self._norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._head(hidden)


def state_spec(version: Version, config: RWKVConfig, dtype: torch.dtype) -> StateSpec:
    """The memory of one sequence. dtype: of the model's projections, and so of what the token shift remembers."""
    c = config
    return StateSpec(
        (
            StateTensor("wkv", c.layers, version.state(c), torch.float32),
            StateTensor("time_shift", c.layers, (c.hidden,), dtype),
            StateTensor("channel_shift", c.layers, (c.hidden,), dtype),
        )
    )


def read_mixes(read: WeightReader, name: str, parts: str, hidden: int) -> Tensor:
    """The constants `name`_p for each letter p of `parts`, as shares of the token before: [parts, hidden]."""
    mixes = torch.stack([read.vector(f"{name}_{part}", hidden) for part in parts])
    return 1 - mixes if name.endswith("time_mix") else mixes


def _read_norm(read: WeightReader, name: str, size: int, eps: float) -> LayerNorm:
    return LayerNorm(read.tensor(f"{name}.weight", size), read.tensor(f"{name}.bias", size), eps)


def _read_block(read: WeightReader, name: str, version: Version, c: RWKVConfig) -> RWKVBlock:
    return RWKVBlock(
        time_norm=_read_norm(read, f"{name}.ln1", c.hidden, c.norm_eps),
        time=version.time_mix(read, f"{name}.att", c),
        channel_norm=_read_norm(read, f"{name}.ln2", c.hidden, c.norm_eps),
        channel=ChannelMix(
            mix=read_mixes(read, f"{name}.ffn.{version.mixes}", "kr", c.hidden),
            key=read.linear(f"{name}.ffn.key.weight", c.ffn, c.hidden),
            receptance=read.linear(f"{name}.ffn.receptance.weight", c.hidden, c.hidden),
            value=read.linear(f"{name}.ffn.value.weight", c.hidden, c.ffn),
        ),
    )
