"""What a layer of flash-linear-attention's models may hold: what mixers are given, and the parts that several share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.conv import causal_conv
from ostinato.kernels.packed import Packed
from ostinato.models.base import StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.errors import CheckpointError, UnsupportedModelError
from ostinato.models.layers import RMSNorm, WeightReader
from ostinato.models.window import Places, Rotary, WindowAttention, WindowSizes


@dataclass(frozen=True, slots=True)
class Reading:
    """One forward pass. past, positions, turns: as in `Places`, for each rotary; empty where the model has none."""

    batch: Packed
    past: Tensor
    positions: Tensor
    turns: Mapping[Rotary, Tensor]


class Mixer(Protocol):
    """The part of a layer that has memory."""

    def __call__(self, u: Tensor, reading: Reading, state: StateTensors, residual: Tensor) -> Tensor:
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


def read_convolution(read: WeightReader, name: str, sizes: Mapping[str, int], width: int) -> ShortConvolution:
    """The convolutions `name`.x_conv1d of channels x -> how many, as one, in that order."""
    weights = [read.tensor(f"{name}.{x}_conv1d.weight", size, 1, width).squeeze(1) for x, size in sizes.items()]
    return ShortConvolution(torch.cat(weights).T.contiguous())


def delta_state(
    heads: int, value: int, key: int, conv_width: int, channels: int, dtype: torch.dtype
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The state of a layer with the delta rule behind a convolution, for `Family`. dtype: of the computation."""
    return {
        "recurrent": ((heads, value, key), torch.float32),
        "conv": ((conv_width - 1, channels), dtype),
    }


def sigmoid_gated(norm: RMSNorm, o: Tensor, gate: Tensor) -> Tensor:
    """norm(o) sigmoid(gate), where most families gate with SiLU. o: [T, heads, value]; gate: as many. All fp32."""
    return norm(o, torch.float32) * rows.sigmoid(gate).view(o.shape)


def mlp_size(config: ConfigReader, hidden: int, hidden_ratio: float = 4) -> int:
    """Two thirds of `hidden_ratio` times the hidden size, up to a multiple of 256. Raises as ConfigReader."""
    return 256 * math.ceil(config.fraction_of(2 * hidden, "hidden_ratio", hidden_ratio, parts=3) / 256)


@dataclass(frozen=True, slots=True)
class WindowLayers:
    """layers: those that attend, in order; rope_base: of their rotary embedding, which turns whole heads."""

    layers: tuple[int, ...]
    sizes: WindowSizes
    bias: bool
    rope_base: float


def read_window_layers(checkpoint: Checkpoint, layers: int, hidden: int) -> WindowLayers | None:
    """The key `attn`: an object, or a list of them for different layers, which must agree in all else.

    None where it is absent, or names no layers.

    Raises:
        CheckpointError: as ConfigReader; a layer that two objects name.
        UnsupportedModelError: no `window_size`, without which memory would grow; objects that differ.
    """
    file = checkpoint.folder / "config.json"
    found = []
    for attn in ConfigReader(checkpoint.config, file).sections("attn"):
        if not attn.has("window_size"):
            raise UnsupportedModelError(f"{file}: attn has no window_size: memory would grow with every token")
        found.append(_read_entry(attn, layers, hidden))
    chosen = [layer for entry in found for layer in entry.layers]
    if len({replace(entry, layers=()) for entry in found}) > 1:
        raise UnsupportedModelError(f"{file}: attn describes several kinds of layers, and one kind is served")
    if len(set(chosen)) < len(chosen):
        raise CheckpointError(f"{file}: attn names a layer twice: {sorted(chosen)}")
    return replace(found[0], layers=tuple(sorted(chosen))) if chosen else None


def _read_entry(attn: ConfigReader, layers: int, hidden: int) -> WindowLayers:
    heads = attn.integer("num_heads")
    kv_heads = attn.integer("num_kv_heads", heads)
    attn.divide("num_kv_heads", heads, kv_heads)
    head = attn.divide("num_heads", hidden, heads)
    attn.divide("num_heads", head, 2)
    return WindowLayers(
        layers=attn.indices("layers", layers),
        sizes=WindowSizes(heads, kv_heads, head, attn.integer("window_size")),
        bias=attn.flag("qkv_bias", False),
        rope_base=attn.positive("rope_theta", 10000.0),
    )


def read_attention(read: WeightReader, name: str, window: WindowLayers, hidden: int) -> WindowAttention:
    """The layer whose tensors begin with `name`. Raises CheckpointError, as WeightReader."""
    projections = [f"{name}.{part}_proj" for part in "qkv"]
    parts = [(f"{part}.weight", out) for part, out in zip(projections, window.sizes.joined, strict=True)]
    qkv = read.joined(parts, hidden, biases=[f"{part}.bias" for part in projections] if window.bias else [])
    return WindowAttention(window.sizes, qkv, read.linear(f"{name}.o_proj.weight", hidden, window.sizes.joined[0]))


WINDOW_STATE = ("window_keys", "window_values")


@dataclass(frozen=True, slots=True)
class WindowMixer:
    """`WindowAttention` as a mixer. Its state is WINDOW_STATE."""

    attention: WindowAttention
    rotary: Rotary

    def __call__(self, u: Tensor, reading: Reading, state: StateTensors, residual: Tensor) -> Tensor:
        """See `Mixer`."""
        places = Places(reading.past, reading.positions, reading.turns[self.rotary], None)
        return self.attention(u, reading.batch, places, state["window_keys"], state["window_values"], residual)
