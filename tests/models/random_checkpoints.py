"""Checkpoints of random tiny configurations, for each family and layout."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.models import checkpoints, weights
from tests.models.checkpoints import RandomCheckpoint
from tests.models.random_based import based, jrt
from tests.models.random_fla import delta_net, gated_deltanet, gla, hgrn, hgrn2, kda, retnet
from tests.models.random_granite4 import granite4
from tests.models.random_hybrids import recurrent_gemma, samba
from tests.models.random_mamba import falcon_mamba, mamba2_fla, mamba2_hf, mamba2_orig, mamba_hf, mamba_orig
from tests.models.random_mamba2_hybrids import bamba, falcon_h1
from tests.models.random_qwen3_next import qwen3_next
from tests.models.random_rwkv import rwkv4_hf, rwkv4_pth, rwkv5_hf, rwkv5_pth, rwkv6_fla, rwkv6_hf, rwkv6_pth
from tests.models.random_xlstm import xlstm

Config = dict[str, Any]


def rwkv7_fla(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """fla's layout. At least two layers: fla's own initialisation divides by their number less one."""
    draw = random.Random(seed)
    config = {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "num_hidden_layers": draw.randint(2, 3),
        "fuse_norm": draw.random() < 0.5,
        "norm_eps": draw.choice((1e-5, 1e-5, 1e-3)),
        "norm_first": True,
        "norm_bias": True,
        "hidden_act": "sqrelu",
        "tie_word_embeddings": draw.random() < 0.3,
        "attn": None,
        "num_heads": None,
        **_rwkv7_sizes(draw, head_dims=(64, 64, 32, 128)),
    }
    if draw.random() < 0.4:
        config.update(intermediate_size=None, hidden_ratio=draw.choice((4.0, 2.3)))
    config.update(fixed)
    config["value_dim"] = draw.choice((config["hidden_size"], [config["hidden_size"]] * config["num_hidden_layers"]))
    tensors = checkpoints.fla_rwkv7_names(weights.rwkv7_tensors(_resolved_rwkv7(config), seed))
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    dtype = draw.choice(("float32", "bfloat16"))
    container = draw.choice(("safetensors", "sharded"))
    checkpoints.write_folder(folder, config, tensors, dtype, container)
    return RandomCheckpoint(folder, ("fla_models",), config["vocab_size"], f"{dtype} {container} {config}")


def rwkv7_pth(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """The original layout: one `.pth` file and no config."""
    draw = random.Random(seed)
    config = {"num_hidden_layers": draw.randint(1, 4), "tie_word_embeddings": False, **_rwkv7_sizes(draw), **fixed}
    tensors = weights.rwkv7_tensors(config, seed)
    if draw.random() < 0.5:  # older and newer training code differ in whether layer 0 has these
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.0.att.v")}
        tensors["blocks.0.att.value.weight"] = weights.rwkv7_tensors(config, seed)["blocks.0.att.value.weight"]
    dtype = draw.choice(("float32", "bfloat16", "float16"))
    path = checkpoints.write_pth(folder / "rwkv7-random.pth", tensors, dtype)
    return RandomCheckpoint(path, ("rwkv_pip",), config["vocab_size"], f"{dtype} {config}")


def _resolved_rwkv7(config: Config) -> Config:
    computed = 32 * math.ceil(int(config["hidden_size"] * config.get("hidden_ratio", 4.0)) / 32)
    return {**config, "intermediate_size": config["intermediate_size"] or computed}


def _rwkv7_sizes(draw: random.Random, head_dims: tuple[int, ...] = (64,)) -> Config:
    head_dim = draw.choice(head_dims)
    hidden = head_dim * draw.randint(1, 3 if head_dim <= 64 else 1)
    return {
        "vocab_size": draw.randrange(400, 2000),
        "hidden_size": hidden,
        "head_dim": head_dim,
        "intermediate_size": draw.choice((4 * hidden, 96, 136)),
        "decay_low_rank_dim": draw.choice((8, 20, 32)),
        "a_low_rank_dim": draw.choice((8, 20, 32)),
        "v_low_rank_dim": draw.choice((4, 8, 16)),
        "gate_low_rank_dim": draw.choice((8, 24, 64)),
    }


Writer = Callable[..., RandomCheckpoint]
TINY: dict[str, Writer] = {
    "bamba": bamba,
    "falcon_h1": falcon_h1,
    "granite4": granite4,
    "qwen3_next": qwen3_next,
    "mamba_hf": mamba_hf,
    "mamba_orig": mamba_orig,
    "mamba2_hf": mamba2_hf,
    "mamba2_orig": mamba2_orig,
    "mamba2_fla": mamba2_fla,
    "gla": gla,
    "recurrent_gemma": recurrent_gemma,
    "retnet": retnet,
    "hgrn": hgrn,
    "hgrn2": hgrn2,
    "delta_net": delta_net,
    "gated_deltanet": gated_deltanet,
    "kda": kda,
    "rwkv4_hf": rwkv4_hf,
    "rwkv4_pth": rwkv4_pth,
    "rwkv5_hf": rwkv5_hf,
    "rwkv5_pth": rwkv5_pth,
    "rwkv6_fla": rwkv6_fla,
    "rwkv6_hf": rwkv6_hf,
    "rwkv6_pth": rwkv6_pth,
    "rwkv7_fla": rwkv7_fla,
    "rwkv7_pth": rwkv7_pth,
    "samba": samba,
    "falcon_mamba": falcon_mamba,
    "xlstm": xlstm,
    "based": based,
    "jrt": jrt,
}
