"""RWKV-6 in the layout of flash-linear-attention's RWKV6ForCausalLM, whose keys may be narrower than its values."""

import math

import torch

from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.layers import LowRank, WeightReader
from ostinato.models.rwkv5 import TimeMix5, read_time_mix, state_shape
from ostinato.models.rwkv6 import DependentShift, shift_mix
from ostinato.models.rwkv_blocks import RWKV, Version
from ostinato.models.rwkv_layouts import Names, Renamed, RWKVConfig

_FLA = Names(
    top={"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"},
    blocks="model.layers",
    parts={
        "ln0": "pre_norm",
        "ln1": "attn_norm",
        "ln2": "ffn_norm",
        "att": "attn",
        "att.time_faaaa": "attn.bonus",
        "att.receptance": "attn.r_proj.linear",
        "att.key": "attn.k_proj.linear",
        "att.value": "attn.v_proj.linear",
        "att.gate": "attn.g_proj.linear",
        "att.output": "attn.o_proj",
        "att.ln_x": "attn.g_norm",
        "ffn": "ffn",
        "ffn.time_maa_k": "ffn.key.mu",
        "ffn.time_maa_r": "ffn.receptance.mu",
        "ffn.key": "ffn.key.linear",
        "ffn.receptance": "ffn.receptance.linear",
    },
)
_STORED, _USED = "rwkvg", "wkvrg"  # the inputs that are shifted, in this layout's order and in ours
_PUBLISHED_HEAD = 64


def read_config(checkpoint: Checkpoint) -> RWKVConfig:
    """fla's RWKV6Config. Options that change the mathematics and are not implemented are refused by name.

    Raises:
        CheckpointError: a value is missing, of another type or out of range.
        UnsupportedModelError: such an option is set.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    for key, served in (("hidden_act", "sqrelu"), ("attn", None), ("norm_bias", True), ("norm_first", True)):
        config.only(key, served)
    hidden, heads = config.integer("hidden_size", 2048), config.integer("num_heads", 4)
    keys = config.exact_fraction_of(hidden, "expand_k", 0.5)
    values = config.exact_fraction_of(hidden, "expand_v", 1.0)
    head_sizes = {config.divide("num_heads", channels, heads) for channels in (keys, values)}
    norm_eps = config.positive("norm_eps", 1e-5)
    return RWKVConfig(
        layers=config.parts("num_hidden_layers", 24),
        hidden=hidden,
        keys=keys,
        values=values,
        ffn=_ffn_size(config, hidden),
        vocab_size=config.integer("vocab_size", 32000),
        heads=heads,
        norm_eps=norm_eps,
        # Heads of the published models' shape are theirs, converted, and keep the epsilon that they were trained with.
        head_norm_eps=64e-5 if head_sizes == {_PUBLISHED_HEAD} else norm_eps,
        last_norm_eps=norm_eps,
        tied=config.flag("tie_word_embeddings", False),
    )


def _ffn_size(config: ConfigReader, hidden: int) -> int:
    """Where it is not given: `hidden_ratio` times the hidden size, up to a multiple of 32."""
    if config.has("intermediate_size"):
        return config.integer("intermediate_size")
    return 32 * math.ceil(config.fraction_of(hidden, "hidden_ratio", 3.5) / 32)


def _read_shift(read: WeightReader, name: str, c: RWKVConfig) -> DependentShift:
    """Low-rank matrices are stored [out, in]; their ranks are read from the shapes."""
    count, order = len(_USED), [_STORED.index(part) for part in _USED]
    rank = read.source.shape(f"{name}.x_proj.2.weight", 2)[1] // count
    down = read.matrix(f"{name}.x_proj.0.linear.weight", count * rank, c.hidden).unflatten(0, (count, rank))
    up = read.matrix(f"{name}.x_proj.2.weight", c.hidden, count * rank).unflatten(1, (count, rank))
    constants = read.tensor(f"{name}.x_bias", count, c.hidden)
    decay = f"{name}.w_proj.linear.lora"
    decay_rank = read.source.shape(f"{decay}.0.weight", 2)[0]
    return DependentShift(
        mix=shift_mix(read.vector(f"{name}.x_proj.0.mu", c.hidden)),
        down=read.projection(down[order].flatten(0, 1)),
        up=[read.projection(up[:, i], constants[i]) for i in order],
        decay=LowRank(
            down=read.linear(f"{decay}.0.weight", decay_rank, c.hidden),
            up=read.linear(f"{decay}.2.weight", c.keys, decay_rank, bias=f"{decay}.2.bias"),
        ),
        heads=c.heads,
    )


def _read_time_mix(read: WeightReader, name: str, c: RWKVConfig) -> TimeMix5:
    return read_time_mix(read, name, _read_shift(read, name, c), c)


VERSION = Version("RWKV-6", "time_maa", _read_time_mix, state_shape)


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> RWKV:
    """The layout of flash-linear-attention's RWKV6ForCausalLM."""
    read = WeightReader(Renamed(checkpoint, _FLA), device, dtype)
    return RWKV(VERSION, read, read_config(checkpoint), checkpoint.architecture)
