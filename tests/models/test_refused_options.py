"""Options that change the mathematics and are not implemented are refused by name, never ignored.

Each is set in the config of an otherwise correct checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.errors import UnsupportedModelError
from ostinato.models.registry import load_model
from tests.models.random_checkpoints import TINY

ATTENTION = {"layers": [0], "num_heads": 2, "window_size": 32}
REFUSED: list[tuple[str, str, Any]] = [
    ("mamba_hf", "hidden_act", "gelu"),
    ("mamba_hf", "hidden_act", "relu"),
    ("mamba_hf", "use_falcon_mamba_norms", True),
    ("mamba_orig", "rms_norm", False),
    ("mamba_orig", "d_intermediate", 64),
    ("mamba_orig", "attn_layer_idx", [0]),
    ("mamba2_hf", "hidden_act", "gelu"),
    ("mamba2_hf", "rms_norm", False),
    ("mamba2_fla", "rmsnorm", False),
    ("mamba2_fla", "norm_before_gate", True),
    ("mamba2_fla", "D_has_hdim", True),
    ("mamba2_orig", "rms_norm", False),
    ("mamba2_orig", "d_intermediate", 64),
    ("mamba2_orig", "attn_layer_idx", [0]),
    ("gla", "hidden_act", "powlu"),
    ("gla", "hidden_act", "gelu"),
    ("gla", "feature_map", "relu"),
    ("gla", "use_short_conv", True),
    ("gla", "elementwise_affine", False),
    ("gla", "attn", {"layers": [0], "num_heads": 2}),
    ("gla", "use_gv", True),
    ("gla", "gate_logit_normalizer", 8),
    ("gla", "attnres_block_size", 4),
    ("rwkv5_hf", "model_version", "5_1"),
    ("rwkv5_hf", "head_size", 7),
    ("rwkv6_hf", "head_size", 7),
    ("rwkv6_fla", "hidden_act", "relu"),
    ("rwkv6_fla", "attn", ATTENTION),
    ("rwkv6_fla", "norm_bias", False),
    ("rwkv6_fla", "norm_first", False),
    ("rwkv7_fla", "hidden_act", "relu"),
    ("rwkv7_fla", "attn", ATTENTION),
    ("rwkv7_fla", "norm_bias", False),
    ("rwkv7_fla", "norm_first", False),
    ("rwkv7_fla", "value_dim", 1024),
    ("rwkv7_fla", "value_dim", [7]),
    ("rwkv7_fla", "num_heads", 5),
]


def named(value: object) -> str:
    return json.dumps(value).replace('"', "") if not isinstance(value, dict) else "set"


@pytest.mark.parametrize(("family", "option", "value"), REFUSED, ids=lambda value: named(value))
def test_option_is_refused_by_name(family: str, option: str, value: Any, tmp_path: Path) -> None:
    folder = TINY[family](0, tmp_path / family).path
    set_option(folder, {option: value})
    with pytest.raises(UnsupportedModelError, match=option) as refused:
        load_model(open_checkpoint(folder))
    assert str(folder / "config.json") in str(refused.value)


@pytest.mark.parametrize(
    ("family", "option", "value"),
    [
        ("gla", "use_gk", True),
        ("gla", "fuse_cross_entropy", True),
        ("gla", "share_conv_kernel", True),
        ("gla", "max_position_embeddings", 7),
        ("rwkv4_hf", "rescale_every", 2),
        ("rwkv4_hf", "context_length", 7),
        ("rwkv5_hf", "num_attention_heads", 7),
        ("rwkv6_fla", "proj_low_rank_dim", 7),
        ("rwkv7_fla", "attn_mode", "fused_recurrent"),
        ("mamba_hf", "rescale_prenorm_residual", True),
        ("mamba_hf", "time_step_max", 0.5),
        ("mamba_orig", "fused_add_norm", False),
        ("mamba2_hf", "norm_before_gate", False),
        ("mamba2_hf", "chunk_size", 7),
        ("mamba2_hf", "time_step_max", 0.5),
        ("mamba2_orig", "attn_cfg", {"num_heads": 4}),
    ],
    ids=lambda value: named(value),
)
def test_option_that_changes_nothing_is_accepted(family: str, option: str, value: Any, tmp_path: Path) -> None:
    folder = TINY[family](0, tmp_path / family).path
    set_option(folder, {option: value})
    assert load_model(open_checkpoint(folder)).state_spec.tensors


@pytest.mark.parametrize(
    ("option", "value"),
    [("rmsnorm", False), ("norm_before_gate", True), ("D_has_hdim", True), ("d_ssm", 8)],
    ids=lambda value: named(value),
)
def test_option_of_the_original_mamba2_block_is_refused_by_name(option: str, value: Any, tmp_path: Path) -> None:
    folder = TINY["mamba2_orig"](0, tmp_path / "mamba2_orig").path
    ssm = json.loads((folder / "config.json").read_text())["ssm_cfg"]
    set_option(folder, {"ssm_cfg": {**ssm, option: value}})
    with pytest.raises(UnsupportedModelError, match=option) as refused:
        load_model(open_checkpoint(folder))
    assert str(folder / "config.json") in str(refused.value)


def set_option(folder: Path, changes: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
