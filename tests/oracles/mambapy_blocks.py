"""Mamba by the `mambapy` package: its blocks, with the embedding, last norm and output matrix put around them.

Reads the original state-spaces layout. `mambapy` fixes the norm's epsilon at 1e-5, as that layout does.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mambapy.mamba import Mamba, MambaConfig, RMSNorm

from tests.oracles.worker import Forward, serve


def load(folder: Path) -> Forward:
    config = json.loads((folder / "config.json").read_text())
    stored = {k: v.float() for k, v in torch.load(folder / "pytorch_model.bin", weights_only=True).items()}
    ssm = {name: value for name, value in config["ssm_cfg"].items() if name != "layer"}
    renames = {"expand": "expand_factor"}
    settings = {renames.get(name, name): value for name, value in ssm.items()}
    blocks = Mamba(MambaConfig(d_model=config["d_model"], n_layers=config["n_layer"], pscan=False, **settings))
    blocks.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in stored.items() if k.startswith("backbone.layers.")}, strict=True
    )
    norm = RMSNorm(config["d_model"], 1e-5)
    norm.load_state_dict({"weight": stored["backbone.norm_f.weight"]})

    def forward(ids: list[int]) -> torch.Tensor:
        hidden = norm(blocks(stored["backbone.embedding.weight"][torch.tensor([ids])]))
        return (hidden @ stored["lm_head.weight"].T)[0]

    return forward


if __name__ == "__main__":
    serve(load)
