"""What models of flash-linear-attention share: the size of their MLP, and layers of attention in place of their own."""

import math
from dataclasses import dataclass

from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.errors import UnsupportedModelError
from ostinato.models.layers import WeightReader
from ostinato.models.window import WindowAttention, WindowSizes


def mlp_size(config: ConfigReader, hidden: int) -> int:
    """Two thirds of `hidden_ratio` times the hidden size, up to a multiple of 256. Raises as ConfigReader."""
    return 256 * math.ceil(config.fraction_of(2 * hidden, "hidden_ratio", 4, parts=3) / 256)


@dataclass(frozen=True, slots=True)
class WindowLayers:
    """layers: those that attend, in order; rope_base: of their rotary embedding, which turns whole heads."""

    layers: tuple[int, ...]
    sizes: WindowSizes
    bias: bool
    rope_base: float


def read_window_layers(checkpoint: Checkpoint, layers: int, hidden: int) -> WindowLayers | None:
    """The key `attn`: an object, or a list of one. None where it is absent.

    Raises:
        CheckpointError: as ConfigReader.
        UnsupportedModelError: several kinds of such layers, or no `window_size`, without which memory would grow.
    """
    file = checkpoint.folder / "config.json"
    found = ConfigReader(checkpoint.config, file).sections("attn")
    if not found:
        return None
    attn = found[0]
    if len(found) > 1:
        raise UnsupportedModelError(f"{file}: attn describes {len(found)} kinds of layers, and one kind is served")
    if not attn.has("window_size"):
        raise UnsupportedModelError(f"{file}: attn has no window_size: memory would grow with every token")
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
