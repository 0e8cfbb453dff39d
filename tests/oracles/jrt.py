"""JRT-RNN in plain torch, fp32: BASED's oracle, with prefix linear attention as the paper's equation has it.

What it is asked begins with a number that is no token: how many of the tokens are the prompt. `test_oracles.py` holds
it to logits of the authors' code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.oracles import based
from tests.oracles.based import Weights, heads_of
from tests.oracles.worker import Forward, serve

PADDING = 220


def load(folder: Path) -> Forward:
    length = json.loads((folder / "config.json").read_text())["enc_length"]

    def forward(asked: list[int]) -> Tensor:
        prompt, ids = asked[0], asked[1:]
        missing = max(0, length - prompt)

        def mixed(u: Tensor, weights: Weights, layer: int, config: dict[str, Any]) -> Tensor:
            if layer in config["alt_mixer_layers"] and layer not in config["alt_mixer_2_layers"]:
                return prefix(u, weights, config["alt_mixer"], missing)
            return based.mixer_of(u, weights, layer, config)

        return based.load(folder, mixed)([PADDING] * missing + ids)[missing:]

    return forward


def prefix(u: Tensor, weights: Weights, config: dict[str, Any], missing: int) -> Tensor:
    """The first `missing` tokens are padding, whose keys are zero and whose values are not."""
    heads, length = config["num_heads"], config["enc_length"]
    q, k, v = (heads_of(weights.apply(f"proj_{name}", u), heads) for name in "qkv")
    ke, ve = (heads_of(weights.apply(f"proj_{name}_enc", u[:length]), heads) for name in "kv")
    k[..., :missing, :], ke[..., :missing, :] = 0.0, 0.0
    own, of_all = torch.tril(similarity(q, k)), similarity(q, ke)
    y = (own @ v + of_all @ ve) / (own.sum(-1, keepdim=True) + of_all.sum(-1, keepdim=True))
    return weights.apply("out_proj", y[0].transpose(0, 1).flatten(1))


def similarity(q: Tensor, k: Tensor) -> Tensor:
    """The exponential's Taylor series up to its square."""
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return 1 + s + s.square() / 2


if __name__ == "__main__":
    serve(load)
