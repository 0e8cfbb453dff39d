"""Checkpoints of random tiny configurations: RWKV-4, 5.2 and 6, in every layout of each."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from tests.models import checkpoints
from tests.models.checkpoints import RandomCheckpoint
from tests.models.rwkv_weights import fla_rwkv6_names, hf_rwkv_names, rwkv_tensors

Config = dict[str, Any]
PIP = ("rwkv_pip_v6",)


def rwkv4_hf(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """transformers' layout. At least two layers: its own initialisation divides by their number less one."""
    draw = random.Random(seed)
    sizes = {**_sizes4(draw), "num_hidden_layers": draw.randint(2, 4), **fixed}
    config = {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "layer_norm_epsilon": draw.choice((1e-5, 1e-5, 1e-3)),
        "rescale_every": draw.choice((0, 6)),
        **sizes,
    }
    if draw.random() < 0.3:
        config["tie_word_embeddings"] = sizes["tie_word_embeddings"] = True
    if draw.random() < 0.4:
        config["intermediate_size"], sizes["intermediate_size"] = None, 4 * config["hidden_size"]
    if config["attention_hidden_size"] == config["hidden_size"]:
        config["attention_hidden_size"] = None
    return _write_hf(draw, 4, seed, folder, config, sizes, ("rwkv_transformers",))


def rwkv4_pth(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """One `.pth` file and no config."""
    draw = random.Random(seed)
    sizes = _sizes4(draw)  # the `rwkv` package cannot run other widths of time mixing
    return _write_pth(draw, 4, seed, folder, {**sizes, "attention_hidden_size": sizes["hidden_size"], **fixed})


def rwkv5_pth(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """One `.pth` file and no config."""
    draw = random.Random(seed)
    return _write_pth(draw, 5, seed, folder, {**_sizes5(draw), **fixed})


def rwkv6_pth(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """One `.pth` file and no config."""
    draw = random.Random(seed)
    return _write_pth(draw, 6, seed, folder, {**_sizes5(draw), **fixed})


def rwkv5_hf(seed: int, folder: Path) -> RandomCheckpoint:
    """The layout of Rwkv5ForCausalLM."""
    draw = random.Random(seed)
    config = _remote_code_config(draw, 5)
    return _write_hf(draw, 5, seed, folder, config, config, PIP)


def rwkv6_hf(seed: int, folder: Path) -> RandomCheckpoint:
    """The layout of Rwkv6ForCausalLM."""
    draw = random.Random(seed)
    config = _remote_code_config(draw, 6)
    return _write_hf(draw, 6, seed, folder, config, config, PIP)


def rwkv6_fla(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """fla's layout, with heads of other sizes than the published ones, whose epsilon fla has wrong."""
    draw = random.Random(seed)
    heads = draw.randint(1, 3)
    config = {
        "architectures": ["RWKV6ForCausalLM"],
        "model_type": "rwkv6",
        "vocab_size": draw.randrange(400, 2000),
        "hidden_size": heads * draw.choice((16, 24, 32)),
        "num_hidden_layers": draw.randint(1, 3),
        "num_heads": heads,
        "expand_k": draw.choice((0.5, 0.5, 1.0)),
        "expand_v": draw.choice((1.0, 1.0, 2.0)),
        "hidden_ratio": draw.choice((3.5, 2.3)),
        "intermediate_size": draw.choice((None, 72)),
        "proj_low_rank_dim": draw.choice((2, 5, 8)),
        "gate_low_rank_dim": draw.choice((4, 9, 16)),
        "norm_eps": draw.choice((1e-5, 1e-5, 1e-3)),
        "norm_first": True,
        "norm_bias": True,
        "fuse_norm": draw.random() < 0.5,
        "hidden_act": "sqrelu",
        "tie_word_embeddings": draw.random() < 0.3,
        "attn": None,
        **fixed,
    }
    tensors = fla_rwkv6_names(rwkv_tensors(6, resolved_fla(config), seed))
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    dtype = draw.choice(("float32", "bfloat16"))
    container = draw.choice(("safetensors", "sharded"))
    checkpoints.write_folder(folder, config, tensors, dtype, container)
    return RandomCheckpoint(folder, ("fla_models",), config["vocab_size"], f"{dtype} {container} {config}")


def resolved_fla(config: Config) -> Config:
    hidden = config["hidden_size"]
    return {
        **config,
        "intermediate_size": config["intermediate_size"] or 32 * math.ceil(int(hidden * config["hidden_ratio"]) / 32),
        "heads": config["num_heads"],
        "keys": round(hidden * config["expand_k"]),
        "values": round(hidden * config["expand_v"]),
        "mix_rank": config["proj_low_rank_dim"],
        "decay_rank": config["gate_low_rank_dim"],
    }


def _sizes4(draw: random.Random) -> Config:
    hidden = draw.randrange(20, 97)
    return {
        "vocab_size": draw.randrange(400, 2000),
        "hidden_size": hidden,
        "attention_hidden_size": draw.choice((hidden, hidden, draw.randrange(20, 97))),
        "intermediate_size": draw.choice((4 * hidden, 90, 136)),
        "num_hidden_layers": draw.randint(1, 4),
        "tie_word_embeddings": False,
    }


def _sizes5(draw: random.Random) -> Config:
    heads, head = draw.randint(1, 3), draw.choice((64, 64, 32, 24))
    hidden = heads * head
    return {
        "vocab_size": draw.randrange(400, 2000),
        "hidden_size": hidden,
        "intermediate_size": draw.choice((int(3.5 * hidden // 32 * 32), 90, 136)),
        "num_hidden_layers": draw.randint(1, 4),
        "heads": heads,
        "keys": hidden,
        "values": hidden,
        "mix_rank": draw.choice((2, 5, 8)),
        "decay_rank": draw.choice((4, 9, 16)),
        "tie_word_embeddings": False,
    }


def _remote_code_config(draw: random.Random, version: int) -> Config:
    """With the number of heads that published configs give, which is the size of a head."""
    sizes = _sizes5(draw)
    optional = {
        "head_size": sizes["hidden_size"] // sizes["heads"],
        "head_size_divisor": 8,
        "attention_hidden_size": sizes["hidden_size"],
        "model_version": "5_2" if version == 5 else "6_0",
    }
    return {
        "architectures": [f"Rwkv{version}ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": f"modeling_rwkv{version}.Rwkv{version}ForCausalLM"},
        "model_type": f"rwkv{version}",
        "layer_norm_epsilon": 1e-5,
        "num_attention_heads": 64,
        "rescale_every": 6,
        **sizes,
        **{key: value for key, value in optional.items() if draw.random() < 0.6},
    }


def _write_hf(
    draw: random.Random,
    version: int,
    seed: int,
    folder: Path,
    config: Config,
    sizes: Config,
    oracles: tuple[str, ...],
) -> RandomCheckpoint:
    tensors = hf_rwkv_names(rwkv_tensors(version, sizes, seed))
    if sizes["tie_word_embeddings"]:
        del tensors["head.weight"]
    dtype = draw.choice(("float32", "bfloat16"))
    container = draw.choice(("safetensors", "sharded", "bin"))
    checkpoints.write_folder(folder, config, tensors, dtype, container)
    return RandomCheckpoint(folder, oracles, sizes["vocab_size"], f"{dtype} {container} {config}")


def _write_pth(draw: random.Random, version: int, seed: int, folder: Path, sizes: Config) -> RandomCheckpoint:
    dtype = draw.choice(("float32", "bfloat16", "float16"))
    tensors = rwkv_tensors(version, sizes, seed)
    path = checkpoints.write_pth(folder / f"rwkv{version}-random.pth", tensors, dtype)
    return RandomCheckpoint(path, PIP, sizes["vocab_size"], f"{dtype} {sizes}")
