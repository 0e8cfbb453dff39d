"""Checkpoints of random tiny configurations of Granite 4, in the layout in which it is published."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from tests.models import checkpoints
from tests.models.checkpoints import RandomCheckpoint, Tensors
from tests.models.random_mamba2_hybrids import mamba_layer, shared_options
from tests.models.weights import LOGIT_STD, Draw
from tests.models.weights_hybrids import attention_tensors, prefixed

Config = dict[str, Any]


def granite4(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """With experts or without, attention with positions or without, multipliers in about the published range."""
    draw = random.Random(seed)
    layers = draw.randint(2, 4)
    config = {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        **shared_options(draw, layers),
        "mamba_n_groups": 1,
        "mamba_expand": 2,
        "layer_types": _kinds(draw, layers),
        "position_embedding_type": draw.choice(("nope", "rope", None)),
        "shared_intermediate_size": draw.randrange(20, 60),
        **draw.choice(({"num_local_experts": 0, "num_experts_per_tok": 0}, _experts(draw))),
        "residual_multiplier": round(draw.uniform(0.2, 1.0), 3),
        "logits_scaling": draw.choice((1.0, 4, 6.0)),
        "tie_word_embeddings": draw.random() < 0.5,
        **fixed,
    }
    # Embeddings that are the output matrix too are larger by the logits' divisor, and would drown everything else.
    shrunk = config["logits_scaling"] if config["tie_word_embeddings"] else 1
    config.setdefault("embedding_multiplier", round(draw.uniform(0.5, 3.0) / shrunk, 3))
    head = config["hidden_size"] // config["num_attention_heads"]
    config.setdefault("attention_multiplier", round(draw.uniform(0.5, 1.5) * head**-0.5, 5))
    config["mamba_n_heads"] = draw.choice([n for n in (1, 2, 4) if 2 * config["hidden_size"] % n == 0])
    dtype = draw.choice(("float32", "bfloat16"))
    checkpoints.write_folder(folder, config, granite4_tensors(config, seed), dtype, "safetensors")
    return RandomCheckpoint(folder, ("mamba2_hybrids",), config["vocab_size"], f"{dtype} {config}")


def _kinds(draw: random.Random, layers: int) -> list[str]:
    kinds = ["mamba", "attention", *draw.choices(("mamba", "attention"), k=layers - 2)]
    draw.shuffle(kinds)
    return kinds


def _experts(draw: random.Random) -> Config:
    return {"num_local_experts": draw.choice((4, 7, 16)), "num_experts_per_tok": draw.randint(1, 4)}


def granite4_tensors(config: Config, seed: int) -> Tensors:
    """The published names. `config`: its keys."""
    draw, d = Draw(seed), config["hidden_size"]
    std, tied = LOGIT_STD * config["logits_scaling"], config["tie_word_embeddings"]
    tensors = {"model.embed_tokens.weight": draw.matrix(config["vocab_size"], d, std if tied else LOGIT_STD)}
    for layer in range(config["num_hidden_layers"]):
        block = {f"{name}_layernorm.weight": draw.norm(d) for name in ("input", "post_attention")}
        if config["layer_types"][layer] == "attention":
            heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
            block |= prefixed("self_attn", attention_tensors(draw, d, heads, kv_heads, d // heads))
        else:
            block |= prefixed("mamba", mamba_layer(draw, config))
        block |= prefixed("shared_mlp", _joined_mlp(draw, d, config["shared_intermediate_size"]))
        if config["num_local_experts"]:
            block |= prefixed("block_sparse_moe", _mixture(draw, config))
        tensors |= prefixed(f"model.layers.{layer}", block)
    tensors["model.norm.weight"] = draw.last_norm(d, tied=tied)
    if not tied:
        tensors["lm_head.weight"] = draw.matrix(config["vocab_size"], d, std)
    return tensors


def _joined_mlp(draw: Draw, hidden: int, inner: int) -> Tensors:
    return {
        "input_linear.weight": draw.matrix(2 * inner, hidden),
        "output_linear.weight": draw.matrix(hidden, inner),
    }


def _mixture(draw: Draw, config: Config) -> Tensors:
    """Logits of the router far apart: where two are close, bf16 and fp32 choose different experts."""
    d, count = config["hidden_size"], config["num_local_experts"]
    experts = [_joined_mlp(draw, d, config["intermediate_size"]) for _ in range(count)]
    joined = {name: torch.stack([expert[name] for expert in experts]) for name in experts[0]}
    return {**joined, "router.layer.weight": draw.matrix(count, d, 2.5)}
