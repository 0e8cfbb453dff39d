"""Checkpoints of random tiny configurations of flash-linear-attention's families, in its layout."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from tests.models import checkpoints
from tests.models.checkpoints import RandomCheckpoint
from tests.models.fla_weights import fla_tensors

Config = dict[str, Any]


def gla(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """`fixed`, here and below: entries of the config that are not drawn."""
    draw = random.Random(seed)
    config = {
        **_shell(draw, "GLA"),
        **_retention_heads(draw, expand_k=(0.5, 0.5, 1, 0.25), expand_v=(1, 1, 2, 0.5)),
        "clamp_min": draw.choice((None, -1.0)),
        **fixed,
    }
    return _write(draw, config, seed, folder)


def retnet(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    draw = random.Random(seed)
    heads = _retention_heads(draw, expand_k=(1, 1, 0.5), expand_v=(2, 2, 1, 0.5))
    return _write(draw, {**_shell(draw, "RetNet"), **heads, **fixed}, seed, folder)


def _retention_heads(draw: random.Random, expand_k: tuple[float, ...], expand_v: tuple[float, ...]) -> Config:
    heads = draw.randint(1, 4)
    return {
        "hidden_size": 4 * heads * draw.randint(3, 8),
        "num_heads": heads,
        "num_kv_heads": draw.choice((None, None, 1, heads)),
        "expand_k": draw.choice(expand_k),
        "expand_v": draw.choice(expand_v),
        "use_output_gate": draw.random() < 0.8,
        "use_short_conv": False,
        "feature_map": None,
    }


def hgrn(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    draw = random.Random(seed)
    config = {
        **_shell(draw, "HGRN"),
        "hidden_size": 4 * draw.randint(5, 20),
        "expand_ratio": draw.choice((1, 1, 2, 0.5)),
        "use_lower_bound": draw.random() < 0.8,
        **fixed,
    }
    return _write(draw, config, seed, folder)


def hgrn2(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    draw = random.Random(seed)
    heads, size = draw.randint(1, 4), draw.choice((8, 12, 16, 24))
    by_heads = draw.random() < 0.3
    config = {
        **_shell(draw, "HGRN2"),
        "hidden_size": heads * size,
        "expand_ratio": None if by_heads else size,
        "num_heads": heads if by_heads else draw.choice((None, heads)),
        "use_lower_bound": draw.random() < 0.8,
        **fixed,
    }
    return _write(draw, config, seed, folder)


def delta_net(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    draw = random.Random(seed)
    heads = draw.randint(1, 4)
    config = {
        **_shell(draw, "DeltaNet"),
        "hidden_size": 4 * heads * draw.randint(3, 8),
        "num_heads": heads,
        "expand_k": draw.choice((1, 1, 0.5)),
        "expand_v": draw.choice((1, 1, 2, 0.5)),
        "use_gate": draw.random() < 0.3,
        **_delta_rule(draw),
        **fixed,
    }
    return _write(draw, config, seed, folder)


def gated_deltanet(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    draw = random.Random(seed)
    config = {
        **_shell(draw, "GatedDeltaNet"),
        **_value_heads(draw, expand_v=(2, 2, 1, 0.5)),
        "use_gate": draw.random() < 0.8,
        "output_gate_activation": draw.choice(("swish", "swish", "silu", "sigmoid")),
        **_delta_rule(draw),
        **fixed,
    }
    return _write(draw, config, seed, folder)


def kda(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    draw = random.Random(seed)
    lower_bound = draw.choice((None, None, -5.0))
    config = {
        **_shell(draw, "KDA"),
        **_value_heads(draw, expand_v=(1, 1, 2, 0.5)),
        "lower_bound": lower_bound,
        "safe_gate": lower_bound is not None and draw.random() < 0.5,
        **_delta_rule(draw),
        **fixed,
    }
    return _write(draw, config, seed, folder)


def _value_heads(draw: random.Random, expand_v: tuple[float, ...]) -> Config:
    heads = draw.randint(1, 3)
    return {
        "hidden_size": 4 * draw.randint(6, 20),
        "num_heads": heads,
        "num_v_heads": draw.choice((None, heads, 2 * heads)),
        "head_dim": draw.choice((8, 12, 16)),
        "expand_v": draw.choice(expand_v),
    }


def _delta_rule(draw: random.Random) -> Config:
    return {
        "conv_size": draw.choice((4, 4, 3, 2)),
        "use_short_conv": True,
        "allow_neg_eigval": draw.random() < 0.4,
    }


def _shell(draw: random.Random, family: str) -> Config:
    layers = draw.randint(1, 3)
    return {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": family.lower(),
        "vocab_size": draw.randrange(400, 2000),
        "num_hidden_layers": layers,
        "hidden_ratio": draw.choice((4, 2)),
        "intermediate_size": draw.choice((None, 40, 72)),
        "norm_eps": draw.choice((1e-6, 1e-5, 1e-3)),
        "fuse_norm": draw.random() < 0.5,
        "tie_word_embeddings": draw.random() < 0.3,
        "hidden_act": "swish",
        "attn": _attention(draw, layers) if layers > 1 and draw.random() < 0.4 else None,
    }


def _attention(draw: random.Random, layers: int) -> Config:
    """Layers that attend in place of their mixer: some, but not all. Every hidden size is a multiple of four."""
    heads = draw.choice((1, 2))
    return {
        "layers": sorted(draw.sample(range(layers), draw.randint(1, layers - 1))),
        "num_heads": heads,
        "num_kv_heads": draw.choice((None, 1, heads)),
        "qkv_bias": draw.random() < 0.5,
        "window_size": draw.choice((1, 5, 16, 30, 200)),
        "rope_theta": draw.choice((10000.0, 10000.0, 500.0)),
    }


def resolved_fla(config: Config) -> Config:
    """With the width of the MLP."""
    third = int(config["hidden_size"] * config["hidden_ratio"] * 2 / 3)
    return {**config, "intermediate_size": config["intermediate_size"] or 256 * math.ceil(third / 256)}


def _write(draw: random.Random, config: Config, seed: int, folder: Path) -> RandomCheckpoint:
    dtype = draw.choice(("float32", "bfloat16"))
    container = draw.choice(("safetensors", "sharded"))
    checkpoints.write_folder(folder, config, fla_tensors(resolved_fla(config), seed), dtype, container)
    return RandomCheckpoint(folder, ("fla_naive",), config["vocab_size"], f"{dtype} {container} {config}")
