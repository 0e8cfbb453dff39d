"""Configurations of published models, and how many bytes their state takes: recurrent memory in fp32, the rest in bf16.

The figures are the products of the sizes that the models' papers and cards give.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

MAMBA_28B: Config = {
    "architectures": ["MambaForCausalLM"],
    "vocab_size": 50280,
    "hidden_size": 2560,
    "intermediate_size": 5120,
    "num_hidden_layers": 64,
    "state_size": 16,
    "conv_kernel": 4,
    "time_step_rank": 160,
}
MAMBA_28B_ORIGINAL: Config = {"d_model": 2560, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {}}
FALCON_MAMBA_7B: Config = {
    "architectures": ["FalconMambaForCausalLM"],
    "vocab_size": 65024,
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "expand": 16,
    "num_hidden_layers": 64,
    "state_size": 16,
    "conv_kernel": 4,
    "time_step_rank": 256,
    "tie_word_embeddings": False,
}
MAMBA2_27B: Config = {
    "d_model": 2560,
    "n_layer": 64,
    "vocab_size": 50277,
    "ssm_cfg": {"layer": "Mamba2"},
    "pad_vocab_size_multiple": 16,
}
GLA_13B: Config = {"architectures": ["GLAForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 4}
GLA_27B: Config = {"architectures": ["GLAForCausalLM"], "hidden_size": 2560, "num_hidden_layers": 32, "num_heads": 5}


def _fla(architecture: str, **sizes: Any) -> Config:
    return {"architectures": [f"{architecture}ForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 24, **sizes}


RETNET_13B = _fla("RetNet", num_heads=8)
HGRN_13B = _fla("HGRN")
HGRN2_13B = _fla("HGRN2", expand_ratio=128)
DELTA_NET_13B = _fla("DeltaNet", num_heads=16)
GATED_DELTANET_13B = _fla("GatedDeltaNet", num_hidden_layers=21, num_heads=6, head_dim=256, expand_v=2)
XLSTM_7B: Config = {
    "architectures": ["xLSTMForCausalLM"],
    "embedding_dim": 4096,
    "num_blocks": 32,
    "num_heads": 8,
    "vocab_size": 50304,
}


def _based(hidden: int, layers: int, linear: list[int], windows: list[int]) -> Config:
    source = "based.models.mixers"
    return {
        "model_type": "gpt2",
        "activation_function": "swiglu",
        "vocab_size": 50257,
        "pad_vocab_size_multiple": 8,
        "n_embd": hidden,
        "n_head": 16,
        "n_inner": 2 * hidden,
        "n_layer": layers,
        "rms_norm": True,
        "rotary_emb_fraction": 1,
        **dict.fromkeys(("qkv_proj_bias", "out_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False),
        "mixer": {"_target_": f"{source}.convolution.BaseConv", "expand_proj": 4, "kernel_sizes": 3, "use_bias": True},
        "alt_mixer_layers": linear,
        "alt_mixer": {
            "_target_": f"{source}.linear_attention.LinearAttention",
            "feature_dim": 16,
            "feature_map": {"_target_": f"{source}.linear_attention.TaylorExp", "input_dim": 16},
            "num_heads": 16,
        },
        "alt_mixer_2_layers": windows,
        "alt_mixer_2": {"_target_": f"{source}.slide_attention.SlidingAttention", "window_size": 256},
    }


BASED_360M = _based(1024, 27, [1, 6, 11, 16, 21], [2, 7, 12, 17, 22])
JRT_360M: Config = {
    **_based(1024, 26, [1, 6, 11, 16, 21], [2, 7, 12, 17, 22]),
    "enc_length": 1024,
    "alt_mixer": {
        "_target_": "based.models.mixers.prefix_linear_attention.PrefixLinearAttention",
        "feature_dim": 16,
        "feature_name": "taylor_exp",
        "num_heads": 16,
        "num_key_value_heads": 16,
        "enc_length": 1024,
        "dec_length": 1024,
    },
}
BASED_1B = _based(1792, 36, [1, 6, 11, 16, 21, 27, 33], [2, 7, 12, 17, 22, 28, 34])

PUBLIC_STATES: dict[str, tuple[Config, dict[str, int]]] = {
    "mamba-2.8b-hf": (MAMBA_28B, {"ssm": 64 * 5120 * 16 * 4, "conv": 64 * 5120 * 3 * 2}),
    "mamba-2.8b": (MAMBA_28B_ORIGINAL, {"ssm": 64 * 5120 * 16 * 4, "conv": 64 * 5120 * 3 * 2}),
    "falcon-mamba-7b": (FALCON_MAMBA_7B, {"ssm": 64 * 8192 * 16 * 4, "conv": 64 * 8192 * 3 * 2}),
    "mamba2-2.7b": (MAMBA2_27B, {"ssm": 64 * 5120 * 128 * 4, "conv": 64 * 5376 * 3 * 2}),
    "gla-1.3b": (GLA_13B, {"recurrent": 24 * 4 * 256 * 512 * 4}),
    "gla-2.7b": (GLA_27B, {"recurrent": 32 * 5 * 256 * 512 * 4}),
    "retnet-1.3b": (RETNET_13B, {"recurrent": 24 * 8 * 256 * 512 * 4, "position": 8}),
    "hgrn-1.3b": (HGRN_13B, {"recurrent": 24 * 2048 * 4}),
    "hgrn2-1.3b": (HGRN2_13B, {"recurrent": 24 * 16 * 128 * 128 * 4}),
    "delta_net-1.3b": (DELTA_NET_13B, {"recurrent": 24 * 16 * 128 * 128 * 4, "conv": 24 * 3 * 3 * 2048 * 2}),
    "gated_deltanet-1.3b": (
        GATED_DELTANET_13B,
        {"recurrent": 21 * 6 * 256 * 512 * 4, "conv": 21 * 3 * 6 * (256 + 256 + 512) * 2},
    ),
    # The paper's running maximum, 8 numbers a layer, is not needed: see `ostinato.models.xlstm`.
    "xlstm-7b": (XLSTM_7B, {"mlstm": 32 * (8 * 256 * 512 + 8 * 256) * 4}),
    "based-360m": (
        BASED_360M,
        {
            "linear": 5 * 16 * 273 * 65 * 4,
            "conv": 17 * 2 * 2048 * 2,
            "window_keys": 5 * 129 * 1024 * 2,
            "window_values": 5 * 129 * 1024 * 2,
            "position": 8,
        },
    ),
    "JRT-360M-30B": (
        JRT_360M,
        {
            "linear": 5 * 16 * 273 * 65 * 4,
            "conv": 16 * 2 * 2048 * 2,
            "window_keys": 5 * 129 * 1024 * 2,
            "window_values": 5 * 129 * 1024 * 2,
            "position": 8,
        },
    ),
    "based-1b": (
        BASED_1B,
        {
            "linear": 7 * 16 * 273 * 113 * 4,
            "conv": 22 * 2 * 3584 * 2,
            "window_keys": 7 * 129 * 1792 * 2,
            "window_values": 7 * 129 * 1792 * 2,
            "position": 8,
        },
    ),
}
# In billions, rounded. Names are not always right about it: gla-1.3b has 1.37, xlstm-7b has 6.87.
PUBLIC_PARAMETERS = {
    "mamba-2.8b-hf": 2.8,
    "mamba-2.8b": 2.8,
    "falcon-mamba-7b": 7.3,
    "mamba2-2.7b": 2.7,
    "gla-1.3b": 1.4,
    "gla-2.7b": 2.7,
    "retnet-1.3b": 1.4,
    "hgrn-1.3b": 1.4,
    "hgrn2-1.3b": 1.4,
    "delta_net-1.3b": 1.4,
    "gated_deltanet-1.3b": 1.4,
    "xlstm-7b": 6.9,
    "based-360m": 0.4,
    "JRT-360M-30B": 0.4,
    "based-1b": 1.3,
}
