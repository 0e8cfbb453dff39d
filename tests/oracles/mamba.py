"""Mamba (both layouts) and Falcon-Mamba by transformers' own models, their plain torch path, fp32."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers.models.falcon_mamba import FalconMambaForCausalLM
from transformers.models.mamba import MambaConfig, MambaForCausalLM

from tests.oracles.worker import Forward, serve

# `ssm_cfg` holds keyword arguments of mamba_ssm's `Mamba` module.
SSM_KEYS = {
    "d_state": "state_size",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "dt_rank": "time_step_rank",
    "bias": "use_bias",
    "conv_bias": "use_conv_bias",
}


def load(folder: Path) -> Forward:
    config = json.loads((folder / "config.json").read_text())
    model = (
        from_original(folder, config)
        if "d_model" in config and "architectures" not in config
        else from_hf(folder, config)
    )
    return lambda ids: model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def from_hf(folder: Path, config: dict[str, object]) -> MambaForCausalLM | FalconMambaForCausalLM:
    family = FalconMambaForCausalLM if config["architectures"] == ["FalconMambaForCausalLM"] else MambaForCausalLM
    model, info = family.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {name: found for name, found in info.items() if found}
    assert not problems, f"transformers did not load all of it: {problems}"
    return model.eval()


def from_original(folder: Path, config: dict[str, object]) -> MambaForCausalLM:
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    ssm = config.get("ssm_cfg")
    assert isinstance(ssm, dict)
    model = MambaForCausalLM(
        MambaConfig(
            vocab_size=stored["backbone.embedding.weight"].shape[0],
            hidden_size=config["d_model"],
            num_hidden_layers=config["n_layer"],
            layer_norm_epsilon=1e-5,
            tie_word_embeddings=config.get("tie_embeddings", True),
            **{SSM_KEYS[name]: value for name, value in ssm.items() if name in SSM_KEYS},
        )
    )
    renamed = {name.replace(".embedding.", ".embeddings."): tensor.float() for name, tensor in stored.items()}
    model.load_state_dict(renamed, strict=True)
    return model.eval()


if __name__ == "__main__":
    serve(load)
