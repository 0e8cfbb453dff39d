"""Checkpoints of random tiny configurations of BASED and JRT-RNN, whose weights are drawn here too."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from tests.models import checkpoints
from tests.models.checkpoints import RandomCheckpoint, Tensors
from tests.models.weights import LOGIT_STD, Draw

Config = dict[str, Any]


def based(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """The authors' layout, in one of its generations. `fixed`: entries of the config that are not drawn."""
    draw = random.Random(seed)
    return _written(draw, seed, folder, {**_drawn(draw), **fixed}, "based")


def jrt(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """The same with prefix linear attention, in one layer at least."""
    draw = random.Random(seed)
    config, length = _drawn(draw), draw.choice((1, 7, 20, 40))
    shared = {name: config["alt_mixer"][name] for name in ("feature_dim", "num_heads", "l_max")}
    target = config["alt_mixer"]["_target_"].replace("linear_attention.Linear", "prefix_linear_attention.PrefixLinear")
    mixer = {"_target_": target, **shared, "enc_length": length, "dec_length": 9, "feature_name": "taylor_exp"}
    lengths = {"alt_mixer_layers": config["alt_mixer_layers"] or [0], "enc_length": length, "dec_length": 9}
    windows = [layer for layer in config["alt_mixer_2_layers"] if layer not in lengths["alt_mixer_layers"]]
    config |= {**lengths, "alt_mixer_2_layers": windows, "alt_mixer": mixer}
    return _written(draw, seed, folder, {**config, **fixed}, "jrt")


def _drawn(draw: random.Random) -> Config:
    heads, layers, package = draw.randint(1, 3), draw.randint(1, 5), draw.choice(("based", "src", "train.src"))
    hidden, width = heads * 2 * draw.randint(4, 12), draw.choice((4, 8, 7))
    order = draw.sample(range(layers), layers)
    cut = draw.randint(0, layers), draw.randint(0, layers)
    linear, windows = order[: cut[0]], order[cut[0] : max(cut)]
    taylor_heads = draw.choice([each for each in (1, 2, heads) if hidden % each == 0])
    kernel = draw.choice((3, 3, 4, 2))
    mixers = f"{package}.models.mixers"
    return {
        "model_type": "gpt2",
        "activation_function": "swiglu",
        "vocab_size": draw.randrange(400, 2000),
        "pad_vocab_size_multiple": draw.choice((8, 1)),
        "n_embd": hidden,
        "n_head": heads,
        "n_inner": draw.choice((2 * hidden, hidden + 6)),
        "n_layer": layers,
        "layer_norm_epsilon": draw.choice((1e-5, 1e-3)),
        "rms_norm": True,
        "rotary_emb_fraction": draw.choice((1, 1, 0.5 if hidden // heads % 4 == 0 else 1, 0)),
        **dict.fromkeys(("qkv_proj_bias", "out_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False),
        "mixer": {
            "_target_": f"{mixers}.{draw.choice(('convolution', 'base_conv'))}.BaseConv",
            "expand_proj": draw.choice((4, 2)),
            "kernel_sizes": draw.choice((kernel, [kernel])),
            "use_bias": draw.random() < 0.7,
            "l_max": 2048,
        },
        "alt_mixer_layers": linear,
        "alt_mixer": {
            "_target_": f"{mixers}.linear_attention.LinearAttention",
            "feature_dim": width,
            "feature_map": {"_target_": f"{mixers}.linear_attention.TaylorExp", "input_dim": width},
            "l_max": 2048,
            "num_heads": taylor_heads,
        },
        "alt_mixer_2_layers": windows,
        "alt_mixer_2": {
            "_target_": f"{mixers}.slide_attention.SlidingAttention",
            "causal": True,
            "num_heads": draw.choice((heads, 16)),  # which nobody reads
            "window_size": draw.choice((2, 5, 16, 128)),
        },
    }


def _written(draw: random.Random, seed: int, folder: Path, config: Config, oracle: str) -> RandomCheckpoint:
    dtype = draw.choice(("float32", "bfloat16"))
    tensors = based_tensors(config, seed, conv=draw.choice(("conv", "conv1")))
    checkpoints.write_folder(folder, config, tensors, dtype, "bin")
    return RandomCheckpoint(folder, (oracle,), config["vocab_size"], f"{dtype} {config}")


def based_tensors(config: Config, seed: int, conv: str = "conv") -> Tensors:
    """The names on disk; `conv`: of the convolution, by generation. Keys resemble queries, as in trained models."""
    draw = Draw(seed)
    d, multiple = config["n_embd"], config["pad_vocab_size_multiple"]
    table = draw.matrix(-(-config["vocab_size"] // multiple) * multiple, d, LOGIT_STD)
    tensors = {"transformer.embeddings.word_embeddings.weight": table, "lm_head.weight": table}
    for layer in range(config["n_layer"]):
        if layer in config["alt_mixer_2_layers"]:
            mixer = {"Wqkv.weight": draw.matrix(3 * d, d), "out_proj.weight": draw.matrix(d, d)}
        elif layer in config["alt_mixer_layers"]:
            mixer = _taylor(draw, config["alt_mixer"], d)
        else:
            mixer = _gated_conv(draw, config["mixer"], d, conv)
        block = {
            "norm1.weight": draw.norm(d),
            **{f"mixer.{name}": tensor for name, tensor in mixer.items()},
            "norm2.weight": draw.norm(d),
            "mlp.fc1.weight": draw.matrix(2 * config["n_inner"], d),
            "mlp.fc2.weight": draw.matrix(d, config["n_inner"]),
        }
        tensors.update({f"transformer.layers.{layer}.{name}": tensor for name, tensor in block.items()})
    tensors["transformer.ln_f.weight"] = draw.last_norm(d, tied=True)
    counters = {f"{part}_metrics.num-tokens.count": torch.tensor(7) for part in ("train", "val")}
    return {f"model.{name}": tensor for name, tensor in tensors.items()} | counters


def _taylor(draw: Draw, config: Config, d: int) -> Tensors:
    q = draw.matrix(config["num_heads"] * config["feature_dim"], d)
    mixer = {
        "proj_q.weight": q,
        "proj_k.weight": 0.6 * q + draw.matrix(q.shape[0], d, 0.8),
        "proj_v.weight": draw.matrix(d, d),
        "out_proj.weight": draw.matrix(d, d, 1.5),
    }
    if "enc_length" in config:
        mixer["proj_k_enc.weight"] = 0.6 * q + draw.matrix(q.shape[0], d, 0.8)
        mixer["proj_v_enc.weight"] = draw.matrix(d, d)
    return mixer


def _gated_conv(draw: Draw, config: Config, d: int, name: str) -> Tensors:
    inner, width = config["expand_proj"] * d // 2, config["kernel_sizes"]
    width = width[0] if isinstance(width, list) else width
    mixer = {
        "in_proj.weight": draw.matrix(2 * inner, d),
        f"{name}.conv.weight": draw.normal(inner, 1, width, std=width**-0.5),
        "out_proj.weight": draw.matrix(d, inner, 1.5),
    }
    if config["use_bias"]:
        mixer |= {"in_proj.bias": draw.normal(2 * inner, std=0.3), "out_proj.bias": draw.normal(d, std=0.3)}
    return mixer
