"""Random weights of flash-linear-attention's models, by fla's names: see `tests.models.weights`.

In every family queries and keys resemble each other, as in trained models. Were they independent, then q k would be
almost zero now and then at the first token, and the norm of the output would make rounding errors a thousand times
larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.models.checkpoints import Tensors
from tests.models.weights import LOGIT_STD, Draw, step_bias

Config = Mapping[str, Any]
Mixer = Callable[[Draw, Config], Tensors]


def fla_tensors(config: Config, seed: int) -> Tensors:
    """`config`: fla's keys, `architectures` among them, `intermediate_size` resolved."""
    draw, mixer = Draw(seed), MIXERS[config["architectures"][0]]
    d, rows, inner = config["hidden_size"], config["vocab_size"], config["intermediate_size"]
    tensors = {"model.embeddings.weight": draw.matrix(rows, d, LOGIT_STD), **_lower_bounds(draw, config)}
    attention = config.get("attn") or {"layers": []}
    for layer in range(config["num_hidden_layers"]):
        attended = layer in attention["layers"]
        block = {
            "attn_norm.weight": draw.norm(d),
            **{f"attn.{name}": x for name, x in (_attention if attended else mixer)(draw, config).items()},
            "mlp_norm.weight": draw.norm(d),
            "mlp.gate_proj.weight": draw.matrix(inner, d),
            "mlp.up_proj.weight": draw.matrix(inner, d),
            "mlp.down_proj.weight": draw.matrix(d, inner),
        }
        tensors.update({f"model.layers.{layer}.{name}": tensor for name, tensor in block.items()})
    tensors["model.norm.weight"] = draw.last_norm(d, config["tie_word_embeddings"])
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = draw.matrix(rows, d, LOGIT_STD)
    return tensors


def _lower_bounds(draw: Draw, config: Config) -> Tensors:
    if not config.get("use_lower_bound"):
        return {}
    width = round(config["hidden_size"] * (config["expand_ratio"] if "HGRNFor" in config["architectures"][0] else 1))
    return {"model.lower_bounds": draw.normal(config["num_hidden_layers"], width)}


def _attention(draw: Draw, config: Config) -> Tensors:
    d, spec = config["hidden_size"], config["attn"]
    shared = d * (spec["num_kv_heads"] or spec["num_heads"]) // spec["num_heads"]
    sizes = {"q": d, "k": shared, "v": shared}
    block = {f"{part}_proj.weight": draw.matrix(size, d, 1.5) for part, size in sizes.items()}
    if spec.get("qkv_bias"):
        block.update({f"{part}_proj.bias": draw.normal(size, std=0.5) for part, size in sizes.items()})
    return {**block, "o_proj.weight": draw.matrix(d, d, 1.5)}


def _alike(draw: Draw, d: int, heads: int, kv_heads: int, key: int) -> Tensors:
    """Projections to queries, and to keys that are like those of the first head of a group."""
    q = draw.matrix(heads * key, d)
    shared = q.view(kv_heads, -1, key, d)[:, 0].reshape(kv_heads * key, d)
    return {"q_proj.weight": q, "k_proj.weight": 0.6 * shared + draw.matrix(kv_heads * key, d, 0.8)}


def _retention(draw: Draw, config: Config) -> Tensors:
    """What RetNet and GLA share: all but GLA's decay."""
    d, heads = config["hidden_size"], config["num_heads"]
    key, value = round(d * config["expand_k"]) // heads, round(d * config["expand_v"]) // heads
    kv_heads = config["num_kv_heads"] or heads
    block = {
        **_alike(draw, d, heads, kv_heads, key),
        "v_proj.weight": draw.matrix(kv_heads * value, d),
        "o_proj.weight": draw.matrix(d, heads * value),
    }
    if config["use_output_gate"]:
        block["g_proj.weight"] = draw.matrix(heads * value, d)
    fused = config["fuse_norm"] and config["use_output_gate"]
    block[f"{'g_norm_swish_gate' if fused else 'g_norm'}.weight"] = draw.norm(value)
    return block


def _gla(draw: Draw, config: Config) -> Tensors:
    block = _retention(draw, config)
    keys = block["k_proj.weight"].shape[0]
    return {
        **block,
        "gk_proj.0.weight": draw.matrix(16, config["hidden_size"]),
        "gk_proj.1.weight": draw.matrix(keys, 16, 8.0),
        "gk_proj.1.bias": draw.uniform(-60.0, 6.0, keys),  # over 16: decays of e^-3.75 to nearly 1
    }


def _hgrn(draw: Draw, config: Config) -> Tensors:
    d = config["hidden_size"]
    width = round(d * config["expand_ratio"])
    block = {f"{part}_proj.weight": draw.matrix(width, d, 2.0) for part in "ifg"}
    return {**block, "g_norm.weight": draw.norm(width), "o_proj.weight": draw.matrix(d, width)}


def _hgrn2(draw: Draw, config: Config) -> Tensors:
    d = config["hidden_size"]
    block = {f"{part}_proj.weight": draw.matrix(d, d, 2.0) for part in "qfi"}
    return {**block, "g_norm.weight": draw.norm(d), "o_proj.weight": draw.matrix(d, d, 1.5)}


def _convolved(draw: Draw, config: Config, heads: int, key: int, values: int, beta: int) -> Tensors:
    """What the delta rule's families share: q, k and v behind convolutions, and beta."""
    d, width = config["hidden_size"], config["conv_size"]
    taps = draw.normal(1, 1, width, std=0.3) + torch.tensor([0.0] * (width - 1) + [1.0])
    block = {**_alike(draw, d, heads, heads, key), "v_proj.weight": draw.matrix(values, d)}
    for part, size in {"q": heads * key, "k": heads * key, "v": values}.items():
        block[f"{part}_conv1d.weight"] = taps + draw.normal(size, 1, width, std=0.2)
    return {**block, "b_proj.weight": draw.matrix(beta, d), "o_proj.weight": draw.matrix(d, values)}


def _delta_net(draw: Draw, config: Config) -> Tensors:
    d, heads = config["hidden_size"], config["num_heads"]
    key, value = round(d * config["expand_k"]) // heads, round(d * config["expand_v"]) // heads
    block = _convolved(draw, config, heads, key, heads * value, heads)
    gate = {"g_proj.weight": draw.matrix(heads * value, d)} if config["use_gate"] else {}
    return {**block, **gate, "o_norm.weight": draw.norm(value)}


def _gated_deltanet(draw: Draw, config: Config) -> Tensors:
    d, heads, key = config["hidden_size"], config["num_heads"], config["head_dim"]
    value_heads, value = config["num_v_heads"] or heads, round(key * config["expand_v"])
    gate = {"g_proj.weight": draw.matrix(value_heads * value, d)} if config["use_gate"] else {}
    return {
        **_convolved(draw, config, heads, key, value_heads * value, value_heads),
        **gate,
        "a_proj.weight": draw.matrix(value_heads, d, 0.7),
        "A_log": draw.uniform(math.log(0.3), math.log(16.0), value_heads),
        "dt_bias": step_bias(draw, value_heads),
        "o_norm.weight": draw.norm(value),
    }


def _kda(draw: Draw, config: Config) -> Tensors:
    d, heads, key = config["hidden_size"], config["num_heads"], config["head_dim"]
    value_heads, value = config["num_v_heads"] or heads, round(key * config["expand_v"])
    return {
        **_convolved(draw, config, heads, key, value_heads * value, value_heads),
        "f_proj.0.weight": draw.matrix(value, d),
        "f_proj.1.weight": draw.matrix(value_heads * key, value, 0.7),
        "A_log": draw.uniform(math.log(0.3), math.log(16.0), value_heads),
        "dt_bias": step_bias(draw, value_heads * key),
        "g_proj.0.weight": draw.matrix(value, d),
        "g_proj.1.weight": draw.matrix(value_heads * value, value),
        "g_proj.1.bias": draw.normal(value_heads * value, std=0.5),
        "o_norm.weight": draw.norm(value),
    }


MIXERS: dict[str, Mixer] = {
    "GLAForCausalLM": _gla,
    "RetNetForCausalLM": _retention,
    "HGRNForCausalLM": _hgrn,
    "HGRN2ForCausalLM": _hgrn2,
    "DeltaNetForCausalLM": _delta_net,
    "GatedDeltaNetForCausalLM": _gated_deltanet,
    "KDAForCausalLM": _kda,
}
