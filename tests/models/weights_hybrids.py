"""Random weights for models with layers of sliding-window attention, as `tests.models.weights` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.models.checkpoints import Tensors
from tests.models.weights import LOGIT_STD, Draw, mamba_tensors


def attention_tensors(
    draw: Draw, hidden: int, heads: int, kv_heads: int, head: int, biases: tuple[str, ...] = ()
) -> Tensors:
    """Projections q, k, v and o; `biases` names those that have one."""
    sizes = {"q": (heads * head, hidden), "k": (kv_heads * head, hidden), "v": (kv_heads * head, hidden)}
    sizes["o"] = (hidden, heads * head)
    tensors = {f"{name}_proj.weight": draw.matrix(*size, 1.5) for name, size in sizes.items()}
    tensors.update({f"{name}_proj.bias": draw.normal(sizes[name][0], std=0.3) for name in biases})
    return tensors


def mlp_tensors(draw: Draw, hidden: int, inner: int, *, bias: bool = False) -> Tensors:
    sizes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    tensors = {f"{name}_proj.weight": draw.matrix(*size) for name, size in sizes.items()}
    if bias:
        tensors.update({f"{name}_proj.bias": draw.normal(size[0], std=0.3) for name, size in sizes.items()})
    return tensors


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def recurrent_gemma_tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """transformers' names. `config`: its keys. Norms are stored less one."""
    draw, d = Draw(seed), config["hidden_size"]
    kinds = config.get("block_types") or config["_block_types"]
    # The embedding is multiplied by sqrt(d), the head is not.
    tensors = {"model.embed_tokens.weight": draw.matrix(config["vocab_size"], d, LOGIT_STD)}
    for layer in range(config["num_hidden_layers"]):
        recurrent = kinds[layer % len(kinds)] == "recurrent"
        block = {
            "temporal_pre_norm.weight": draw.norm(d) - 1,
            "channel_pre_norm.weight": draw.norm(d) - 1,
            **prefixed("temporal_block", (_recurrent_block if recurrent else _gemma_attention)(draw, config)),
            **prefixed("mlp_block", mlp_tensors(draw, d, config["intermediate_size"] // 2, bias=True)),
        }
        tensors.update(prefixed(f"model.layers.{layer}", block))
    tensors["model.final_norm.weight"] = draw.last_norm(d, tied=True) - 1
    return tensors


def _gemma_attention(draw: Draw, config: Mapping[str, Any]) -> Tensors:
    biases = ("q", "k", "v", "o") if config["attention_bias"] else ("o",)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    return attention_tensors(draw, config["hidden_size"], heads, kv_heads, config["head_dim"], biases)


def _recurrent_block(draw: Draw, config: Mapping[str, Any]) -> Tensors:
    d, heads, width = config["hidden_size"], config["num_attention_heads"], config["conv1d_width"]
    lru = config["lru_width"] or d
    block = lru // heads
    tensors = {
        "linear_x.weight": draw.matrix(lru, d),
        "linear_y.weight": draw.matrix(lru, d),
        "linear_out.weight": draw.matrix(d, lru, 1.5),
        "conv_1d.weight": draw.normal(lru, 1, width, std=width**-0.5),
        "conv_1d.bias": draw.normal(lru, std=0.3),
        "rg_lru.recurrent_param": draw.uniform(-6.0, 0.5, lru),  # decays of 0.02 to nearly 1 at gates half open
    }
    for name, size in (("linear_x", lru), ("linear_y", lru), ("linear_out", d)):
        tensors[f"{name}.bias"] = draw.normal(size, std=0.3)
    for gate in ("input", "recurrent"):
        tensors[f"rg_lru.{gate}_gate_weight"] = draw.normal(heads, block, block, std=block**-0.5)
        tensors[f"rg_lru.{gate}_gate_bias"] = draw.normal(heads, block, std=0.5)
    return tensors


def samba_tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """fla's names. `config`: fla's keys, `time_step_rank` resolved, and `mlp`, the size of the MLP."""
    draw, d = Draw(seed + 1), config["hidden_size"]
    tensors: Tensors = {}
    for name, tensor in mamba_tensors(config, seed).items():
        tensors[name.replace(".norm.", ".mixer_norm.")] = tensor
    for layer in range(config["num_hidden_layers"]):
        prefix = f"backbone.layers.{layer}"
        tensors[f"{prefix}.mlp_norm.weight"] = draw.norm(d)
        tensors.update(prefixed(f"{prefix}.mlp", mlp_tensors(draw, d, config["mlp"])))
    return with_window_layers(tensors, "backbone.layers", config, config["attn"], seed, mixer="mixer")


def with_window_layers(
    tensors: Tensors, layers: str, config: Mapping[str, Any], attn: Mapping[str, Any], seed: int, mixer: str = "attn"
) -> Tensors:
    """Puts attention in place of the mixers that fla's `attn` names."""
    draw, d = Draw(seed + 2), config["hidden_size"]
    biases = ("q", "k", "v") if attn["qkv_bias"] else ()
    for layer in attn["layers"]:
        prefix = f"{layers}.{layer}.{mixer}"
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{prefix}.")}
        made = attention_tensors(draw, d, attn["num_heads"], attn["num_kv_heads"], d // attn["num_heads"], biases)
        tensors.update(prefixed(prefix, made))
    return tensors
