"""Writers of checkpoints with random weights, in the layouts in which such models are published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
Container = Literal["safetensors", "sharded", "bin"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class RandomCheckpoint:
    """`path`: a folder or a `.pth` file. `oracles`: the modules of `tests.oracles` that can run it."""

    path: Path
    oracles: tuple[str, ...]
    vocab_size: int  # ids below it are tokens; the output matrix may have more rows
    label: str  # what was drawn, for messages


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Tensors, dtype: str, container: Container) -> Path:
    """Write `config.json` and the weights, stored as `dtype`. Returns the folder.

    The dtype is also written to the config, as `torch_dtype`, where the layout has an `architectures` entry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    noted = {"torch_dtype": dtype} if "architectures" in config else {}
    (folder / "config.json").write_text(json.dumps({**config, **noted}, indent=2))
    stored = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in tensors.items()}
    if container == "safetensors":
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    elif container == "sharded":
        _write_shards(folder, stored)
    else:
        torch.save(stored, folder / "pytorch_model.bin")
    return folder


def _write_shards(folder: Path, stored: Tensors) -> None:
    names = list(stored)
    half = len(names) // 2
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: stored[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_pth(path: Path, tensors: Tensors, dtype: str) -> Path:
    """Write one RWKV file: a dict of tensors, pickled. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in tensors.items()}, path)
    return path


def original_mamba_names(tensors: Tensors) -> Tensors:
    """transformers' names -> the original ones, where the tied output matrix is on disk too."""
    renamed = {name.replace(".embeddings.", ".embedding."): tensor for name, tensor in tensors.items()}
    renamed.setdefault("lm_head.weight", renamed["backbone.embedding.weight"])
    return renamed


RWKV7_BLOCK_NAMES = {
    "ln0": "pre_norm",
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "att.receptance": "attn.r_proj",
    "att.key": "attn.k_proj",
    "att.value": "attn.v_proj",
    "att.output": "attn.o_proj",
    "att.ln_x": "attn.g_norm",
}


def fla_rwkv7_names(tensors: Tensors) -> Tensors:
    """The names of a `.pth` file -> fla's, with the low-rank factors transposed and the FFN's `x_k` flattened."""
    renamed = {}
    for name, tensor in tensors.items():
        new, turned = _fla_rwkv7_name(name)
        if new is not None:
            renamed[new] = tensor.T.contiguous() if turned else tensor
            if new.endswith(("ffn.x_k", "lora.2.bias", "attn.k_k", "attn.k_a")):
                renamed[new] = tensor.flatten()
    return renamed


def _fla_rwkv7_name(name: str) -> tuple[str | None, bool]:
    """The new name (None: fla has no such tensor) and whether the matrix is transposed."""
    top = {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"}
    head, _, rest = name.partition(".")
    if head != "blocks":
        return f"{top[head]}.{rest}", False
    layer, _, rest = rest.partition(".")
    prefix = f"model.layers.{layer}."
    group, _, leaf = rest.rpartition(".")
    if group == "att" and leaf[0] in "wavg" and leaf[1:] in ("0", "1", "2"):
        if layer == "0" and leaf[0] == "v":
            return None, False
        part = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[leaf[1]]
        return f"{prefix}attn.{leaf[0]}_lora.lora.{part}", leaf[1] != "0"
    if group in RWKV7_BLOCK_NAMES:
        return f"{prefix}{RWKV7_BLOCK_NAMES[group]}.{leaf}", False
    return prefix + rest.replace("att.", "attn."), False
