"""RWKV-7 by the authors' `rwkv` package, strategy "cpu fp32". Reads a `.pth` file.

The package computes in the given precision from the start, except that it folds the first LayerNorm into the
embedding: the stored weights are therefore converted to fp32 before it sees them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

# Read when torch is imported. The package compiles its functions with TorchScript whatever RWKV_JIT_ON says, and that
# compiles anew for every number of tokens, for longer than the functions then run.
os.environ["PYTORCH_JIT"] = "0"
# Read when the package is imported; one process serves version 7 or the earlier ones, never both.
os.environ.update(RWKV_V7_ON="1", RWKV_CUDA_ON="0")

import torch

from tests.oracles.worker import Forward, serve

with contextlib.redirect_stdout(sys.stderr):  # it prints a banner when imported
    from rwkv.model import RWKV


def load(path: Path) -> Forward:
    stored = torch.load(path, weights_only=True, map_location="cpu")
    with tempfile.TemporaryDirectory() as folder:
        torch.save({name: tensor.float() for name, tensor in stored.items()}, f"{folder}/model.pth")
        model = RWKV(model=f"{folder}/model", strategy="cpu fp32")  # the package appends ".pth"

    def forward(ids: list[int]) -> torch.Tensor:
        logits, _ = model.forward(list(ids), None, full_output=True)
        return logits.view(len(ids), -1)

    return forward


if __name__ == "__main__":
    serve(load)
