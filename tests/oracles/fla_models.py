"""GLA, Mamba-2, RWKV-6 and RWKV-7 by flash-linear-attention's own models, fp32, Triton kernels in the interpreter."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import triton.runtime.autotuner


def seconds(
    self: triton.runtime.autotuner.Autotuner, *args: object, config: triton.Config, **meta: object
) -> list[float]:
    """Stands in for the autotuner's timer, the one part that needs a GPU driver.

    The interpreter's time goes with the number of programs, so the largest blocks are the fastest.
    """
    return [1.0 / (1 + sum(size for size in config.kwargs.values() if isinstance(size, int)))] * 3


triton.runtime.autotuner.Autotuner._bench = seconds

from fla.models import GLAForCausalLM, Mamba2ForCausalLM, RWKV6ForCausalLM, RWKV7ForCausalLM  # noqa: E402  (after the two switches)
from fla.models.utils import Cache  # noqa: E402

from tests.oracles.worker import Forward, serve  # noqa: E402

CLASSES = {
    "GLAForCausalLM": GLAForCausalLM,
    "Mamba2ForCausalLM": Mamba2ForCausalLM,
    "RWKV6ForCausalLM": RWKV6ForCausalLM,
    "RWKV7ForCausalLM": RWKV7ForCausalLM,
}
# From 64 tokens on, the models choose chunked kernels, which the interpreter cannot run.
MAX_TOKENS = 48


def load(folder: Path) -> Forward:
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = CLASSES[architecture].from_pretrained(
        folder, dtype=torch.float32, fuse_cross_entropy=False, output_loading_info=True
    )
    problems = {name: found for name, found in info.items() if found}
    assert not problems, f"fla did not load all of it: {problems}"
    model.eval()
    if architecture == "Mamba2ForCausalLM":  # plain torch, which reads any length, but continues with one token only
        return lambda ids: model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    def forward(ids: list[int]) -> torch.Tensor:
        state, pieces = Cache(), []
        for piece in torch.tensor([ids]).split(MAX_TOKENS, dim=1):
            output = model(input_ids=piece, past_key_values=state, use_cache=True)
            state = output.past_key_values
            pieces.append(output.logits[0])
        return torch.cat(pieces)

    return forward


if __name__ == "__main__":
    serve(load)
