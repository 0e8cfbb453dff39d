"""The `config.json` of published models, as far as it matters for their shapes."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

MAMBA_130M: Config = {
    "architectures": ["MambaForCausalLM"],
    "model_type": "mamba",
    "vocab_size": 50280,
    "hidden_size": 768,
    "intermediate_size": 1536,
    "num_hidden_layers": 24,
    "state_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "time_step_rank": 48,
    "use_bias": False,
    "use_conv_bias": True,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "residual_in_fp32": True,
}

MAMBA2_370M: Config = {
    "architectures": ["Mamba2ForCausalLM"],
    "model_type": "mamba2",
    "vocab_size": 50288,
    "hidden_size": 1024,
    "num_hidden_layers": 48,
    "num_heads": 32,
    "head_dim": 64,
    "state_size": 128,
    "n_groups": 1,
    "conv_kernel": 4,
    "expand": 2,
    "chunk_size": 256,
    "use_bias": False,
    "use_conv_bias": True,
    "layer_norm_epsilon": 1e-5,
    "rms_norm": True,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "residual_in_fp32": True,
}

RWKV7_04B: Config = {
    "architectures": ["RWKV7ForCausalLM"],
    "model_type": "rwkv7",
    "vocab_size": 65536,
    "hidden_size": 1024,
    "head_dim": 64,
    "num_heads": 16,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "decay_low_rank_dim": 64,
    "a_low_rank_dim": 64,
    "v_low_rank_dim": 32,
    "gate_low_rank_dim": 128,
    "value_dim": [1024] * 24,
    "norm_eps": 1e-5,
    "norm_first": True,
    "norm_bias": True,
    "fuse_norm": False,
    "hidden_act": "sqrelu",
    "attn": None,
    "tie_word_embeddings": False,
}

GLA_340M: Config = {
    "architectures": ["GLAForCausalLM"],
    "model_type": "gla",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_heads": 4,
    "num_kv_heads": None,
    "use_output_gate": True,
    "expand_k": 0.5,
    "expand_v": 1,
    "hidden_ratio": 4,
    "intermediate_size": None,
    "norm_eps": 1e-6,
    "clamp_min": None,
    "fuse_norm": True,
    "tie_word_embeddings": False,
    "hidden_act": "swish",
}
