"""flash-linear-attention's own models, Triton kernels in Triton's interpreter, fp32.

Their attention layers call the `flash_attn` package, which needs a GPU: PyTorch's attention stands in for it.
"""

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

import fla.layers.attn  # noqa: E402  (after the two switches)
import fla.models  # noqa: E402
from fla.models.utils import Cache  # noqa: E402

from tests.interpreter import look_once  # noqa: E402
from tests.oracles.flash_attention import flash_attn_func  # noqa: E402
from tests.oracles.worker import Forward, serve  # noqa: E402

# `flash_attn` needs a GPU; where it is not installed, this is None.
fla.layers.attn.flash_attn_func = flash_attn_func

# From 64 tokens on, the models choose chunked kernels, which the interpreter cannot run.
MAX_TOKENS = 48


def read_model(folder: Path, **options: object) -> torch.nn.Module:
    """`options`: of its config, in place of those on disk."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(fla.models, architecture).from_pretrained(
        folder, dtype=torch.float32, fuse_cross_entropy=False, output_loading_info=True, **options
    )
    problems = {name: found for name, found in info.items() if found}
    assert not problems, f"fla did not load all of it: {problems}"
    return model.eval()


def load(folder: Path) -> Forward:
    model = read_model(folder)
    # Plain torch, of any length, but they continue with one token only.
    if isinstance(model, fla.models.Mamba2ForCausalLM | fla.models.SambaForCausalLM):
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
    look_once()
    serve(load)
