"""Granite 4 (IBM 2025): layers of Mamba-2, a few of attention, and experts in all or none, in transformers' layout.

What the layers give is multiplied by a constant before it is added. Attention does not turn its queries and keys unless
the configuration says so: their order is known from Mamba-2.
"""

from dataclasses import dataclass, replace

import torch

from ostinato.kernels.experts import Experts
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.errors import CheckpointError
from ostinato.models.hybrid_backbone import HybridBackbone, read_ends
from ostinato.models.layers import GatedMLP, RMSNorm, WeightReader
from ostinato.models.mamba2 import Mamba2Mixer, read_mixer
from ostinato.models.mamba2_hybrid import HybridConfig, read_attention, read_mamba
from ostinato.models.mamba2_hybrid import read_config as read_hybrid_config
from ostinato.models.mamba_layers import MambaOrWindowLayer
from ostinato.models.mixture import MixtureOfExperts
from ostinato.models.window import Rotary, WindowAttention

RECURRENT, ATTENDING = ("mamba", "linear_attention"), ("attention", "full_attention")  # published, and newer names


@dataclass(frozen=True, slots=True)
class Granite4Config:
    """hybrid: its `mlp` is the width of what all tokens share. experts: in every layer; chosen: for every token.

    inner: width of an expert. turned: whether queries and keys are. The rest are multipliers; attention: of the scores.
    """

    hybrid: HybridConfig
    experts: int
    chosen: int
    inner: int
    turned: bool
    embedding: float
    residual: float
    attention: float
    logits: float


def read_config(checkpoint: Checkpoint) -> Granite4Config:
    """transformers' GraniteMoeHybridConfig.

    Raises CheckpointError, UnsupportedModelError: as ConfigReader and `mamba2_hybrid.read_config`.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("position_embedding_type", "nope", "rope")
    mamba = read_mamba(config, config.fraction_of(config.integer("hidden_size", 4096), "mamba_expand", 2))
    mamba = replace(
        mamba, vocab_size=config.integer("vocab_size", 32000), norm_eps=config.positive("rms_norm_eps", 1e-6)
    )
    kinds = _read_kinds(config, checkpoint, mamba.layers)
    attending = tuple(i for i, kind in enumerate(kinds) if kind in ATTENDING)
    recurrent = tuple(i for i, kind in enumerate(kinds) if kind in RECURRENT)
    hybrid = read_hybrid_config(
        checkpoint, replace(mamba, vocab_rows=mamba.vocab_size), attending, recurrent, kv_heads=None
    )
    experts, chosen = config.parts("num_local_experts", 8, least=0), config.integer("num_experts_per_tok", 2, least=0)
    if experts:
        config.at_most("num_experts_per_tok", chosen, experts)
    return Granite4Config(
        hybrid=replace(hybrid, mlp=config.integer("shared_intermediate_size", 1024)),
        experts=experts,
        chosen=chosen,
        inner=config.integer("intermediate_size", 11008),
        turned=config.has("position_embedding_type") and checkpoint.config["position_embedding_type"] == "rope",
        embedding=config.number("embedding_multiplier", 1.0),
        residual=config.number("residual_multiplier", 1.0),
        attention=config.positive("attention_multiplier", 1.0),
        logits=config.positive("logits_scaling", 1.0),
    )


def _read_kinds(config: ConfigReader, checkpoint: Checkpoint, layers: int) -> tuple[str, ...]:
    key = "layers_block_type" if config.has("layers_block_type") else "layer_types"
    kinds = config.words(key, RECURRENT[:1] * layers, RECURRENT + ATTENDING)
    if len(kinds) != layers:
        file = checkpoint.folder / "config.json"
        raise CheckpointError(f"{file}: {key} names {len(kinds)} layers, and there are {layers}")
    return kinds


def _read_mixer(read: WeightReader, name: str, attends: bool, c: Granite4Config) -> Mamba2Mixer | WindowAttention:
    if not attends:
        return replace(read_mixer(read, f"{name}.mamba", c.hybrid.mamba), output_scale=c.residual)
    scale = c.attention * c.hybrid.attention.head**0.5  # of the keys, whose scores are divided by it
    return read_attention(read, f"{name}.self_attn", c.hybrid, key_scale=scale, output_scale=c.residual)


def _read_mlp(read: WeightReader, name: str, c: Granite4Config) -> GatedMLP | MixtureOfExperts:
    hidden, width, inner, count = c.hybrid.mamba.hidden, c.hybrid.mlp, c.inner, c.experts
    shared = GatedMLP(
        gate_up=read.linear(f"{name}.shared_mlp.input_linear.weight", 2 * width, hidden),
        down=read.linear(f"{name}.shared_mlp.output_linear.weight", hidden, width),
        output_scale=c.residual,
    )
    if not count:
        return shared
    name = f"{name}.block_sparse_moe"
    gate_up = read.matrix(f"{name}.input_linear.weight", count, 2 * inner, hidden)
    down = read.matrix(f"{name}.output_linear.weight", count, hidden, inner)
    read.matmul_params += c.chosen * 3 * inner * hidden
    return MixtureOfExperts(
        router=read.linear(f"{name}.router.layer.weight", count, hidden),
        experts=Experts(gate_up.unbind(), down.unbind()),
        shared=shared,
        chosen=c.chosen,
        normalize=True,
        scale=c.residual,
    )


def _read_layer(read: WeightReader, layer: int, c: Granite4Config) -> MambaOrWindowLayer:
    name, m, attends = f"model.layers.{layer}", c.hybrid.mamba, layer in c.hybrid.attending
    return MambaOrWindowLayer(
        index=(c.hybrid.attending if attends else c.hybrid.recurrent).index(layer),
        mixer_norm=RMSNorm(read.tensor(f"{name}.input_layernorm.weight", m.hidden), m.norm_eps),
        mixer=_read_mixer(read, name, attends, c),
        mlp_norm=RMSNorm(read.tensor(f"{name}.post_attention_layernorm.weight", m.hidden), m.norm_eps),
        mlp=_read_mlp(read, name, c),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> HybridBackbone:
    """The layout of transformers' GraniteMoeHybridForCausalLM."""
    config, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    hybrid, c = config.hybrid, config.hybrid.mamba
    return HybridBackbone(
        family="Granite 4",
        architecture=checkpoint.architecture,
        vocab_size=c.vocab_size,
        state=hybrid.state(dtype),
        sizes=hybrid.attention,
        rotary=Rotary(hybrid.rotary_width, hybrid.rope_base, device) if config.turned else None,
        ends=read_ends(
            read, c, "model.norm.weight", scale=config.embedding, finish=lambda logits: logits / config.logits
        ),
        layers=[_read_layer(read, i, config) for i in range(c.layers)],
        read=read,
    )
