"""What a layer of flash-linear-attention's models may hold: what mixers are given, and the parts that several share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.conv import causal_conv
from ostinato.kernels.packed import Packed
from ostinato.models.base import StateTensors
from ostinato.models.config import ConfigReader
from ostinato.models.layers import RMSNorm, WeightReader
from ostinato.models.window import Places, Rotary, WindowAttention, WindowSizes


@dataclass(frozen=True, slots=True)
class Reading:
    """One forward pass. past, positions, turns: as in `Places`, for each of the rotaries; empty where there is none."""

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


def read_convolution(read: WeightReader, parts: Sequence[tuple[str, int]], width: int) -> ShortConvolution:
    """Convolutions (name, channels) as one, in that order."""
    weights = [read.tensor(name, channels, 1, width).squeeze(1) for name, channels in parts]
    return ShortConvolution(torch.cat(weights).T.contiguous())


def sigmoid_gated(norm: RMSNorm, o: Tensor, gate: Tensor) -> Tensor:
    """norm(o) sigmoid(gate), where most families gate with SiLU. o: [T, heads, value]; gate: as many. All fp32."""
    return norm(o, torch.float32) * rows.sigmoid(gate).view(o.shape)


@dataclass(frozen=True, slots=True)
class WindowLayers:
    """The layers that attend over a sliding window in place of the family's own mixer. rope: the rotary base."""

    layers: tuple[int, ...]
    sizes: WindowSizes
    rope: float
    bias: bool


def read_window_layers(config: ConfigReader, layers: int, hidden: int) -> WindowLayers | None:
    """fla's `attn` entry: an object, or a list of them for different layers, which must agree in all else.

    Raises:
        CheckpointError: as ConfigReader; layers that are not there, or named twice.
        UnsupportedModelError: no window, so that the memory would grow with the text; objects that differ.
    """
    found = [_read_entry(entry, layers, hidden) for entry in config.sections("attn")]
    if not found:
        return None
    chosen = sorted(layer for each in found for layer in each.layers)
    if len({replace(each, layers=()) for each in found}) > 1:
        raise config.unsupported("attn", "has entries that differ in more than their layers")
    if len(set(chosen)) < len(chosen):
        raise config.error("attn", "layers that are named once", chosen)
    return replace(found[0], layers=tuple(chosen)) if chosen else None


def _read_entry(entry: ConfigReader, layers: int, hidden: int) -> WindowLayers:
    if not entry.has("window_size"):
        raise entry.unsupported("attn", "has no window_size: its memory would grow with the text")
    heads = entry.integer("num_heads")
    kv_heads = entry.integer("num_kv_heads", heads)
    entry.divide("num_kv_heads", heads, kv_heads)
    head = entry.divide("num_heads", hidden, heads)
    entry.divide("num_heads", hidden, 2 * heads)  # rotary pairs
    return WindowLayers(
        layers=entry.indices("layers", layers),
        sizes=WindowSizes(heads=heads, kv_heads=kv_heads, head=head, window=entry.integer("window_size")),
        rope=entry.positive("rope_theta", 10000.0),
        bias=entry.flag("qkv_bias", False),
    )


WINDOW_STATE = ("window_keys", "window_values")


@dataclass(frozen=True, slots=True)
class WindowMixer:
    """`WindowAttention` as a mixer. Its state is WINDOW_STATE."""

    attention: WindowAttention
    rotary: Rotary

    def __call__(self, u: Tensor, reading: Reading, state: StateTensors, residual: Tensor) -> Tensor:
        """See `Mixer`."""
        places = Places(reading.past, reading.positions, reading.turns[self.rotary], far_turn=None)
        return self.attention(u, reading.batch, places, state["window_keys"], state["window_values"], residual)


def read_window_mixer(
    read: WeightReader, hidden: int, window: WindowLayers, rotary: Rotary, name: str, layer: int
) -> WindowMixer:
    """fla's Attention as a mixer. Raises CheckpointError, as WeightReader."""
    del layer
    return WindowMixer(read_attention(read, hidden, window, name), rotary)


def read_attention(read: WeightReader, hidden: int, window: WindowLayers, name: str) -> WindowAttention:
    """The tensors of fla's Attention. Raises CheckpointError, as WeightReader."""
    sizes = [(f"{name}.{part}_proj.weight", size) for part, size in zip("qkv", window.sizes.joined, strict=True)]
    biases = [f"{name}.{part}_proj.bias" for part in "qkv"] if window.bias else []
    output = read.linear(f"{name}.o_proj.weight", hidden, window.sizes.joined[0])
    return WindowAttention(window.sizes, read.joined(sizes, hidden, biases=biases), output)
