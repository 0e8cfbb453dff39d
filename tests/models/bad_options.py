"""Checkpoints whose configuration contradicts itself or the weights: what each family says of its own options."""

from __future__ import annotations

from ostinato.models.errors import UnsupportedModelError
from tests.models import bad_files as bad
from tests.models.bad_cases import BadCase

FOUR_BITS = BadCase(
    "four_bits_unannounced",
    bad.packed_to_four_bits("backbone.embeddings.weight"),
    r"model\.safetensors: tensor 'backbone\.embeddings\.weight' has dtype uint8, .*; quantized weights are not read$",
)
XLSTM_CASES = [
    BadCase(f"xlstm_{key}", bad.config(**{key: value}), rf"xlstm/config\.json: {message}", "xlstm")
    for key, value, message in [
        ("num_heads", 5, "num_heads is 5, which does not divide 24"),
        ("output_logit_soft_cap", 0, "output_logit_soft_cap must be above zero"),
        ("ffn_proj_factor", -1.0, "ffn_proj_factor must be above zero"),
    ]
]
BASED_CASES = [
    BadCase(f"based_{name}", bad.config(**{key: value}), rf"based/config\.json: {message}", "based")
    for name, key, value, message in [
        ("layer_beyond_the_last", "alt_mixer_layers", [9], "alt_mixer_layers must be layers of 4, found 9"),
        ("layer_of_another_type", "alt_mixer_2_layers", ["1"], "alt_mixer_2_layers must be layers of 4, found '1'"),
        ("layers_not_a_list", "alt_mixer_layers", 1, "alt_mixer_layers must be a list of layers, found 1"),
        ("mixer_without_a_class", "alt_mixer", {"num_heads": 2}, "alt_mixer must be an object with a '_target_'"),
        ("heads_do_not_divide", "n_head", 3, "n_head is 3, which does not divide 32"),
    ]
]
JRT_CASES = [
    BadCase(
        "jrt_without_a_length",
        bad.config(alt_mixer={"_target_": "PrefixLinearAttention", "num_heads": 4, "feature_dim": 4}),
        r"jrt/config\.json: enc_length is missing",
        "jrt",
    ),
    BadCase(
        "jrt_without_a_token_to_pad_with",
        bad.config(vocab_size=220),
        r"jrt/config\.json: vocab_size = 220 is not supported: prompts are padded with token 220",
        "jrt",
        UnsupportedModelError,
    ),
]
OPTION_CASES = [FOUR_BITS, *XLSTM_CASES, *BASED_CASES, *JRT_CASES]
