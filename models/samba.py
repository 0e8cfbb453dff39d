"""Samba (Ren et al. 2024): layers of Mamba and of sliding-window attention, in the flash-linear-attention layout."""

import math
from dataclasses import dataclass

import torch

from ostinato.models.base import StateSpec, StateTensor
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.fla_mixers import WindowLayers, mlp_size, read_attention, read_window_layers
from ostinato.models.hybrid_backbone import HybridBackbone, read_ends
from ostinato.models.layers import GatedMLP, RMSNorm, WeightReader
from ostinato.models.mamba import MambaConfig, read_mixer
from ostinato.models.mamba_layers import MambaOrWindowLayer
from ostinato.models.window import Rotary, WindowSizes

# What attends where the config does not say: every other layer of a model of 18.
DEFAULT_WINDOW = WindowLayers(tuple(range(1, 18, 2)), WindowSizes(18, 18, 128, 2048), bias=False, rope_base=10000.0)


@dataclass(frozen=True, slots=True)
class SambaConfig:
    """mamba: of the layers that do not attend, and of the model around all of them. mlp: in elements."""

    mamba: MambaConfig
    window: WindowLayers
    mlp: int

    def state(self, dtype: torch.dtype) -> StateSpec:
        """`position`, and per layer `ssm` [inner, state] fp32 and the `conv` tail, or the ring of its window.

        dtype: of the computation.
        """
        c, attending = self.mamba, len(self.window.layers)
        recurrent = c.layers - attending
        tensors = self.window.sizes.state(attending, dtype)
        if recurrent:
            tensors += (
                StateTensor("ssm", recurrent, (c.inner, c.state_size), torch.float32),
                StateTensor("conv", recurrent, (c.conv_width - 1, c.inner), dtype),
            )
        return StateSpec(tensors)


def read_config(checkpoint: Checkpoint) -> SambaConfig:
    """fla's SambaConfig, whose `intermediate_size` is overruled by `expand`, and has nothing to do with the MLP.

    Raises CheckpointError, UnsupportedModelError: as ConfigReader and `read_window_layers`.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("hidden_act", "swish", "silu")
    config.only("attnres_block_size", None)
    hidden, layers = config.integer("hidden_size", 2304), config.parts("num_hidden_layers", 18)
    rank = checkpoint.config.get("time_step_rank", "auto")
    vocab_size = config.integer("vocab_size", 32000)
    mamba = MambaConfig(
        layers=layers,
        hidden=hidden,
        inner=config.fraction_of(hidden, "expand", 2),
        state_size=config.integer("state_size", 16),
        conv_width=config.integer("conv_kernel", 4),
        dt_rank=math.ceil(hidden / 16) if rank == "auto" else config.integer("time_step_rank"),
        vocab_size=vocab_size,
        vocab_rows=vocab_size,
        norm_eps=config.positive("norm_eps", 1e-5),
        projection_bias=config.flag("use_bias", False),
        conv_bias=True,  # always: fla's Samba does not pass `use_conv_bias` on
        tied=config.flag("tie_word_embeddings", False),
        embedding_name="backbone.embeddings.weight",
    )
    window = read_window_layers(checkpoint, layers, hidden)
    return SambaConfig(mamba, window or DEFAULT_WINDOW, mlp_size(config, hidden))


def _read_layer(read: WeightReader, layer: int, c: SambaConfig) -> MambaOrWindowLayer:
    name, hidden = f"backbone.layers.{layer}", c.mamba.hidden
    attends = layer in c.window.layers
    before = sum(other < layer for other in c.window.layers)
    gate_up = [(f"{name}.mlp.{part}_proj.weight", c.mlp) for part in ("gate", "up")]
    return MambaOrWindowLayer(
        index=before if attends else layer - before,
        mixer_norm=RMSNorm(read.tensor(f"{name}.mixer_norm.weight", hidden), c.mamba.norm_eps),
        mixer=read_attention(read, f"{name}.mixer", c.window, hidden)
        if attends
        else read_mixer(read, f"{name}.mixer", c.mamba),
        mlp_norm=RMSNorm(read.tensor(f"{name}.mlp_norm.weight", hidden), c.mamba.norm_eps),
        mlp=GatedMLP(read.joined(gate_up, hidden), read.linear(f"{name}.mlp.down_proj.weight", hidden, c.mlp)),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> HybridBackbone:
    """The layout of flash-linear-attention's SambaForCausalLM."""
    config, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    c, window = config.mamba, config.window
    return HybridBackbone(
        family="Samba",
        architecture=checkpoint.architecture,
        vocab_size=c.vocab_size,
        state=config.state(dtype),
        sizes=window.sizes,
        rotary=Rotary(window.sizes.head, window.rope_base, device),
        ends=read_ends(read, c, "backbone.norm_f.weight"),
        layers=[_read_layer(read, i, config) for i in range(c.layers)],
        read=read,
    )
