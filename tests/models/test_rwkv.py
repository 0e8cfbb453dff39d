"""RWKV-4, 5 and 6: what their layouts leave out, where they differ from other implementations, and state sizes."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ostinato.models import rwkv4, rwkv5, rwkv6
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from ostinato.models.rwkv_blocks import Version, state_spec
from ostinato.models.rwkv_layouts import RWKVConfig
from tests.models.checkpoints import Tensors, write_pth
from tests.models.goldens import PATHS, golden_values
from tests.models.random_rwkv import rwkv6_fla
from tests.models.running import Reader, relative_error
from tests.models.rwkv_weights import rwkv_tensors
from tests.models.test_oracles import neutral

TOKENS = [5, 3, 8, 13, 21, 2, 34, 1]
SIZES = {
    "vocab_size": 90,
    "hidden_size": 48,
    "attention_hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "heads": 2,
    "keys": 48,
    "values": 48,
    "mix_rank": 4,
    "decay_rank": 6,
    "tie_word_embeddings": False,
}


def logits(path: Path, ids: list[int] = TOKENS) -> torch.Tensor:
    return Reader(load_model(open_checkpoint(path), dtype=torch.float32)).read(ids)


def copy_of(name: str, parent: Path, **config: Any) -> Path:
    """A golden folder with other entries in its config; None removes one."""
    folder = Path(shutil.copytree(PATHS[name], parent / name, copy_function=shutil.copyfile))
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


@pytest.mark.parametrize("version", [4, 5, 6])
def test_every_tensor_of_a_random_checkpoint_matters(version: int, tmp_path: Path) -> None:
    """Without this, agreement with an oracle could mean that a mechanism did nothing in either."""
    tensors = rwkv_tensors(version, SIZES, seed=1)
    ids = random.Random(1).choices(range(90), k=24)

    def effect(changes: Tensors) -> float:
        return relative_error(logits(write_pth(tmp_path / "model.pth", {**tensors, **changes}, "float32"), ids), whole)

    whole = logits(write_pth(tmp_path / "model.pth", tensors, "float32"), ids)
    effects = {name: effect({name: neutral(name, tensor)}) for name, tensor in tensors.items()}
    assert min(effects.values()) > 3e-3, sorted(effects.items(), key=lambda item: item[1])[:5]


@pytest.mark.parametrize("name", ["rwkv4_hf", "rwkv5_hf", "rwkv6_hf"])
def test_sizes_that_a_config_leaves_out_are_the_tensors(name: str, tmp_path: Path) -> None:
    left_out = dict.fromkeys(
        ("hidden_size", "attention_hidden_size", "intermediate_size", "vocab_size", "head_size", "head_size_divisor")
    )
    assert torch.equal(logits(copy_of(name, tmp_path, **left_out)), logits(PATHS[name]))


@pytest.mark.parametrize("name", ["rwkv5_hf", "rwkv6_hf"])
def test_early_conversions_have_the_class_name_of_rwkv4(name: str, tmp_path: Path) -> None:
    assert torch.equal(logits(copy_of(name, tmp_path, architectures=["RwkvForCausalLM"])), logits(PATHS[name]))


@pytest.mark.parametrize(("layout", "original"), [("rwkv5_hf", "rwkv5_pth"), ("rwkv6_hf", "rwkv6_pth")])
def test_a_folder_gives_the_bits_of_the_file_that_it_was_made_from(layout: str, original: str) -> None:
    assert torch.equal(logits(PATHS[layout]), logits(PATHS[original]))


@pytest.mark.parametrize("name", ["rwkv5_hf", "rwkv6_hf"])
def test_the_divisor_of_heads_enters_squared(name: str, tmp_path: Path) -> None:
    """Dividing by 1 before a norm with epsilon 1e-5 is what the first code for RWKV-5 did by mistake."""
    off = logits(copy_of(name, tmp_path, head_size_divisor=1))
    assert relative_error(off, logits(PATHS[name])) > 1e-4


def test_fla_heads_of_the_published_shape_have_the_published_epsilon(tmp_path: Path) -> None:
    """They are conversions: fla's own epsilon would not give the logits that such weights were made for."""
    golden = golden_values("rwkv6_fla")
    found = logits(copy_of("rwkv6_fla", tmp_path, norm_eps=1e-5), golden["short.input_ids"].tolist())
    assert relative_error(found, golden["short.logits"]) <= 1e-5
    other = rwkv6_fla(1, tmp_path / "random", hidden_size=64, num_heads=2, expand_k=0.5, norm_eps=1e-5).path
    loose = rwkv6_fla(1, tmp_path / "loose", hidden_size=64, num_heads=2, expand_k=0.5, norm_eps=64e-5).path
    assert relative_error(logits(other), logits(loose)) > 1e-4


PUBLIC = {
    "rwkv-4-14b": (rwkv4.VERSION, 40, 5120, 0, 3.3e6),
    "rwkv-5-world-3b": (rwkv5.VERSION, 32, 2560, 40, 21.3e6),
    "rwkv-6-world-7b": (rwkv6.VERSION, 32, 4096, 64, 34.1e6),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_bytes_per_state_of_public_sizes(name: str) -> None:
    """In bf16: the published models' memory of a text, however long."""
    version, layers, hidden, heads, expected = PUBLIC[name]
    assert isinstance(version, Version)
    config = RWKVConfig(layers, hidden, keys=hidden, values=hidden, ffn=4 * hidden, vocab_size=65536, heads=heads)
    assert state_spec(version, config, torch.bfloat16).bytes_per_state == pytest.approx(expected, rel=0.01)
