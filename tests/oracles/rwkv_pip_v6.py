"""RWKV-4, 5 and 6 by the authors' `rwkv` package, strategy "cpu fp32". Reads a `.pth` file, or a folder in the layout
of transformers. A tuned initial state may lie among the tensors of a `.pth` file.

The package computes in the given precision from the start, except that it folds the first LayerNorm into the
embedding: the stored weights are therefore converted to fp32 before it sees them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

os.environ["PYTORCH_JIT"] = "0"  # read when torch is imported; compiling takes longer than what is then computed
# Read when the package is imported; one process serves version 7 or the earlier ones, never both.
os.environ.update(RWKV_V7_ON="0", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")

import torch
from safetensors.torch import load_file

from tests.oracles.worker import Forward, serve

with contextlib.redirect_stdout(sys.stderr):  # it prints a banner when imported
    from rwkv.model import RWKV

RENAMED = (
    ("rwkv.embeddings.", "emb."),
    ("rwkv.", ""),
    ("pre_ln", "ln0"),
    ("attention.", "att."),
    ("feed_forward.", "ffn."),
    *((f"time_mix_{name}", f"time_mix_{name[0]}") for name in ("key", "value", "receptance", "gate")),
)


def stored(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".pth":
        return dict(torch.load(path, weights_only=True, map_location="cpu"))
    tensors: dict[str, torch.Tensor] = {}
    for file in path.glob("*.bin"):
        tensors.update(torch.load(file, weights_only=True, map_location="cpu"))
    for file in path.glob("*.safetensors"):
        if file.name != "golden.safetensors":
            tensors.update(load_file(file))
    return {original(name): tensor for name, tensor in tensors.items()}


def original(name: str) -> str:
    for new, old in RENAMED:
        name = name.replace(new, old)
    return name


def in_published_order(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What tells version 6 first, as in the authors' files.

    The package finds out the version and the number of heads while it goes through the names: of one layer in
    alphabetical order, as a single safetensors file has it, it takes the rank of the decay for the number of heads.
    """
    return dict(sorted(tensors.items(), key=lambda item: "time_maa" not in item[0]))


def load(path: Path) -> Forward:
    with tempfile.TemporaryDirectory() as folder:
        tensors = {name: tensor.float() for name, tensor in in_published_order(stored(path)).items()}
        torch.save(tensors, f"{folder}/model.pth")
        model = RWKV(model=f"{folder}/model.pth", strategy="cpu fp32", verbose=False)

    def forward(ids: list[int]) -> torch.Tensor:
        logits, _ = model.forward(list(ids), None, full_output=True)
        return logits.view(len(ids), -1)

    return forward


if __name__ == "__main__":
    serve(load)
