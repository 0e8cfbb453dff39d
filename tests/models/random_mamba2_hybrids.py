"""Checkpoints of random tiny configurations of Bamba and Falcon-H1, in transformers' layout."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.models import checkpoints
from tests.models.checkpoints import RandomCheckpoint, Tensors
from tests.models.weights import LOGIT_STD, Draw, mamba2_mixer
from tests.models.weights_hybrids import attention_tensors, mlp_tensors, prefixed

Config = dict[str, Any]


def bamba(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """One group: of several, transformers normalises all together, which no published model has."""
    draw = random.Random(seed)
    layers = draw.randint(2, 4)
    config = {
        "architectures": ["BambaForCausalLM"],
        "model_type": "bamba",
        **shared_options(draw, layers),
        "mamba_n_groups": 1,
        "mamba_expand": 2,
        "attn_layer_indices": sorted(draw.sample(range(layers), draw.randint(1, layers - 1))),
        **fixed,
    }
    config["mamba_n_heads"] = draw.choice([n for n in (1, 2, 4) if 2 * config["hidden_size"] % n == 0])
    return _written(folder, config, draw, seed)


def falcon_h1(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """With multipliers on everything, in about the range of the published ones."""
    draw = random.Random(seed)
    heads, groups = draw.choice((2, 4)), draw.choice((1, 2))
    config = {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        **shared_options(draw, draw.randint(1, 3)),
        "mamba_n_heads": heads,
        "mamba_n_groups": groups,
        "mamba_d_ssm": heads * draw.choice((6, 8, 12)),
        "mamba_rms_norm": draw.random() < 0.5,
        "mamba_norm_before_gate": draw.random() < 0.5,
        "mlp_bias": False,
        "projectors_bias": False,
        **{name: round(draw.uniform(0.5, 1.5), 3) for name in _MULTIPLIERS},
        "ssm_multipliers": [round(draw.uniform(0.5, 1.5), 3) for _ in range(5)],
        "mlp_multipliers": [round(draw.uniform(0.5, 1.5), 3) for _ in range(2)],
        **fixed,
    }
    return _written(folder, config, draw, seed)


_MULTIPLIERS = (
    "embedding_multiplier",
    "lm_head_multiplier",
    "key_multiplier",
    "attention_in_multiplier",
    "attention_out_multiplier",
    "ssm_in_multiplier",
    "ssm_out_multiplier",
)


def shared_options(draw: random.Random, layers: int) -> Config:
    heads = draw.choice((2, 4))
    return {
        "vocab_size": draw.randrange(400, 2000),
        "hidden_size": heads * draw.choice((8, 12, 16)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice((1, 2)),
        "intermediate_size": draw.randrange(30, 80),
        "mamba_d_state": draw.choice((4, 8, 11)),
        "mamba_d_conv": draw.choice((4, 3)),
        "mamba_d_head": "auto",
        "mamba_conv_bias": draw.random() < 0.7,
        "mamba_proj_bias": False,
        "attention_bias": False,
        "rope_theta": draw.choice((10000.0, 1e11)),
        "rms_norm_eps": draw.choice((1e-5, 1e-6)),
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }


def hybrid_tensors(config: Config, seed: int) -> Tensors:
    """transformers' names. `config`: its keys."""
    draw, d = Draw(seed), config["hidden_size"]
    tensors = {"model.embed_tokens.weight": draw.matrix(config["vocab_size"], d, LOGIT_STD)}
    for layer in range(config["num_hidden_layers"]):
        block = {f"{name}_layernorm.weight": draw.norm(d) for name in ("input", "pre_ff")}
        attending = config.get("attn_layer_indices")
        if attending is None or layer in attending:
            heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
            block |= prefixed("self_attn", attention_tensors(draw, d, heads, kv_heads, d // heads))
        if attending is None or layer not in attending:
            block |= prefixed("mamba", mamba_layer(draw, config))
        block |= prefixed("feed_forward", mlp_tensors(draw, d, config["intermediate_size"]))
        tensors |= prefixed(f"model.layers.{layer}", block)
    tensors["model.final_layernorm.weight"] = draw.norm(d)
    tensors["lm_head.weight"] = draw.matrix(config["vocab_size"], d, LOGIT_STD)
    return tensors


def mamba_layer(draw: Draw, config: Config) -> Tensors:
    heads = config["mamba_n_heads"]
    inner = config.get("mamba_d_ssm") or config["mamba_expand"] * config["hidden_size"]
    sizes = {
        "hidden_size": config["hidden_size"],
        "num_heads": heads,
        "head_dim": inner // heads,
        "n_groups": config["mamba_n_groups"],
        "state_size": config["mamba_d_state"],
        "conv_kernel": config["mamba_d_conv"],
        "use_conv_bias": config["mamba_conv_bias"],
        "use_bias": False,
    }
    tensors = mamba2_mixer(draw, sizes)
    if not config.get("mamba_rms_norm", True):
        del tensors["norm.weight"]
    return tensors


def _written(folder: Path, config: Config, draw: random.Random, seed: int) -> RandomCheckpoint:
    dtype = draw.choice(("float32", "bfloat16"))
    checkpoints.write_folder(folder, config, hybrid_tensors(config, seed), dtype, "safetensors")
    return RandomCheckpoint(folder, ("mamba2_hybrids",), config["vocab_size"], f"{dtype} {config}")
