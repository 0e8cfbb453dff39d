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
    "rwkv7_fla": FOLDER / "rwkv7_fla",
    "rwkv7_pth": FOLDER / "rwkv7_pth" / "rwkv7-g1-tiny-ctx4096.pth",
    "gla": FOLDER / "gla",
}


@functools.cache
def golden_values(name: str) -> dict[str, torch.Tensor]:
    """By name, for `short` and `long`: input_ids, logits, greedy_ids, greedy_logits (see tests/goldens/README.md)."""
    return load_file(FOLDER / name / "golden.safetensors")
