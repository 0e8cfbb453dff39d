"""What transformers' hybrids of Mamba-2 and full attention share: Bamba, Falcon-H1 and Granite 4.

Their attention has no window, so memory would grow with every token. Here it holds a fixed number of tokens: the first
few, called sinks, and the last ones (`kernels/attention.py`). Up to that number it is the full attention of the model;
beyond, it is not, but text goes on fluently (Xiao et al. 2023, StreamingLLM).
"""

import math
from dataclasses import dataclass

import torch

from ostinato.models.base import StateSpec, StateTensor
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.errors import UnsupportedModelError
from ostinato.models.layers import GatedMLP, WeightReader
from ostinato.models.mamba2_config import Mamba2Config
from ostinato.models.window import WindowAttention, WindowSizes, read_rotary

ATTENTION_WINDOW = 4096  # tokens that are held unless the checkpoint's `attention_window` says otherwise
SINKS = 4  # of them: what StreamingLLM found to be enough


@dataclass(frozen=True, slots=True)
class HybridConfig:
    """mamba: also of the model around the layers. attending: layers that have attention; recurrent: that have Mamba-2.

    Sizes in elements.
    """

    mamba: Mamba2Config
    attention: WindowSizes
    attending: tuple[int, ...]
    recurrent: tuple[int, ...]
    rotary_width: int
    rope_base: float
    mlp: int

    def state(self, dtype: torch.dtype) -> StateSpec:
        """Per layer with Mamba-2 `ssm` [heads, head, state] fp32 and the `conv` tail; per layer with attention a ring.

        dtype: of the computation.
        """
        c, layers = self.mamba, len(self.recurrent)
        tensors = self.attention.state(len(self.attending), dtype)
        if layers:
            tensors += (
                StateTensor("ssm", layers, (c.heads, c.head, c.state_size), torch.float32),
                StateTensor("conv", layers, (c.conv_width - 1, c.channels), dtype),
            )
        return StateSpec(tensors)


def read_mamba(config: ConfigReader, inner: int) -> Mamba2Config:
    """The keys `mamba_*`, where x and z are `inner` wide. Raises CheckpointError, UnsupportedModelError."""
    config.only("hidden_act", "silu", "swish")
    for key in ("mamba_proj_bias", "projectors_bias", "attention_bias", "mlp_bias"):
        config.only(key, False)
    heads, groups = config.integer("mamba_n_heads", 128), config.integer("mamba_n_groups", 1)
    head = config.divide("mamba_n_heads", inner, heads)
    config.only("mamba_d_head", "auto", head)
    config.divide("mamba_n_groups", heads, groups)
    vocab_size = config.integer("vocab_size", 128000)
    return Mamba2Config(
        layers=config.parts("num_hidden_layers", 32),
        hidden=config.integer("hidden_size", 4096),
        heads=heads,
        head=head,
        groups=groups,
        state_size=config.integer("mamba_d_state", 256),
        conv_width=config.integer("mamba_d_conv", 4),
        vocab_size=vocab_size,
        vocab_rows=vocab_size,
        norm_eps=config.positive("rms_norm_eps", 1e-5),
        step_limits=config.interval("time_step_limit", 0.0, math.inf),
        projection_bias=False,
        conv_bias=config.flag("mamba_conv_bias", True),
        tied=config.flag("tie_word_embeddings", False),
        embedding_name="model.embed_tokens.weight",
    )


def hold_window(checkpoint: Checkpoint) -> int:
    """How many tokens layers of full attention hold, sinks included. Raises UnsupportedModelError: too few."""
    window = checkpoint.hold_window(ATTENTION_WINDOW)
    if window <= SINKS:
        file = checkpoint.folder / "config.json"
        raise UnsupportedModelError(f"{file}: an attention window of {window} has no room beside {SINKS} sinks")
    return window


def read_config(
    checkpoint: Checkpoint,
    mamba: Mamba2Config,
    attending: tuple[int, ...],
    recurrent: tuple[int, ...],
    *,
    part: float = 1.0,
    kv_heads: int | None = 8,
) -> HybridConfig:
    """The rest of it. By default, `part` of a head is turned, and there are `kv_heads`; None: as many as of queries.

    Raises CheckpointError, UnsupportedModelError.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    heads = config.integer("num_attention_heads", 32)
    kv_heads = config.integer("num_key_value_heads", heads if kv_heads is None else kv_heads)
    config.divide("num_key_value_heads", heads, kv_heads)
    head = (
        config.integer("head_dim")
        if config.has("head_dim")
        else config.divide("num_attention_heads", mamba.hidden, heads)
    )
    rotary_width, rope_base = read_rotary(config, head, base=10000.0, part=part)
    return HybridConfig(
        mamba=mamba,
        attention=WindowSizes(heads, kv_heads, head, hold_window(checkpoint), SINKS),
        attending=attending,
        recurrent=recurrent,
        rotary_width=rotary_width,
        rope_base=rope_base,
        mlp=config.integer("intermediate_size", 14336),
    )


def read_attention(
    read: WeightReader, name: str, c: HybridConfig, *, key_scale: float = 1.0, output_scale: float = 1.0
) -> WindowAttention:
    """The layer whose tensors begin with `name`; keys and outputs are multiplied. Raises CheckpointError."""
    hidden, widths = c.mamba.hidden, c.attention.joined
    parts = [(f"{name}.{part}_proj.weight", out) for part, out in zip("qkv", widths, strict=True)]
    output = read.linear(f"{name}.o_proj.weight", hidden, widths[0])
    qkv = read.joined(parts, hidden)
    return WindowAttention(c.attention, qkv, output, key_scale=key_scale, output_scale=output_scale)


def read_mlp(read: WeightReader, name: str, c: HybridConfig) -> GatedMLP:
    """The MLP whose tensors begin with `name`. Raises CheckpointError."""
    gate_up = [(f"{name}.{part}_proj.weight", c.mlp) for part in ("gate", "up")]
    down = read.linear(f"{name}.down_proj.weight", c.mamba.hidden, c.mlp)
    return GatedMLP(read.joined(gate_up, c.mamba.hidden), down)
