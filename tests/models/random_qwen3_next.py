"""Checkpoints of random tiny configurations of Qwen3-Next, in the layout in which it is published."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from tests.models import checkpoints
from tests.models.checkpoints import RandomCheckpoint, Tensors
from tests.models.weights import LOGIT_STD, Draw, step_bias
from tests.models.weights_hybrids import attention_tensors, mlp_tensors, prefixed

Config = dict[str, Any]


def qwen3_next(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """Dense layers are named one by one, or left between those with experts, or there are none."""
    draw = random.Random(seed)
    layers = draw.randint(2, 4)
    config = {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "num_hidden_layers": layers,
        **_sizes(draw),
        **_attention(draw, layers),
        **_experts(draw, layers),
        "rms_norm_eps": draw.choice((1e-5, 1e-6)),
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        **fixed,
    }
    dtype = draw.choice(("float32", "bfloat16"))
    checkpoints.write_folder(folder, config, qwen3_next_tensors(config, seed), dtype, "safetensors")
    return RandomCheckpoint(folder, ("mamba2_hybrids",), config["vocab_size"], f"{dtype} {config}")


def _sizes(draw: random.Random) -> Config:
    heads = draw.choice((1, 2, 3))
    return {
        "vocab_size": draw.randrange(400, 2000),
        "hidden_size": 4 * draw.randint(6, 14),
        "intermediate_size": draw.randrange(30, 80),
        "linear_num_key_heads": heads,
        "linear_num_value_heads": heads * draw.choice((1, 2, 3)),
        "linear_key_head_dim": draw.choice((8, 12, 16)),
        "linear_value_head_dim": draw.choice((8, 10, 16)),
        "linear_conv_kernel_dim": draw.choice((4, 3)),
    }


def _attention(draw: random.Random, layers: int) -> Config:
    kinds = ["full_attention", *(draw.choice(("full_attention", "linear_attention")) for _ in range(layers - 2))]
    kinds = ["linear_attention", *kinds]
    draw.shuffle(kinds)
    rotary = {"rope_theta": draw.choice((10000.0, 1e7)), "partial_rotary_factor": draw.choice((0.25, 0.5))}
    kv_heads = draw.choice((1, 2))
    return {
        **draw.choice(({"layer_types": kinds}, {"full_attention_interval": 2})),
        **draw.choice((rotary, {"rope_parameters": {**rotary, "rope_type": "default"}})),
        "num_attention_heads": kv_heads * draw.choice((1, 2)),
        "num_key_value_heads": kv_heads,
        "head_dim": draw.choice((8, 16, 24)),
        "attention_bias": False,
    }


def _experts(draw: random.Random, layers: int) -> Config:
    dense = ({"mlp_only_layers": [draw.randrange(layers)]}, {"decoder_sparse_step": 2}, {"mlp_only_layers": []})
    count = draw.choice((4, 7, 16))
    return {
        **draw.choice(dense),
        "num_experts": count,
        "num_experts_per_tok": draw.randint(1, 4),
        "moe_intermediate_size": draw.randrange(8, 30),
        "shared_expert_intermediate_size": draw.randrange(8, 30),
        "norm_topk_prob": draw.random() < 0.7,
    }


def qwen3_next_tensors(config: Config, seed: int) -> Tensors:
    """transformers' names on disk. `config`: its keys."""
    draw, d = Draw(seed), config["hidden_size"]
    tensors = {"model.embed_tokens.weight": draw.matrix(config["vocab_size"], d, LOGIT_STD)}
    for layer in range(config["num_hidden_layers"]):
        block = {f"{name}_layernorm.weight": draw.norm(d) - 1 for name in ("input", "post_attention")}
        if _attends(config, layer):
            block |= prefixed("self_attn", _gated_attention(draw, config))
        else:
            block |= prefixed("linear_attn", _gated_deltanet(draw, config))
        make = _mixture if _has_experts(config, layer) else _dense
        tensors |= prefixed(f"model.layers.{layer}", {**block, **prefixed("mlp", make(draw, config))})
    tensors["model.norm.weight"] = draw.norm(d) - 1
    tensors["lm_head.weight"] = draw.matrix(config["vocab_size"], d, LOGIT_STD)
    return tensors


def _attends(config: Config, layer: int) -> bool:
    if "layer_types" in config:
        return bool(config["layer_types"][layer] == "full_attention")
    return bool((layer + 1) % config["full_attention_interval"] == 0)


def _has_experts(config: Config, layer: int) -> bool:
    dense = layer in config.get("mlp_only_layers", [])
    return not dense and (layer + 1) % config.get("decoder_sparse_step", 1) == 0


def _gated_attention(draw: Draw, config: Config) -> Tensors:
    d, heads, head = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    tensors = attention_tensors(draw, d, heads, config["num_key_value_heads"], head)
    norms = {f"{name}_norm.weight": draw.norm(head) - 1 for name in "qk"}
    return {**tensors, **norms, "q_proj.weight": draw.matrix(2 * heads * head, d, 1.5)}


def _gated_deltanet(draw: Draw, config: Config) -> Tensors:
    d, width, value_heads = config["hidden_size"], config["linear_conv_kernel_dim"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = value_heads * config["linear_value_head_dim"]
    return {
        "in_proj_qkvz.weight": draw.matrix(2 * (keys + values), d),
        "in_proj_ba.weight": draw.matrix(2 * value_heads, d),
        "conv1d.weight": draw.normal(2 * keys + values, 1, width, std=width**-0.5),
        "A_log": draw.uniform(math.log(0.3), math.log(16.0), value_heads),
        "dt_bias": step_bias(draw, value_heads),
        "norm.weight": draw.norm(config["linear_value_head_dim"]),
        "out_proj.weight": draw.matrix(d, values, 1.5),
    }


def _dense(draw: Draw, config: Config) -> Tensors:
    return mlp_tensors(draw, config["hidden_size"], config["intermediate_size"])


def _mixture(draw: Draw, config: Config) -> Tensors:
    d = config["hidden_size"]
    # Logits far apart: where two are close, bf16 and fp32 choose different experts.
    gates = {"gate": draw.matrix(config["num_experts"], d, 2.5), "shared_expert_gate": draw.matrix(1, d)}
    tensors = {f"{name}.weight": tensor for name, tensor in gates.items()}
    tensors |= prefixed("shared_expert", mlp_tensors(draw, d, config["shared_expert_intermediate_size"]))
    for expert in range(config["num_experts"]):
        tensors |= prefixed(f"experts.{expert}", mlp_tensors(draw, d, config["moe_intermediate_size"]))
    return tensors
