"""Checkpoints of random tiny configurations of xLSTM, whose weights are drawn here too."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from tests.models import checkpoints
from tests.models.checkpoints import RandomCheckpoint, Tensors
from tests.models.weights import LOGIT_STD, Draw

Config = dict[str, Any]


def xlstm(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """transformers' layout, or the published one, which names two sizes otherwise. `fixed`: entries not drawn."""
    draw = random.Random(seed)
    heads, published = draw.randint(1, 4), draw.random() < 0.5
    hidden, layers = 4 * heads * draw.randint(2, 6), draw.randint(1, 3)
    sizes = ("embedding_dim", "num_blocks") if published else ("hidden_size", "num_hidden_layers")
    config = {
        "architectures": ["xLSTMForCausalLM"],
        "model_type": "xlstm",
        "vocab_size": draw.randrange(400, 2000),
        **dict(zip(sizes, (hidden, layers), strict=True)),
        "num_heads": heads,
        "qk_dim_factor": draw.choice((0.5, 0.5, 1.0, 0.25)),
        "v_dim_factor": draw.choice((1.0, 1.0, 0.5, 2.0)),
        "ffn_proj_factor": draw.choice((2.667, 1.3)),
        "ffn_round_up_to_multiple_of": draw.choice((64, 8)),
        "gate_soft_cap": draw.choice((15.0, 15.0, 5.0, 20.0)),
        "output_logit_soft_cap": draw.choice((30.0, 10.0)),
        "norm_eps": draw.choice((1e-6, 1e-5)),
        "weight_mode": draw.choice(("single", "single", "fused")),
        "tie_word_embeddings": False,
        "use_bias": False,
        "add_out_norm": True,
        **fixed,
    }
    dtype, container = draw.choice(("float32", "bfloat16")), draw.choice(("safetensors", "sharded"))
    tensors = xlstm_tensors(config, hidden, layers, seed)
    checkpoints.write_folder(folder, config, tensors, dtype, container)
    return RandomCheckpoint(folder, ("xlstm",), config["vocab_size"], f"{dtype} {container} {config}")


def xlstm_tensors(config: Config, d: int, layers: int, seed: int) -> Tensors:
    """transformers' names. `d`: the hidden size. Input gates reach from almost closed to their cap."""
    draw = Draw(seed)
    tensors = {"backbone.embeddings.weight": draw.matrix(config["vocab_size"], d, LOGIT_STD)}
    for layer in range(layers):
        block = {
            "norm_mlstm.weight": draw.norm(d),
            **{f"mlstm_layer.{name}": tensor for name, tensor in _mlstm(draw, config, d).items()},
            "norm_ffn.weight": draw.norm(d),
            **{f"ffn.{name}": tensor for name, tensor in _ffn(draw, config, d).items()},
        }
        tensors.update({f"backbone.blocks.{layer}.{name}": tensor for name, tensor in block.items()})
    tensors["backbone.out_norm.weight"] = draw.norm(d)
    tensors["lm_head.weight"] = draw.matrix(config["vocab_size"], d, LOGIT_STD)
    return tensors


def _mlstm(draw: Draw, config: Config, d: int) -> Tensors:
    heads, cap = config["num_heads"], config["gate_soft_cap"]
    keys, values = int(d * config["qk_dim_factor"]), int(d * config["v_dim_factor"])
    q = draw.matrix(keys, d)
    projections = {
        "q": q,
        # Not independent of the queries: or else q n would be almost zero now and then, and errors grow large.
        "k": 0.6 * q + draw.matrix(keys, d, 0.8),
        "v": draw.matrix(values, d),
        "ogate_preact": draw.matrix(values, d),
        "igate_preact": draw.matrix(heads, d, 2.0),
        "fgate_preact": draw.matrix(heads, d, 2.0),
    }
    biases = {"igate_preact": draw.uniform(-cap, cap, heads), "fgate_preact": draw.uniform(-1.0, 6.0, heads)}
    joined = {"qkv_opreact": ("q", "k", "v", "ogate_preact"), "ifgate_preact": ("igate_preact", "fgate_preact")}
    if config["weight_mode"] == "fused":
        projections, biases = (_joined(parts, joined) for parts in (projections, biases))
    return {
        **{f"{name}.weight": tensor for name, tensor in projections.items()},
        **{f"{name}.bias": tensor for name, tensor in biases.items()},
        "multihead_norm.weight": draw.norm(values),
        "out_proj.weight": draw.matrix(d, values, 1.5),
    }


def _ffn(draw: Draw, config: Config, d: int) -> Tensors:
    multiple = config["ffn_round_up_to_multiple_of"]
    size = int((d * config["ffn_proj_factor"] + multiple - 1) // multiple) * multiple
    up = {"proj_up_gate": draw.matrix(size, d), "proj_up": draw.matrix(size, d)}
    if config["weight_mode"] == "fused":
        up = _joined(up, {"proj_up_gate_z": ("proj_up_gate", "proj_up")})
    return {f"{name}.weight": tensor for name, tensor in (up | {"proj_down": draw.matrix(d, size)}).items()}


def _joined(parts: Tensors, names: dict[str, tuple[str, ...]]) -> Tensors:
    return {
        name: torch.cat([parts[part] for part in those])
        for name, those in names.items()
        if all(part in parts for part in those)
    }
