"""RWKV-4, 5 and 6 whose files are in order, but whose tensors are not what their version needs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.models import bad_files as bad
from tests.models.bad_cases import BIN, SAFETENSORS, BadCase, unsupported
from tests.models.bad_tensors import Family, family_cases

RWKV4, RWKV5 = "RWKV-4-Pile-tiny-20220807.pth", "RWKV-5-World-tiny-v2-ctx4096.pth"
RWKV6 = "RWKV-x060-World-tiny-v2.1-ctx4096.pth"
FAMILIES = [
    Family("rwkv4_hf", BIN, "rwkv.blocks.1.attention.output.weight", "RwkvForCausalLM"),
    Family("rwkv4_pth", RWKV4, "blocks.1.ffn.receptance.weight", "RWKV-4 as .pth file"),
    Family("rwkv5_hf", BIN, "rwkv.blocks.1.attention.time_decay", "Rwkv5ForCausalLM"),
    Family("rwkv5_pth", RWKV5, "blocks.1.att.time_faaaa", "RWKV-5.2 as .pth file"),
    Family("rwkv6_fla", SAFETENSORS, "model.layers.1.attn.x_bias", "RWKV6ForCausalLM"),
    Family("rwkv6_hf", BIN, "rwkv.blocks.1.attention.time_decay_w2", "Rwkv6ForCausalLM"),
    Family("rwkv6_pth", RWKV6, "blocks.1.att.ln_x.weight", "RWKV-6 as .pth file"),
]


def changed(file: str, name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> bad.Build:
    return bad.saved(file, lambda tensors: {**tensors, name: make(tensors[name])})


DECAY = "rwkv.blocks.0.attention.time_decay"
LAYOUT_CASES = [
    *(
        unsupported(
            f"rwkv5_hf_{name}",
            changed(BIN, DECAY, make),
            rf"rwkv5_hf: RWKV-5\.0 and RWKV-5\.1 \(one decay a head in '{DECAY}'\) are not served; use RWKV-5\.2",
            "rwkv5_hf",
        )
        for name, make in (
            ("decay_per_head", lambda decay: decay[:, 0]),
            ("decay_per_head_1", lambda decay: decay[:, :1]),
        )
    ),
    BadCase(
        "rwkv5_pth_heads_do_not_fit",
        changed(RWKV5, "blocks.0.att.time_faaaa", lambda bonus: bonus[:, :60]),
        rf"{RWKV5}: block 0 has 2 heads of 60 \('time_faaaa'\), which do not make up 128 channels",
        "rwkv5_pth",
    ),
    BadCase(
        "rwkv6_pth_rank_scalar",
        changed(RWKV6, "blocks.1.att.time_decay_w1", lambda _: torch.zeros(())),
        rf"{RWKV6}: tensor 'blocks\.1\.att\.time_decay_w1' has shape \(\)",
        "rwkv6_pth",
    ),
    BadCase(
        "rwkv6_fla_rank_not_in_five",
        changed(SAFETENSORS, "model.layers.1.attn.x_proj.2.weight", lambda up: up[:, :7].contiguous()),
        r"model\.safetensors: tensor 'model\.layers\.1\.attn\.x_proj\..\..*has shape .* but .* is expected",
        "rwkv6_fla",
    ),
]
CONFIG_CASES = [
    BadCase(f"{golden}_{key}_{value}", bad.config(**{key: value}), rf"{golden}/config\.json: {key} {message}", golden)
    for golden, key, value, message in [
        ("rwkv4_hf", "hidden_size", "40", "must be a positive integer"),
        ("rwkv4_hf", "layer_norm_epsilon", 0, "must be above zero"),
        ("rwkv5_hf", "head_size_divisor", -8, "must be above zero"),
        ("rwkv6_hf", "num_hidden_layers", [2], "must be a positive integer"),
        ("rwkv6_fla", "num_heads", 3, "is 3, which does not divide 128"),
        ("rwkv6_fla", "norm_eps", 0, "must be above zero"),
        ("rwkv6_fla", "expand_k", 0.3, "makes 38.4 of 128, which is no positive integer"),
        ("rwkv6_fla", "expand_v", 1e308, "must be a finite number"),
    ]
]
RWKV_CASES = [*(case for family in FAMILIES for case in family_cases(family)), *LAYOUT_CASES, *CONFIG_CASES]
