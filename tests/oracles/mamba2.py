"""Mamba-2 by transformers' `Mamba2ForCausalLM`, its plain torch path, fp32, both layouts, without a cache.

transformers normalises all groups together there. mamba_ssm, with which published weights were trained, normalises each
by itself, as transformers does for Zamba2: that norm is put in place of the other. `test_oracles.py` holds the result
to logits of mamba_ssm.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch

for package in ("fla", "mamba_ssm", "causal_conv1d"):  # whose kernels are preferred where they are installed
    sys.modules[package] = None  # type: ignore[assignment]  # None: importing it fails

from transformers.models.mamba2 import Mamba2Config, Mamba2ForCausalLM  # noqa: E402  (after hiding them)
from transformers.models.zamba2.modeling_zamba2 import Zamba2RMSNormGated  # noqa: E402

from tests.oracles.worker import Forward, serve  # noqa: E402

# `ssm_cfg` holds keyword arguments of mamba_ssm's `Mamba2` module, whose defaults are these.
SSM_KEYS: dict[str, tuple[str, object]] = {
    "d_state": ("state_size", 128),
    "d_conv": ("conv_kernel", 4),
    "expand": ("expand", 2),
    "headdim": ("head_dim", 64),
    "ngroups": ("n_groups", 1),
    "dt_limit": ("time_step_limit", (0.0, math.inf)),
    "bias": ("use_bias", False),
    "conv_bias": ("use_conv_bias", True),
}


def load(folder: Path) -> Forward:
    config = json.loads((folder / "config.json").read_text())
    model = from_hf(folder) if "architectures" in config else from_original(folder, config)
    for layer in model.backbone.layers:
        layer.mixer.norm = norm_per_group(layer.mixer.norm, model.config.n_groups)
    return lambda ids: model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def norm_per_group(norm: torch.nn.Module, groups: int) -> torch.nn.Module:
    weight = norm.weight
    assert isinstance(weight, torch.nn.Parameter)
    per_group = Zamba2RMSNormGated(weight.numel(), weight.numel() // groups, eps=norm.variance_epsilon)
    per_group.weight = weight
    return per_group


def from_hf(folder: Path) -> Mamba2ForCausalLM:
    model, info = Mamba2ForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {name: found for name, found in info.items() if found}
    assert not problems, f"transformers did not load all of it: {problems}"
    return model.eval()


def from_original(folder: Path, config: dict[str, object]) -> Mamba2ForCausalLM:
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    ssm, hidden = config["ssm_cfg"], config["d_model"]
    assert isinstance(ssm, dict)
    assert isinstance(hidden, int)
    sizes = {name: ssm.get(key, default) for key, (name, default) in SSM_KEYS.items()}
    model = Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=stored["backbone.embedding.weight"].shape[0],
            hidden_size=hidden,
            num_hidden_layers=config["n_layer"],
            num_heads=sizes["expand"] * hidden // sizes["head_dim"],
            layer_norm_epsilon=1e-5,
            tie_word_embeddings=config.get("tie_embeddings", True),
            **sizes,
        )
    )
    renamed = {name.replace(".embedding.", ".embeddings."): tensor.float() for name, tensor in stored.items()}
    model.load_state_dict(renamed, strict=True)
    return model.eval()


if __name__ == "__main__":
    serve(load)
