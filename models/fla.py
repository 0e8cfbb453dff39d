"""What the models of flash-linear-attention share: everything around the mixer, and the short convolution before it.

A family is its mixer, the sizes of it and the state that it keeps; `FLAModel` is the rest.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ostinato.kernels.conv import causal_conv
from ostinato.kernels.packed import Packed
from ostinato.models.base import StateSpec, StateTensor, StateTensors
from ostinato.models.config import ConfigReader
from ostinato.models.layers import Embedding, GatedMLP, RMSNorm, WeightReader


@dataclass(frozen=True, slots=True)
class Shell:
    """Sizes in elements of what surrounds the mixers."""

    layers: int
    hidden: int
    mlp: int
    vocab_size: int
    norm_eps: float
    tied: bool


def read_shell(config: ConfigReader, *, layers: int = 24, hidden_ratio: float = 4) -> Shell:
    """The options that every fla config has. `layers`, `hidden_ratio`: what the family takes where they are absent.

    Raises CheckpointError, UnsupportedModelError: as ConfigReader.
    """
    config.only("hidden_act", "swish", "silu")
    for key, *served in (("attn", None), ("attnres_block_size", None), ("elementwise_affine", True)):
        config.only(key, *served)
    hidden = config.integer("hidden_size", 2048)
    return Shell(
        layers=config.integer("num_hidden_layers", layers),
        hidden=hidden,
        mlp=_mlp_size(config, hidden, hidden_ratio),
        vocab_size=config.integer("vocab_size", 32000),
        norm_eps=config.positive("norm_eps", 1e-6),
        tied=config.flag("tie_word_embeddings", False),
    )


def _mlp_size(config: ConfigReader, hidden: int, hidden_ratio: float) -> int:
    """Where it is not given: two thirds of `hidden_ratio` times the hidden size, up to a multiple of 256."""
    if config.has("intermediate_size"):
        return config.integer("intermediate_size")
    return 256 * math.ceil(config.fraction_of(2 * hidden, "hidden_ratio", hidden_ratio, parts=3) / 256)


class Mixer(Protocol):
    """The part of a layer that has memory."""

    def __call__(self, u: Tensor, batch: Packed, state: StateTensors, residual: Tensor) -> Tensor:
        """u: [T, hidden]; state: this layer's tensors by name, each [slots, ...]; residual: [T, hidden] fp32.

        Returns residual and output together: [T, hidden] fp32.
        """


@dataclass(frozen=True, slots=True)
class ShortConvolution:
    """A causal depthwise convolution and SiLU, over channels side by side. weight: [width, channels] fp32."""

    weight: Tensor

    def __call__(self, x: Tensor, batch: Packed, tail: Tensor) -> Tensor:
        """x: [T, channels]; tail: [slots, width - 1, channels]. Returns [T, channels] fp32."""
        return causal_conv(x, self.weight, None, tail, batch)


def read_convolution(read: WeightReader, parts: Sequence[tuple[str, int]], width: int) -> ShortConvolution:
    """Convolutions (name, channels) as one, in that order."""
    weights = [read.tensor(name, channels, 1, width).squeeze(1) for name, channels in parts]
    return ShortConvolution(torch.cat(weights).T.contiguous())


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: the mixer and the MLP, each behind a norm and with a residual connection."""

    mixer_norm: RMSNorm
    mixer: Mixer
    mlp_norm: RMSNorm
    mlp: GatedMLP

    def __call__(self, x: Tensor, batch: Packed, state: StateTensors, dtype: torch.dtype) -> Tensor:
        """x: [T, hidden] fp32; state as in `Mixer`; dtype: of the norms' outputs. Returns [T, hidden] fp32."""
        x = self.mixer(self.mixer_norm(x, dtype), batch, state, x)
        return self.mlp(self.mlp_norm(x, dtype), x)


def _read_block(read: WeightReader, name: str, shell: Shell, mixer: Mixer) -> Block:
    hidden, gate_up = shell.hidden, [(f"{name}.mlp.{part}_proj.weight", shell.mlp) for part in ("gate", "up")]
    return Block(
        mixer_norm=RMSNorm(read.tensor(f"{name}.attn_norm.weight", hidden), shell.norm_eps),
        mixer=mixer,
        mlp_norm=RMSNorm(read.tensor(f"{name}.mlp_norm.weight", hidden), shell.norm_eps),
        mlp=GatedMLP(read.joined(gate_up, hidden), read.linear(f"{name}.mlp.down_proj.weight", hidden, shell.mlp)),
    )


class FLAModel:
    """See `ostinato.models.base.Model`."""

    def __init__(
        self,
        family: str,
        architecture: str,
        read: WeightReader,
        shell: Shell,
        state: Sequence[StateTensor],
        read_mixer: Callable[[str, int], Mixer],
    ) -> None:
        """state: what the mixers keep; read_mixer: makes one of its name, such as `model.layers.3.attn`, and layer."""
        self.family, self.architecture = family, architecture
        self.vocab_size, self.dtype = shell.vocab_size, read.dtype
        self.state_spec = StateSpec(tuple(state))
        self._embedding = Embedding(read.matrix("model.embeddings.weight", shell.vocab_size, shell.hidden))
        self._blocks = [
            _read_block(read, name, shell, read_mixer(f"{name}.attn", i))
            for i, name in enumerate(f"model.layers.{i}" for i in range(shell.layers))
        ]
        self._norm = RMSNorm(read.tensor("model.norm.weight", shell.hidden), shell.norm_eps)
        self._head = read.head("lm_head.weight", shell.vocab_size, shell.hidden, self._embedding, shell.tied)
        self.weight_bytes = read.num_bytes
        self.matmul_params, self.head_params = read.matmul_params, read.head_params

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        x = self._embedding(tokens)
        for i, block in enumerate(self._blocks):
            x = block(x, batch, {name: tensor[i] for name, tensor in pool.items()}, self.dtype)
        return self._norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._head(hidden)
