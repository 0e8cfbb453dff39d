"""What a layout leaves out, and where it is then taken from: the same model with and without it gives the same bits."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ostinato.models.base import Model
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.models.goldens import PATHS
from tests.models.random_checkpoints import rwkv7_fla
from tests.models.running import Reader, relative_error

TOKENS = [5, 3, 8, 13, 21, 2]


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[str], Path]:
    """Gives a copy of a golden folder that can be changed."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(PATHS[name], tmp_path / name, copy_function=shutil.copyfile))

    return copied


def set_config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def logits(folder: Path) -> torch.Tensor:
    return Reader(load(folder)).read(TOKENS)


def load(folder: Path) -> Model:
    return load_model(open_checkpoint(folder), dtype=torch.float32)


@pytest.mark.parametrize("config", [{}, {"tie_embeddings": True}], ids=["by default", "said"])
@pytest.mark.parametrize("name", ["mamba_orig", "mamba2_orig"])
def test_original_mamba_whose_tied_head_is_not_on_disk(
    name: str, config: dict[str, Any], copy_of: Callable[[str], Path]
) -> None:
    folder = set_config(copy_of(name), **config)
    file = folder / "pytorch_model.bin"
    tensors = torch.load(file, weights_only=True)
    torch.save({**tensors, "lm_head.weight": tensors["backbone.embedding.weight"].clone()}, file)
    expected = logits(folder)
    tensors.pop("lm_head.weight")
    torch.save(tensors, file)
    assert torch.equal(logits(folder), expected)


@pytest.mark.parametrize("config", [{"num_heads": 2}, {"num_heads": 2, "head_dim": None}], ids=["both", "heads"])
def test_rwkv7_by_the_number_of_heads(config: dict[str, Any], copy_of: Callable[[str], Path]) -> None:
    expected = logits(PATHS["rwkv7_fla"])
    assert torch.equal(logits(set_config(copy_of("rwkv7_fla"), **config)), expected)


@pytest.mark.parametrize("limits", [None, [0.0, math.inf], [0, {"__float__": "Infinity"}], [-math.inf, math.inf]])
def test_mamba2_step_sizes_that_are_not_limited(limits: Any, copy_of: Callable[[str], Path]) -> None:
    expected = logits(PATHS["mamba2_codestral_like"])
    assert torch.equal(logits(set_config(copy_of("mamba2_codestral_like"), time_step_limit=limits)), expected)


def test_mamba2_step_sizes_are_limited_for_every_token(copy_of: Callable[[str], Path]) -> None:
    model = load(set_config(copy_of("mamba2_hf"), time_step_limit=[0.02, 0.1]))
    whole, single = Reader(model), Reader(model)
    together = whole.read(TOKENS)
    assert torch.equal(torch.cat([single.read([token]) for token in TOKENS]), together)
    assert relative_error(together, logits(PATHS["mamba2_hf"])) > 0.1


def test_rwkv7_head_size_is_divided_out_of_the_hidden_size(tmp_path: Path) -> None:
    folder = rwkv7_fla(3, tmp_path / "heads_of_32", hidden_size=96, head_dim=32).path
    model = load(set_config(folder, head_dim=None, num_heads=3))
    assert {tensor.shape for tensor in model.state_spec.tensors} >= {(3, 32, 32)}
