"""Random weights of RWKV-4, 5.2 and 6 under the names of a `.pth` file, and how other layouts name them.

Setting any one tensor to zero (a norm's to one) moves the logits; `test_rwkv.py` checks that. All are fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.models.checkpoints import Tensors
from tests.models.weights import LOGIT_STD, Draw

HF_PARTS = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}


def rwkv_tensors(version: int, config: Mapping[str, Any], seed: int) -> Tensors:
    """`config`: transformers' keys, all sizes resolved; `heads`, and for RWKV-6 `mix_rank` and `decay_rank`."""
    draw = Draw(seed)
    d, rows, ffn = config["hidden_size"], config["vocab_size"], config["intermediate_size"]
    attention = {4: _attention4, 5: _attention5, 6: _attention6}[version]
    tensors = {"emb.weight": draw.matrix(rows, d, LOGIT_STD), **_layer_norm(draw, "blocks.0.ln0", d)}
    mix = "time_maa" if version == 6 else "time_mix"
    for layer in range(config["num_hidden_layers"]):
        block = {**_layer_norm(draw, "ln1", d), **_layer_norm(draw, "ln2", d)}
        block.update({f"att.{name}": tensor for name, tensor in attention(draw, config).items()})
        block.update({f"ffn.{mix}_{part}": draw.uniform(0.0, 1.0, 1, 1, d) for part in "kr"})
        block["ffn.key.weight"] = draw.matrix(ffn, d)
        block["ffn.receptance.weight"] = draw.matrix(d, d)
        block["ffn.value.weight"] = draw.matrix(d, ffn, 1.5)
        tensors.update({f"blocks.{layer}.{name}": tensor for name, tensor in block.items()})
    tensors["ln_out.weight"] = draw.last_norm(d, config["tie_word_embeddings"])
    tensors["ln_out.bias"] = draw.normal(d, std=0.2)
    tensors["head.weight"] = tensors["emb.weight"] if config["tie_word_embeddings"] else draw.matrix(rows, d, LOGIT_STD)
    return tensors


def _layer_norm(draw: Draw, name: str, size: int) -> Tensors:
    return {f"{name}.weight": draw.norm(size), f"{name}.bias": draw.normal(size, std=0.2)}


def _mixes(draw: Draw, name: str, parts: str, size: int) -> Tensors:
    return {f"{name}_{part}": draw.uniform(0.0, 1.0, 1, 1, size) for part in parts}


def _attention4(draw: Draw, config: Mapping[str, Any]) -> Tensors:
    d, inner = config["hidden_size"], config["attention_hidden_size"]
    return {
        **_mixes(draw, "time_mix", "kvr", d),
        "time_decay": draw.uniform(-6.0, 1.0, inner),
        "time_first": draw.normal(inner, std=1.0, mean=0.5),
        "key.weight": draw.matrix(inner, d, 1.5),
        "value.weight": draw.matrix(inner, d),
        "receptance.weight": draw.matrix(inner, d),
        "output.weight": draw.matrix(d, inner, 2.0),
    }


def _heads(draw: Draw, config: Mapping[str, Any]) -> Tensors:
    d, heads, keys, values = (config[key] for key in ("hidden_size", "heads", "keys", "values"))
    receptance = draw.matrix(keys, d)
    return {
        "time_faaaa": draw.normal(heads, keys // heads, std=0.3, mean=0.7),
        "receptance.weight": receptance,
        # Alike, as in trained models: products near zero would make rounding errors large in the norm of the heads.
        "key.weight": 0.6 * receptance + draw.matrix(keys, d, 0.8),
        "value.weight": draw.matrix(values, d),
        "gate.weight": draw.matrix(values, d),
        "output.weight": draw.matrix(d, values, 1.5),
        **_layer_norm(draw, "ln_x", values),
    }


def _attention5(draw: Draw, config: Mapping[str, Any]) -> Tensors:
    heads, keys = config["heads"], config["keys"]
    return {
        **_heads(draw, config),  # first: the `rwkv` package tells versions apart as it comes along
        **_mixes(draw, "time_mix", "kvrg", config["hidden_size"]),
        "time_decay": draw.uniform(-6.0, 1.0, heads, keys // heads),
    }


def _attention6(draw: Draw, config: Mapping[str, Any]) -> Tensors:
    d, keys, rank, decay_rank = (config[key] for key in ("hidden_size", "keys", "mix_rank", "decay_rank"))
    return {
        **_mixes(draw, "time_maa", "xwkvrg", d),
        "time_maa_w1": draw.matrix(5 * rank, d).T,
        "time_maa_w2": draw.normal(5, rank, d, std=0.5 * rank**-0.5),
        "time_decay": draw.uniform(-6.0, 1.0, 1, 1, keys),
        "time_decay_w1": draw.matrix(decay_rank, d).T,
        "time_decay_w2": draw.matrix(keys, decay_rank, 1.5).T,
        **_heads(draw, config),
    }


def hf_rwkv_names(tensors: Tensors) -> Tensors:
    """The names of a `.pth` file -> transformers', and those of the code that came with RWKV-5 and 6."""
    return {_hf_name(name): tensor for name, tensor in tensors.items()}


def _hf_name(name: str) -> str:
    if not name.startswith("blocks."):
        return {"emb.weight": "rwkv.embeddings.weight", "head.weight": "head.weight"}.get(name, f"rwkv.{name}")
    _, layer, rest = name.split(".", 2)
    rest = rest.replace("att.", "attention.", 1).replace("ffn.", "feed_forward.", 1).replace("ln0.", "pre_ln.", 1)
    head, mix, part = rest.partition("time_mix_")
    return f"rwkv.blocks.{layer}.{head}{mix}{HF_PARTS[part] if mix else part}"


def fla_rwkv6_names(tensors: Tensors) -> Tensors:
    """The names of a `.pth` file -> fla's: `Linear`s instead of bare matrices, and r before w, k, v and g."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        block, _, rest = name.rpartition("att.") if "att." in name else (name, "", "")
        if not rest.startswith(("time_maa", "time_decay")):
            renamed[_fla_name(name)] = tensor.flatten() if ".ffn.time_" in name else tensor
        elif rest == "time_maa_x":
            renamed.update(_fla_shift(tensors, block))
    return renamed


def _fla_name(name: str) -> str:
    for old, new in (
        ("emb.", "model.embeddings."),
        ("ln_out.", "model.norm."),
        ("head.", "lm_head."),
        ("blocks.", "model.layers."),
        ("ln0.", "pre_norm."),
        ("ln1.", "attn_norm."),
        ("ln2.", "ffn_norm."),
        ("att.time_faaaa", "attn.bonus"),
        ("att.ln_x.", "attn.g_norm."),
        ("att.output.", "attn.o_proj."),
        *((f"att.{part}.", f"attn.{short}_proj.linear.") for short, part in HF_PARTS.items()),
        ("ffn.time_maa_k", "ffn.key.mu"),
        ("ffn.time_maa_r", "ffn.receptance.mu"),
        ("ffn.key.weight", "ffn.key.linear.weight"),
        ("ffn.receptance.weight", "ffn.receptance.linear.weight"),
    ):
        name = name.replace(old, new)
    return name


def _fla_shift(tensors: Tensors, block: str) -> Tensors:
    """What makes the token shift and the decay of one block."""
    att = {name.removeprefix(f"{block}att."): tensor for name, tensor in tensors.items()}
    order = ["wkvrg".index(part) for part in "rwkvg"]
    rank = att["time_maa_w2"].shape[1]
    down = att["time_maa_w1"].T.unflatten(0, (5, rank))[order].flatten(0, 1)
    up = att["time_maa_w2"][order].permute(2, 0, 1).flatten(1)
    prefix = _fla_name(block) + "attn."
    shift = {
        "x_proj.0.mu": att["time_maa_x"].flatten(),
        "x_proj.0.linear.weight": down,
        "x_proj.2.weight": up,
        "x_bias": att["time_maa_x"].new_zeros(5, up.shape[0]),
        "w_proj.linear.lora.0.weight": att["time_decay_w1"].T,
        "w_proj.linear.lora.2.weight": att["time_decay_w2"].T,
        "w_proj.linear.lora.2.bias": att["time_decay"].flatten(),
    }
    for row, part in enumerate("rwkvg"):
        shift["x_bias"][row] = att[f"time_maa_{part}"].flatten()
    return {prefix + name: tensor.contiguous() for name, tensor in shift.items()}
