"""The tiny checkpoints under tests/goldens, and the logits that come with them."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[1] / "goldens"
PATHS = {
    "mamba_hf": FOLDER / "mamba_hf",
    "mamba_orig": FOLDER / "mamba_orig",
    "mamba2_hf": FOLDER / "mamba2_hf",
    "mamba2_orig": FOLDER / "mamba2_orig",
    "mamba2_codestral_like": FOLDER / "mamba2_codestral_like",
    "rwkv4_hf": FOLDER / "rwkv4_hf",
    "rwkv4_pth": FOLDER / "rwkv4_pth" / "RWKV-4-Pile-tiny-20220807.pth",
    "rwkv5_hf": FOLDER / "rwkv5_hf",
    "rwkv5_pth": FOLDER / "rwkv5_pth" / "RWKV-5-World-tiny-v2-ctx4096.pth",
    "rwkv6_fla": FOLDER / "rwkv6_fla",
    "rwkv6_hf": FOLDER / "rwkv6_hf",
    "rwkv6_pth": FOLDER / "rwkv6_pth" / "RWKV-x060-World-tiny-v2.1-ctx4096.pth",
    "rwkv7_fla": FOLDER / "rwkv7_fla",
    "rwkv7_pth": FOLDER / "rwkv7_pth" / "rwkv7-g1-tiny-ctx4096.pth",
    "bamba": FOLDER / "bamba",
    "falcon_h1": FOLDER / "falcon_h1",
    "granite4": FOLDER / "granite4",
    "qwen3_next": FOLDER / "qwen3_next",
    "gla": FOLDER / "gla",
    "gla_swa": FOLDER / "gla_swa",
    "recurrent_gemma": FOLDER / "recurrent_gemma",
    "samba": FOLDER / "samba",
    "retnet": FOLDER / "retnet",
    "hgrn": FOLDER / "hgrn",
    "hgrn2": FOLDER / "hgrn2",
    "delta_net": FOLDER / "delta_net",
    "delta_net_negeig": FOLDER / "delta_net_negeig",
    "gated_deltanet": FOLDER / "gated_deltanet",
    "kda": FOLDER / "kda",
    "falcon_mamba": FOLDER / "falcon_mamba",
    "xlstm": FOLDER / "xlstm",
    "based": FOLDER / "based",
    "jrt": FOLDER / "jrt",
}
PER_GROUP = "pergroup."


@functools.cache
def golden_values(name: str) -> dict[str, torch.Tensor]:
    """By name, for `short` and `long`: input_ids, logits, greedy_ids, greedy_logits (see tests/goldens/README.md).

    Where there is a version of them with a norm per group, it is that one: what Ostinato computes.
    """
    values = load_file(FOLDER / name / "golden.safetensors")
    per_group = {key.removeprefix(PER_GROUP): value for key, value in values.items() if key.startswith(PER_GROUP)}
    return values | per_group
