"""Bamba, Falcon-H1, Granite 4 and Qwen3-Next by transformers: plain torch, fp32, no cache, so full attention."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

for package in ("fla", "mamba_ssm", "causal_conv1d"):  # whose kernels are preferred where they are installed
    sys.modules[package] = None  # type: ignore[assignment]  # None: importing it fails

from transformers.models.bamba import BambaForCausalLM  # noqa: E402  (after hiding them)
from transformers.models.falcon_h1 import FalconH1ForCausalLM  # noqa: E402
from transformers.models.granitemoehybrid import GraniteMoeHybridForCausalLM  # noqa: E402
from transformers.models.qwen3_next import Qwen3NextForCausalLM  # noqa: E402

from tests.oracles.worker import Forward, serve  # noqa: E402

CLASSES = {
    "BambaForCausalLM": BambaForCausalLM,
    "FalconH1ForCausalLM": FalconH1ForCausalLM,
    "GraniteMoeHybridForCausalLM": GraniteMoeHybridForCausalLM,
    "Qwen3NextForCausalLM": Qwen3NextForCausalLM,
}
# Experts one by one: the product of all of them together wants sizes that are multiples of four.
_WITH_EXPERTS = ("GraniteMoeHybridForCausalLM", "Qwen3NextForCausalLM")
_OPTIONS = {architecture: {"experts_implementation": "eager"} for architecture in _WITH_EXPERTS}


def load(folder: Path) -> Forward:
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = CLASSES[architecture].from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
        attn_implementation="eager",
        **_OPTIONS.get(architecture, {}),
    )
    problems = {name: found for name, found in info.items() if found}
    assert not problems, f"transformers did not load all of it: {problems}"
    model.eval()
    return lambda ids: model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=0).logits[0]


if __name__ == "__main__":
    serve(load)
