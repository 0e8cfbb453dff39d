"""Options that change the mathematics and are not implemented are refused by name, never ignored.

Each is set in the config of an otherwise correct checkpoint.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.errors import UnsupportedModelError
from ostinato.models.registry import load_model
from tests.models.goldens import PATHS
from tests.models.random_checkpoints import TINY

ATTENTION = {"layers": [0], "num_heads": 2, "window_size": 32}
WHOLE = {"layers": [0], "num_heads": 1}
FLA = ("gla", "retnet", "hgrn", "hgrn2", "delta_net", "gated_deltanet", "kda")
FULL_ATTENTION = {"layers": [0], "num_heads": 2}
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
    *((family, "hidden_act", act) for family in FLA for act in ("powlu", "gelu")),
    *((family, "attn", WHOLE) for family in FLA),
    *((family, "attnres_block_size", 4) for family in FLA),
    *((family, "elementwise_affine", False) for family in ("gla", "retnet", "hgrn", "hgrn2")),
    *((family, "use_short_conv", True) for family in ("gla", "retnet", "hgrn", "hgrn2")),
    *((family, "use_short_conv", False) for family in ("delta_net", "gated_deltanet", "kda")),
    ("gla", "feature_map", "relu"),
    ("rwkv5_hf", "model_version", "5_1"),
    ("rwkv5_hf", "head_size", 7),
    ("rwkv6_hf", "head_size", 7),
    ("rwkv6_fla", "hidden_act", "relu"),
    ("rwkv6_fla", "attn", ATTENTION),
    ("rwkv6_fla", "norm_bias", False),
    ("rwkv6_fla", "norm_first", False),
    ("gla", "use_gv", True),
    ("gla", "gate_logit_normalizer", 8),
    ("retnet", "feature_map", "relu"),
    ("delta_net", "use_beta", False),
    ("delta_net", "qk_norm", "sum"),
    ("delta_net", "qk_activation", "relu"),
    ("gated_deltanet", "output_gate_activation", "tanh"),
    ("rwkv7_fla", "hidden_act", "relu"),
    ("rwkv7_fla", "attn", ATTENTION),
    ("rwkv7_fla", "norm_bias", False),
    ("rwkv7_fla", "norm_first", False),
    ("rwkv7_fla", "value_dim", 1024),
    ("rwkv7_fla", "value_dim", [7]),
    ("rwkv7_fla", "num_heads", 5),
    ("falcon_mamba", "hidden_act", "gelu"),
    ("xlstm", "use_bias", True),
    ("xlstm", "add_out_norm", False),
    ("xlstm", "add_post_norm", True),
    ("xlstm", "add_qk_norm", True),
    ("xlstm", "tie_word_embeddings", True),
    ("xlstm", "weight_mode", "quantized"),
    ("xlstm", "gate_soft_cap", 40.0),
    ("xlstm", "eps", 1e-3),
    ("based", "activation_function", "gelu"),
    ("based", "rms_norm", False),
    ("based", "prenorm", False),
    ("based", "parallel_block", True),
    ("based", "mlp_type", "glu"),
    ("based", "scale_attn_weights", False),
    ("based", "scale_attn_by_inverse_layer_idx", True),
    ("based", "rotary_emb_interleaved", True),
    ("based", "rotary_emb_scale_base", 512),
    ("based", "rotary_emb_fraction", 0.45),
    ("based", "qkv_proj_bias", True),
    ("based", "mlp_fc1_bias", True),
    ("samba", "hidden_act", "gelu"),
    ("samba", "attnres_block_size", 4),
    ("samba", "attn", FULL_ATTENTION),
    ("recurrent_gemma", "hidden_activation", "gelu"),
    ("recurrent_gemma", "embeddings_scale_by_sqrt_dim", False),
    ("recurrent_gemma", "head_dim", 7),
    ("recurrent_gemma", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ("recurrent_gemma", "rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
    *(
        (family, option, True)
        for family in ("bamba", "falcon_h1")
        for option in ("mamba_proj_bias", "attention_bias", "mlp_bias")
    ),
    ("bamba", "hidden_act", "gelu"),
    ("bamba", "mamba_d_head", 5),
    ("falcon_h1", "projectors_bias", True),
    ("falcon_h1", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ("granite4", "hidden_act", "gelu"),
    ("granite4", "attention_bias", True),
    ("granite4", "position_embedding_type", "alibi"),
    ("qwen3_next", "hidden_act", "gelu"),
    ("qwen3_next", "attention_bias", True),
    ("qwen3_next", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
]
BASED_MIXERS: list[tuple[str, str, Any]] = [
    ("mixer", "_target_", "based.models.mixers.hyena.HyenaOperator"),
    ("mixer", "bidirectional", True),
    ("alt_mixer", "fixed_decay", True),
    ("alt_mixer", "eps", 1e-6),
    ("alt_mixer", "feature_map", None),
    ("alt_mixer", "feature_map", {"_target_": "based.models.mixers.linear_attention.TaylorExp", "input_dim": 64}),
    ("alt_mixer", "feature_map", {"_target_": "based.models.mixers.hedgehog.Hedgehog", "input_dim": 8}),
    ("alt_mixer_2", "_target_", "flash_attn.modules.mha.MHA"),
    ("alt_mixer_2", "dropout_add", 0.5),
]


def named(value: object) -> str:
    return json.dumps(value).replace('"', "") if not isinstance(value, dict) else "set"


@pytest.mark.parametrize(("family", "option", "value"), REFUSED, ids=lambda value: named(value))
def test_option_is_refused_by_name(family: str, option: str, value: Any, tmp_path: Path) -> None:
    folder = TINY[family](0, tmp_path / family).path
    set_option(folder, {option: value})
    named_as = "rope_type" if option == "rope_parameters" else option
    with pytest.raises(UnsupportedModelError, match=named_as) as refused:
        load_model(open_checkpoint(folder))
    assert str(folder / "config.json") in str(refused.value)


@pytest.mark.parametrize(
    ("family", "option", "value"),
    [
        ("gla", "attn", []),
        ("gla", "use_gk", True),
        ("gla", "fuse_cross_entropy", True),
        ("gla", "share_conv_kernel", True),
        ("gla", "max_position_embeddings", 7),
        ("rwkv4_hf", "rescale_every", 2),
        ("rwkv4_hf", "context_length", 7),
        ("rwkv5_hf", "num_attention_heads", 7),
        ("rwkv6_fla", "proj_low_rank_dim", 7),
        ("retnet", "attn_mode", "parallel"),
        ("delta_net", "norm_first", True),
        ("delta_net", "use_output_norm", False),
        ("delta_net", "use_elu", True),
        ("gated_deltanet", "qk_norm", "l2"),
        ("kda", "safe_gate", True),
        ("rwkv7_fla", "attn_mode", "fused_recurrent"),
        ("mamba_hf", "rescale_prenorm_residual", True),
        ("mamba_hf", "time_step_max", 0.5),
        ("mamba_orig", "fused_add_norm", False),
        ("mamba2_hf", "norm_before_gate", False),
        ("mamba2_hf", "chunk_size", 7),
        ("mamba2_hf", "time_step_max", 0.5),
        ("mamba2_orig", "attn_cfg", {"num_heads": 4}),
        ("falcon_mamba", "use_mambapy", True),
        ("xlstm", "chunkwise_kernel", "chunkwise--triton_xl_chunk"),
        ("based", "fused_mlp", True),
        ("based", "use_flash_attn", False),
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


JRT_MIXERS: list[tuple[str, str, Any]] = [
    ("alt_mixer", "use_mask", False),
    ("alt_mixer", "feature_name", "relu"),
    ("alt_mixer", "scale_dim", 8),
    ("alt_mixer", "eps", 1e-6),
    ("alt_mixer", "enc_length", 8),  # and the model's own is 16
    ("alt_mixer_2", "window_size", 4096),
]


@pytest.mark.parametrize(
    ("family", "mixer", "option", "value"),
    [*(("based", *case) for case in BASED_MIXERS), *(("jrt", *case) for case in JRT_MIXERS)],
    ids=lambda value: named(value),
)
def test_option_of_a_layer_of_based_is_refused_by_name(
    family: str, mixer: str, option: str, value: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(PATHS[family], tmp_path / family, copy_function=shutil.copyfile)
    arguments = json.loads((folder / "config.json").read_text())[mixer]
    set_option(folder, {mixer: {**arguments, option: value}})
    named_or_class = option if option != "_target_" else str(value)
    with pytest.raises(UnsupportedModelError, match=re.escape(named_or_class)) as refused:
        load_model(open_checkpoint(folder))
    assert str(folder / "config.json") in str(refused.value)


def test_full_attention_in_based_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(PATHS["based"], tmp_path / "based", copy_function=shutil.copyfile)
    set_option(folder, {"alt_mixer_2": None})
    with pytest.raises(UnsupportedModelError, match="layer 2 has full attention"):
        load_model(open_checkpoint(folder))


def set_option(folder: Path, changes: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
