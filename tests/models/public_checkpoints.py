"""Random weights in the shapes of published models, one of each family."""

from __future__ import annotations

from pathlib import Path

from tests.models import checkpoints, weights
from tests.models.checkpoints import RandomCheckpoint
from tests.models.fla_weights import fla_tensors
from tests.models.public_configs import GLA_340M, MAMBA_130M
from tests.models.random_checkpoints import Writer
from tests.models.random_fla import resolved_fla


def mamba_130m(seed: int, folder: Path) -> RandomCheckpoint:
    """The shapes of mamba-130m-hf."""
    config = MAMBA_130M
    checkpoints.write_folder(folder, config, weights.mamba_tensors(config, seed), "float32", "safetensors")
    return RandomCheckpoint(folder, ("mamba",), config["vocab_size"], "mamba-130m")


def mamba2_130m(seed: int, folder: Path) -> RandomCheckpoint:
    """The shapes of the original mamba2-130m."""
    config = {
        "d_model": 768,
        "d_intermediate": 0,
        "n_layer": 24,
        "vocab_size": 50277,
        "ssm_cfg": {"layer": "Mamba2"},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 16,
        "tie_embeddings": True,
    }
    in_hf_terms = {
        "vocab_size": 50288,
        "hidden_size": 768,
        "num_hidden_layers": 24,
        "num_heads": 24,
        "head_dim": 64,
        "n_groups": 1,
        "state_size": 128,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": True,
    }
    tensors = checkpoints.original_mamba_names(weights.mamba2_tensors(in_hf_terms, seed))
    checkpoints.write_folder(folder, config, tensors, "float32", "bin")
    return RandomCheckpoint(folder, ("mamba2",), 50277, "mamba2-130m")


def rwkv7_01b(seed: int, folder: Path) -> RandomCheckpoint:
    """The shapes of RWKV-7 World 0.1B, a `.pth` file in bf16."""
    config = {
        "vocab_size": 65536,
        "hidden_size": 768,
        "head_dim": 64,
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
        "decay_low_rank_dim": 64,
        "a_low_rank_dim": 64,
        "v_low_rank_dim": 32,
        "gate_low_rank_dim": 128,
        "tie_word_embeddings": False,
    }
    path = checkpoints.write_pth(folder / "rwkv7-0.1b.pth", weights.rwkv7_tensors(config, seed), "bfloat16")
    return RandomCheckpoint(path, ("rwkv_pip",), config["vocab_size"], "rwkv7-0.1b")


def gla_340m(seed: int, folder: Path) -> RandomCheckpoint:
    """The shapes of fla-hub's gla-340M, in bf16."""
    config = GLA_340M
    checkpoints.write_folder(folder, config, fla_tensors(resolved_fla(config), seed), "bfloat16", "safetensors")
    return RandomCheckpoint(folder, ("fla_naive",), config["vocab_size"], "gla-340M")


PUBLIC: dict[str, Writer] = {
    "mamba-130m": mamba_130m,
    "mamba2-130m": mamba2_130m,
    "rwkv7-0.1b": rwkv7_01b,
    "gla-340m": gla_340m,
}
