"""Checkpoints of random tiny configurations: Mamba, Falcon-Mamba and Mamba-2, in their layouts."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from tests.models import checkpoints, weights
from tests.models.checkpoints import RandomCheckpoint

Config = dict[str, Any]


def mamba_hf(seed: int, folder: Path) -> RandomCheckpoint:
    """transformers' layout."""
    draw = random.Random(seed)
    return _write_mamba_hf(_mamba_hf_config(draw), seed, folder, draw)


def falcon_mamba(seed: int, folder: Path) -> RandomCheckpoint:
    """transformers' layout, where `expand` says nothing in the published files."""
    draw = random.Random(seed)
    config = {**_mamba_hf_config(draw), "architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba"}
    if "intermediate_size" in config:
        config["expand"] = draw.choice((2, 16))
    if draw.random() < 0.6:  # missing in some published files
        config["mixer_rms_eps"] = draw.choice((1e-5, 1e-6, 1e-3))
    return _write_mamba_hf(config, seed, folder, draw)


def _mamba_hf_config(draw: random.Random) -> Config:
    hidden = draw.randrange(20, 97)
    expand = draw.choice((1, 2, 2, 3))
    config = {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": draw.randrange(400, 2000),
        "hidden_size": hidden,
        "num_hidden_layers": draw.randint(1, 4),
        "state_size": draw.choice((4, 8, 11, 16, 24)),
        "conv_kernel": draw.choice((4, 4, 3, 2)),
        "expand": expand,
        "time_step_rank": draw.choice(("auto", draw.randint(1, 9))),
        "use_bias": draw.random() < 0.3,
        "use_conv_bias": draw.random() < 0.7,
        "layer_norm_epsilon": draw.choice((1e-5, 1e-6, 1e-3)),
        "tie_word_embeddings": draw.random() < 0.7,
        "hidden_act": "silu",
        "residual_in_fp32": draw.random() < 0.8,
    }
    if draw.random() < 0.5:  # wins over `expand`
        config["intermediate_size"] = draw.choice((expand * hidden, hidden + 13))
    return config


def _write_mamba_hf(config: Config, seed: int, folder: Path, draw: random.Random) -> RandomCheckpoint:
    tensors = weights.mamba_tensors(_resolved_mamba(config), seed)
    dtype = draw.choice(("float32", "bfloat16", "float16"))
    container = draw.choice(("safetensors", "sharded", "bin"))
    checkpoints.write_folder(folder, config, tensors, dtype, container)
    return RandomCheckpoint(folder, ("mamba",), config["vocab_size"], f"{dtype} {container} {config}")


def _resolved_mamba(config: Config) -> Config:
    rank = config["time_step_rank"]
    return {
        **config,
        "intermediate_size": config.get("intermediate_size", config["expand"] * config["hidden_size"]),
        "time_step_rank": math.ceil(config["hidden_size"] / 16) if rank == "auto" else rank,
    }


def mamba_orig(seed: int, folder: Path) -> RandomCheckpoint:
    """The original state-spaces layout: no architecture, padded vocabulary, `pytorch_model.bin`."""
    draw = random.Random(seed)
    hidden = draw.randrange(20, 97)
    ssm = {
        "d_state": draw.choice((4, 8, 11, 16, 24)),
        "d_conv": draw.choice((4, 4, 3)),
        "expand": draw.choice((1, 2, 2, 3)),
        "dt_rank": draw.choice(("auto", draw.randint(1, 9))),
    }
    config = {
        "d_model": hidden,
        "n_layer": draw.randint(1, 4),
        "vocab_size": draw.randrange(400, 2000),
        "ssm_cfg": {name: value for name, value in ssm.items() if draw.random() < 0.5},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": draw.choice((8, 8, 16, 1)),
        "tie_embeddings": draw.random() < 0.7,
    }
    names = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "dt_rank": "time_step_rank"}
    defaults = {"state_size": 16, "conv_kernel": 4, "expand": 2, "time_step_rank": "auto"}
    multiple = config["pad_vocab_size_multiple"]
    in_hf_terms = {
        **defaults,
        **{names[name]: value for name, value in config["ssm_cfg"].items()},
        "hidden_size": hidden,
        "num_hidden_layers": config["n_layer"],
        "vocab_size": multiple * math.ceil(config["vocab_size"] / multiple),
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": config["tie_embeddings"],
    }
    tensors = checkpoints.original_mamba_names(weights.mamba_tensors(_resolved_mamba(in_hf_terms), seed))
    dtype = draw.choice(("float32", "float16"))
    checkpoints.write_folder(folder, config, tensors, dtype, "bin")
    return RandomCheckpoint(folder, ("mamba", "mambapy_blocks"), config["vocab_size"], f"{dtype} {config}")


def mamba2_hf(seed: int, folder: Path, **fixed: Any) -> RandomCheckpoint:
    """transformers' layout. `fixed`: entries of the config that are not drawn."""
    draw = random.Random(seed)
    config = {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "vocab_size": draw.randrange(400, 2000),
        "num_hidden_layers": draw.randint(1, 3),
        **_mamba2_heads(draw),
        "state_size": draw.choice((4, 8, 11, 16, 24)),
        "conv_kernel": draw.choice((4, 4, 3, 2)),
        "chunk_size": draw.choice((256, 16)),
        "use_bias": draw.random() < 0.3,
        "use_conv_bias": draw.random() < 0.7,
        "layer_norm_epsilon": draw.choice((1e-5, 1e-6, 1e-3)),
        "time_step_limit": draw.choice(([0.0, math.inf], [0.0, {"__float__": "Infinity"}], [0.02, 0.3])),
        "tie_word_embeddings": draw.random() < 0.4,
        "hidden_act": "silu",
        "norm_before_gate": True,
        "residual_in_fp32": draw.random() < 0.8,
        **fixed,
    }
    dtype = draw.choice(("float32", "bfloat16", "float16"))
    container = draw.choice(("safetensors", "sharded", "bin"))
    checkpoints.write_folder(folder, config, weights.mamba2_tensors(config, seed), dtype, container)
    return RandomCheckpoint(folder, ("mamba2",), config["vocab_size"], f"{dtype} {container} {config}")


def mamba2_fla(seed: int, folder: Path) -> RandomCheckpoint:
    """fla's layout: a few options have other names. fla shares B and C rightly with one group, or one for each head."""
    draw = random.Random(seed)
    heads = _mamba2_heads(draw)
    config = {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "vocab_size": draw.randrange(400, 2000),
        "num_hidden_layers": draw.randint(1, 3),
        **heads,
        "n_groups": draw.choice((1, heads["num_heads"])),
        "state_size": draw.choice((4, 8, 11, 16, 24)),
        "conv_kernel": draw.choice((4, 4, 3)),
        "use_bias": draw.random() < 0.3,
        "use_conv_bias": draw.random() < 0.7,
        "norm_eps": draw.choice((1e-5, 1e-6, 1e-3)),
        "dt_limit": draw.choice(([0.0, {"__float__": "Infinity"}], [0.02, 0.3])),
        "tie_word_embeddings": draw.random() < 0.4,
        "hidden_act": "silu",
        "rmsnorm": True,
        "norm_before_gate": False,
        "D_has_hdim": False,
    }
    dtype = draw.choice(("float32", "bfloat16"))
    checkpoints.write_folder(folder, config, weights.mamba2_tensors(config, seed), dtype, "safetensors")
    return RandomCheckpoint(folder, ("fla_models",), config["vocab_size"], f"{dtype} {config}")


def _mamba2_heads(draw: random.Random) -> Config:
    """Groups of heads that divide the heads, which divide the inner width."""
    head_dim, expand = draw.choice((6, 8, 12, 16, 24)), draw.choice((1, 2, 2, 3))
    parts = draw.randint(math.ceil(20 / head_dim), 96 // head_dim)
    heads = expand * parts
    return {
        "hidden_size": parts * head_dim,
        "expand": expand,
        "num_heads": heads,
        "head_dim": head_dim,
        "n_groups": draw.choice([groups for groups in (1, 2, 3, 4, heads) if heads % groups == 0]),
    }


def mamba2_orig(seed: int, folder: Path) -> RandomCheckpoint:
    """The original state-spaces layout: no architecture, padded vocabulary, `pytorch_model.bin`."""
    draw = random.Random(seed)
    heads = _mamba2_heads(draw)
    ssm = {
        "d_state": draw.choice((4, 8, 11, 16, 24)),
        "d_conv": draw.choice((4, 4, 3)),
        "headdim": heads["head_dim"],
        "ngroups": heads["n_groups"],
        "expand": heads["expand"],
        "dt_limit": draw.choice(([0.0, math.inf], [0.02, 0.3])),
    }
    optional = {name for name, value in (("d_conv", 4), ("ngroups", 1), ("expand", 2)) if ssm[name] == value}
    multiple = draw.choice((16, 16, 8, 1))
    config = {
        "d_model": heads["hidden_size"],
        "d_intermediate": 0,
        "n_layer": draw.randint(1, 3),
        "vocab_size": draw.randrange(400, 2000),
        "ssm_cfg": {"layer": "Mamba2", **{name: value for name, value in ssm.items() if name not in optional}},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": multiple,
        "tie_embeddings": draw.random() < 0.7,
    }
    in_hf_terms = {
        **heads,
        "state_size": ssm["d_state"],
        "conv_kernel": ssm["d_conv"],
        "num_hidden_layers": config["n_layer"],
        "vocab_size": multiple * math.ceil(config["vocab_size"] / multiple),
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": config["tie_embeddings"],
    }
    tensors = checkpoints.original_mamba_names(weights.mamba2_tensors(in_hf_terms, seed))
    dtype = draw.choice(("float32", "float16"))
    checkpoints.write_folder(folder, config, tensors, dtype, "bin")
    return RandomCheckpoint(folder, ("mamba2",), config["vocab_size"], f"{dtype} {config}")
