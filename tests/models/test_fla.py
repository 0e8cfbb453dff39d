"""flash-linear-attention's families: what configs leave open, and that the random checkpoints are worth a test."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from ostinato.models.base import Model
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.errors import CheckpointError, UnsupportedModelError
from ostinato.models.registry import load_model
from tests.models.checkpoints import Tensors, write_folder
from tests.models.fla_weights import fla_tensors
from tests.models.running import Reader, relative_error

Config = dict[str, Any]
SHELL: Config = {
    "vocab_size": 90,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "intermediate_size": 40,
    "fuse_norm": True,
    "tie_word_embeddings": False,
    "attn": {"layers": [1], "num_heads": 2, "num_kv_heads": 1, "qkv_bias": True, "window_size": 4},
}
RETENTION: Config = {"num_heads": 2, "num_kv_heads": None, "use_output_gate": True, "expand_v": 1}
DELTA_RULE: Config = {"conv_size": 4, "use_gate": True, "num_heads": 2, "num_v_heads": 4, "head_dim": 8, "expand_v": 1}
CONFIGS: dict[str, Config] = {
    "GLA": {**RETENTION, "expand_k": 0.5},
    "RetNet": {**RETENTION, "expand_k": 1},
    "HGRN": {"expand_ratio": 1, "use_lower_bound": True},
    "HGRN2": {"expand_ratio": 12, "use_lower_bound": True},
    "DeltaNet": {**DELTA_RULE, "expand_k": 1},
    "GatedDeltaNet": DELTA_RULE,
    "KDA": DELTA_RULE,
}
IDS = random.Random(1).choices(range(90), k=24)
each_family = pytest.mark.parametrize("family", CONFIGS)


def config_of(family: str, **changes: Any) -> Config:
    return {"architectures": [f"{family}ForCausalLM"], **SHELL, **CONFIGS[family], **changes}


def load(folder: Path, config: Config, tensors: Tensors) -> Model:
    write_folder(folder, config, tensors, "float32", "safetensors")
    return load_model(open_checkpoint(folder), dtype=torch.float32)


def logits(folder: Path, config: Config, tensors: Tensors) -> torch.Tensor:
    return Reader(load(folder, config, tensors)).read(IDS)


@each_family
def test_every_tensor_of_a_random_checkpoint_matters(family: str, tmp_path: Path) -> None:
    """Without this, agreement with an oracle could mean that a mechanism did nothing in either."""
    config = config_of(family)
    tensors = fla_tensors(config, seed=1)
    whole = logits(tmp_path, config, tensors)
    effects = {}
    for name, tensor in tensors.items():
        neutral = torch.ones_like(tensor) if "norm" in name else torch.zeros_like(tensor)
        effects[name] = relative_error(logits(tmp_path, config, {**tensors, name: neutral}), whole)
    assert min(effects.values()) > 3e-3, sorted(effects.items(), key=lambda item: item[1])[:5]


@each_family
def test_attention_in_every_layer_leaves_no_state_of_the_mixer(family: str, tmp_path: Path) -> None:
    config = config_of(family)
    config["attn"] = {**config["attn"], "layers": [2, 0, 1]}
    tensors = fla_tensors({**config, "use_lower_bound": False}, seed=1)
    if config.get("use_lower_bound"):
        tensors["model.lower_bounds"] = torch.zeros(3, 24)
    model = load(tmp_path, config, tensors)
    assert {tensor.name for tensor in model.state_spec.tensors} == {"window_keys", "window_values", "position"}
    assert torch.isfinite(Reader(model).read(IDS)).all()


def test_entries_for_different_layers_are_one(tmp_path: Path) -> None:
    config = config_of("GLA")
    config["attn"] = {**config["attn"], "layers": [0, 2]}
    tensors = fla_tensors(config, seed=1)
    expected = logits(tmp_path, config, tensors)
    entries = [{**config["attn"], "layers": [layer]} for layer in (2, 0)]
    assert torch.equal(logits(tmp_path, {**config, "attn": entries}, tensors), expected)


ENTRY = SHELL["attn"]


@pytest.mark.parametrize(
    ("attn", "message"),
    [
        ({**ENTRY, "window_size": None}, "attn has no window_size"),
        ([ENTRY, {**ENTRY, "layers": [2], "window_size": 5}], "attn has entries that differ"),
    ],
)
def test_attention_that_is_not_served_is_refused_by_name(attn: Any, message: str, tmp_path: Path) -> None:
    config = config_of("GLA")
    with pytest.raises(UnsupportedModelError, match=rf"config\.json: {message}"):
        load(tmp_path, {**config, "attn": attn}, fla_tensors(config, seed=1))


@pytest.mark.parametrize(
    ("attn", "message"),
    [
        ("full", "attn must be an object or a list of objects, found 'full'"),
        ([1], r"attn must be an object or a list of objects, found \[1\]"),
        ({**ENTRY, "layers": [3]}, r"layers must be a list of integers from 0 to 2, found \[3\]"),
        ({**ENTRY, "layers": [True]}, r"layers must be a list of integers from 0 to 2, found \[True\]"),
        ({**ENTRY, "layers": None}, "layers is missing"),
        ({**ENTRY, "layers": [1, 1]}, r"attn must be layers that are named once, found \[1, 1\]"),
        ({**ENTRY, "num_heads": 8}, "num_heads is 16, which does not divide 24"),
        ({**ENTRY, "num_kv_heads": 3}, "num_kv_heads is 3, which does not divide 2"),
        ({**ENTRY, "window_size": 0}, "window_size must be a positive integer"),
        ({**ENTRY, "rope_theta": 0}, "rope_theta must be above zero"),
    ],
    ids=str,
)
def test_wrong_attention_is_named(attn: Any, message: str, tmp_path: Path) -> None:
    config = config_of("GLA")
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        load(tmp_path, {**config, "attn": attn}, fla_tensors(config, seed=1))


def test_hgrn2_by_the_number_of_heads(tmp_path: Path) -> None:
    config = config_of("HGRN2")
    tensors = fla_tensors(config, seed=1)
    expected = logits(tmp_path, config, tensors)
    assert torch.equal(logits(tmp_path, {**config, "num_heads": 3}, tensors), expected)  # says nothing
    by_heads = {**config, "expand_ratio": None, "num_heads": 2}
    assert torch.equal(logits(tmp_path, by_heads, tensors), expected)


@pytest.mark.parametrize("family", ["HGRN", "HGRN2"])
def test_bounds_may_underflow(family: str, tmp_path: Path) -> None:
    config = config_of(family, attn=None)
    tensors = fla_tensors(config, seed=1)
    tensors["model.lower_bounds"] = torch.tensor([[300.0], [0.0], [0.0]]).expand(3, 24).contiguous()
    free = {name: tensor for name, tensor in tensors.items() if name != "model.lower_bounds"}
    expected = logits(tmp_path, {**config, "use_lower_bound": False}, free)
    assert torch.equal(logits(tmp_path, config, tensors), expected)
