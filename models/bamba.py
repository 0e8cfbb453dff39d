"""Bamba (IBM et al. 2024): layers of Mamba-2, and a few of attention, in transformers' layout."""

import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from ostinato.models.base import StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.layers import Embedding, RMSNorm, WeightReader
from ostinato.models.mamba2 import read_mixer
from ostinato.models.mamba2_hybrid import HybridConfig, read_attention, read_mamba, read_mlp
from ostinato.models.mamba2_hybrid import read_config as read_hybrid_config
from ostinato.models.mamba_layers import MambaOrWindowLayer
from ostinato.models.window import Rotary, advance


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


class Bamba:
    """See `ostinato.models.base.Model`, and `HybridConfig.state` for the state, which also has `position`."""

    family = "Bamba"

    def __init__(self, checkpoint: Checkpoint, config: HybridConfig, device: torch.device, dtype: torch.dtype) -> None:
        c, read = config.mamba, WeightReader(checkpoint, device, dtype)
        self.architecture = checkpoint.architecture
        self.vocab_size, self.dtype = c.vocab_size, dtype
        self.state_spec = config.state(dtype)
        self._sizes = config.attention
        self._rotary = Rotary(config.rotary_width, config.rope_base, device)
        self._embedding = Embedding(read.matrix(c.embedding_name, c.vocab_rows, c.hidden))
        self._layers = [_read_layer(read, i, config) for i in range(c.layers)]
        self._norm = RMSNorm(read.tensor("model.final_layernorm.weight", c.hidden), c.norm_eps)
        self._head = read.head("lm_head.weight", c.vocab_rows, c.hidden, self._embedding, c.tied)
        self.weight_bytes = read.num_bytes
        self.matmul_params, self.head_params = read.matmul_params, read.head_params

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        places = advance(pool, batch, tokens.shape[0], self._rotary, self._sizes.reach)
        x = self._embedding(tokens)
        for layer in self._layers:
            x = layer(x, batch, places, pool, self.dtype)
        return self._norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._head(hidden)


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Bamba:
    """The layout of transformers' BambaForCausalLM."""
    return Bamba(checkpoint, read_config(checkpoint), device, dtype)
