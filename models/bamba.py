"""Bamba (IBM et al. 2024): layers of Mamba-2, and a few of attention, in transformers' layout."""

import torch

from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.hybrid_backbone import HybridBackbone, read_ends
from ostinato.models.layers import RMSNorm, WeightReader
from ostinato.models.mamba2 import read_mixer
from ostinato.models.mamba2_hybrid import HybridConfig, read_attention, read_mamba, read_mlp
from ostinato.models.mamba2_hybrid import read_config as read_hybrid_config
from ostinato.models.mamba_layers import MambaOrWindowLayer
from ostinato.models.window import Rotary


def read_config(checkpoint: Checkpoint) -> HybridConfig:
    """transformers' BambaConfig, where half of every head is turned.

    Raises CheckpointError, UnsupportedModelError: as ConfigReader and `mamba2_hybrid.read_config`.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    inner = config.fraction_of(config.integer("hidden_size", 4096), "mamba_expand", 2)
    mamba = read_mamba(config, inner)
    attending = config.indices("attn_layer_indices", mamba.layers) if config.has("attn_layer_indices") else ()
    recurrent = tuple(layer for layer in range(mamba.layers) if layer not in attending)
    return read_hybrid_config(checkpoint, mamba, attending, recurrent, part=0.5)


def _read_layer(read: WeightReader, layer: int, c: HybridConfig) -> MambaOrWindowLayer:
    name, attends = f"model.layers.{layer}", layer in c.attending
    return MambaOrWindowLayer(
        index=(c.attending if attends else c.recurrent).index(layer),
        mixer_norm=RMSNorm(read.tensor(f"{name}.input_layernorm.weight", c.mamba.hidden), c.mamba.norm_eps),
        mixer=read_attention(read, f"{name}.self_attn", c) if attends else read_mixer(read, f"{name}.mamba", c.mamba),
        mlp_norm=RMSNorm(read.tensor(f"{name}.pre_ff_layernorm.weight", c.mamba.hidden), c.mamba.norm_eps),
        mlp=read_mlp(read, f"{name}.feed_forward", c),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> HybridBackbone:
    """The layout of transformers' BambaForCausalLM."""
    config, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    c = config.mamba
    return HybridBackbone(
        family="Bamba",
        architecture=checkpoint.architecture,
        vocab_size=c.vocab_size,
        state=config.state(dtype),
        sizes=config.attention,
        rotary=Rotary(config.rotary_width, config.rope_base, device),
        ends=read_ends(read, c, "model.final_layernorm.weight"),
        layers=[_read_layer(read, i, config) for i in range(c.layers)],
        read=read,
    )
