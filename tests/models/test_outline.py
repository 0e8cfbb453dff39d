"""What a model takes, found without its weights: as when it is loaded, and as published sizes say."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.errors import CheckpointError, UnsupportedModelError
from ostinato.models.outline import read_outline
from ostinato.models.registry import load_model
from tests.models import checkpoints, weights
from tests.models.public_sizes import PUBLIC_PARAMETERS, PUBLIC_STATES
from tests.models.test_contract import CHECKPOINTS

each_architecture = pytest.mark.parametrize("architecture", sorted(CHECKPOINTS))
# Tensors that some files carry and nobody reads.
UNREAD = ("metrics", "blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")
DTYPE = torch.float32


@each_architecture
def test_it_is_as_when_it_is_loaded(architecture: str) -> None:
    outline = read_outline(CHECKPOINTS[architecture], DTYPE)
    checkpoint = open_checkpoint(CHECKPOINTS[architecture])
    used = [name for name in checkpoint.names if not any(part in name for part in UNREAD)]
    elements = sum(torch.Size(checkpoint.shape(name)).numel() for name in used)
    model = load_model(checkpoint, dtype=DTYPE)
    assert (outline.family, outline.architecture) == (model.family, model.architecture)
    assert outline.state_spec == model.state_spec
    assert outline.parameters == elements
    assert outline.weight_bytes <= model.weight_bytes  # on a CPU the products need a tied output matrix of their own


@pytest.mark.parametrize("architecture", sorted(name for name in CHECKPOINTS if not name.lower().startswith("rwkv")))
def test_a_configuration_is_enough(architecture: str, tmp_path: Path) -> None:
    shutil.copy(CHECKPOINTS[architecture] / "config.json", tmp_path)
    alone, whole = (read_outline(folder, torch.bfloat16) for folder in (tmp_path, CHECKPOINTS[architecture]))
    assert (alone.family, alone.state_spec) == (whole.family, whole.state_spec)
    head = load_model(open_checkpoint(CHECKPOINTS[architecture])).head_params
    assert whole.parameters - alone.parameters in (0, head)  # some tied output matrices are on disk all the same


def test_where_a_configuration_is_not_enough_it_says_so(tmp_path: Path) -> None:
    shutil.copy(CHECKPOINTS["RWKV7ForCausalLM"] / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no weights.* the shape of .*lora"):
        read_outline(tmp_path)


@pytest.mark.parametrize("name", PUBLIC_STATES)
def test_public_sizes(name: str, tmp_path: Path) -> None:
    config, expected = PUBLIC_STATES[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    outline = read_outline(tmp_path, torch.bfloat16)
    assert {tensor.name: tensor.num_bytes for tensor in outline.state_spec.tensors} == expected
    assert round(outline.parameters / 1e9, 1) == PUBLIC_PARAMETERS[name]


RWKV7_15B = {
    "architectures": ["RWKV7ForCausalLM"],
    "vocab_size": 65536,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "intermediate_size": 8192,
    "head_dim": 64,
    "norm_eps": 1e-5,
    "decay_low_rank_dim": 96,
    "a_low_rank_dim": 96,
    "v_low_rank_dim": 64,
    "gate_low_rank_dim": 256,
    "tie_word_embeddings": False,
}


def test_weights_are_not_read(tmp_path: Path) -> None:
    """Three gigabytes that are not there: the file ends with its header, and a hole."""
    with FakeTensorMode():
        tensors = checkpoints.fla_rwkv7_names(weights.rwkv7_tensors(RWKV7_15B, seed=0))
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    (tmp_path / "config.json").write_text(json.dumps(RWKV7_15B))
    write_hollow(tmp_path / "model.safetensors", shapes)
    outline = read_outline(tmp_path)
    assert outline.state_spec.bytes_per_state == 24 * (32 * 64 * 64 * 4 + 2 * 2048 * 2)
    assert outline.parameters == sum(torch.Size(shape).numel() for shape in shapes.values())
    assert outline.dtype == torch.bfloat16


def write_hollow(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of bf16 tensors: 8 bytes of header length, the header, and nothing written after it."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + end)


def test_a_file_without_its_weights_is_still_checked(tmp_path: Path) -> None:
    config, _ = PUBLIC_STATES["xlstm-7b"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_hollow(tmp_path / "model.safetensors", {"backbone.embeddings.weight": (50304, 2048)})
    with pytest.raises(CheckpointError, match=r"backbone\.embeddings\.weight.* \(50304, 4096\) is expected"):
        read_outline(tmp_path)


def test_what_is_not_served_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM is not served"):
        read_outline(tmp_path)
