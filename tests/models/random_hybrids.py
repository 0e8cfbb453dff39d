"""Checkpoints of random tiny configurations with layers of sliding-window attention."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from tests.models import checkpoints, weights_hybrids
from tests.models.checkpoints import RandomCheckpoint

Config = dict[str, Any]


def recurrent_gemma(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """transformers' layout. `fixed`: entries of the config that are not drawn."""
    draw = random.Random(seed)
    heads = draw.choice((1, 2, 3, 4))
    hidden = heads * draw.choice((8, 12, 16))
    config = {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": "recurrent_gemma",
        "vocab_size": draw.randrange(400, 2000),
        "hidden_size": hidden,
        "num_hidden_layers": draw.randint(1, 5),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice((1, heads)),
        "head_dim": hidden // heads,
        "lru_width": draw.choice((None, hidden, hidden + 4 * heads)),
        "intermediate_size": 2 * draw.randrange(20, 60),
        "attention_window_size": draw.choice((1, 3, 8, 20)),
        "conv1d_width": draw.choice((4, 4, 3)),
        draw.choice(("block_types", "_block_types")): draw.choice(
            (["recurrent", "recurrent", "attention"], ["attention", "recurrent"], ["recurrent"])
        ),
        "partial_rotary_factor": 0.5,
        "rope_theta": draw.choice((10000.0, 500.0)),
        "attention_bias": draw.random() < 0.3,
        "hidden_activation": "gelu_pytorch_tanh",
        "embeddings_scale_by_sqrt_dim": True,
        "logits_soft_cap": draw.choice((30.0, 12.0)),
        "rms_norm_eps": draw.choice((1e-6, 1e-5)),
        "tie_word_embeddings": True,
        **fixed,
    }
    if "_block_types" in config:  # transformers reads the other name only: the published configs have its default
        config["_block_types"] = ["recurrent", "recurrent", "attention"]
    tensors = weights_hybrids.recurrent_gemma_tensors(config, seed)
    return _written(folder, config, tensors, draw, "recurrent_gemma")


def samba(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """fla's layout."""
    draw = random.Random(seed)
    heads, layers = draw.choice((1, 2, 3)), draw.randint(2, 4)
    hidden = heads * draw.choice((8, 12, 16))
    config = {
        "architectures": ["SambaForCausalLM"],
        "model_type": "samba",
        "vocab_size": draw.randrange(400, 2000),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "state_size": draw.choice((4, 8, 11, 16)),
        "conv_kernel": draw.choice((4, 3)),
        "expand": 2,
        "intermediate_size": 2 * hidden,
        "time_step_rank": draw.choice(("auto", draw.randint(1, 9))),
        "use_bias": draw.random() < 0.3,
        "use_conv_bias": True,
        "hidden_ratio": draw.choice((4, 2)),
        "norm_eps": draw.choice((1e-5, 1e-6)),
        "tie_word_embeddings": draw.random() < 0.3,
        "hidden_act": "swish",
        "attn": _attention(draw, heads, layers),
        **fixed,
    }
    return _written(folder, config, weights_hybrids.samba_tensors(_resolved_samba(config), seed), draw, "fla_models")


def _resolved_samba(config: Config) -> Config:
    rank = config["time_step_rank"]
    third = int(config["hidden_size"] * config["hidden_ratio"] * 2 / 3)
    return {
        **config,
        "mlp": 256 * math.ceil(third / 256),
        "time_step_rank": math.ceil(config["hidden_size"] / 16) if rank == "auto" else rank,
    }


def _attention(draw: random.Random, heads: int, layers: int) -> Config:
    return {
        "layers": sorted(draw.sample(range(layers), draw.randint(1, layers - 1) if layers > 1 else 1)),
        "num_heads": heads,
        "num_kv_heads": draw.choice((1, heads)),
        "qkv_bias": draw.random() < 0.3,
        "window_size": draw.choice((1, 3, 8, 20)),
        "rope_theta": draw.choice((10000.0, 500.0)),
    }


def _written(
    folder: Path, config: Config, tensors: checkpoints.Tensors, draw: random.Random, oracle: str
) -> RandomCheckpoint:
    dtype, container = draw.choice(("float32", "bfloat16")), draw.choice(("safetensors", "sharded"))
    checkpoints.write_folder(folder, config, tensors, dtype, container)  # type: ignore[arg-type]  # one of the two
    return RandomCheckpoint(folder, (oracle,), config["vocab_size"], f"{dtype} {container} {config}")
