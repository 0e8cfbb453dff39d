"""Builders of bad checkpoints: each spoils one thing in a copy of a golden and returns what to open."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

Build = Callable[[Path], Path | str]
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], object]
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def config_text(text: str | bytes) -> Build:
    def build(folder: Path) -> Path:
        (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return build


def config(**changes: object) -> Build:
    """Change entries of `config.json`; None removes one."""

    def build(folder: Path) -> Path:
        file = folder / "config.json"
        changed = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
        return folder

    return build


def text_file(name: str, text: str) -> Build:
    def build(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder

    return build


def removed(name: str) -> Build:
    def build(folder: Path) -> Path:
        (folder / name).unlink()
        return folder

    return build


def config_is_folder(folder: Path) -> Path:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    return folder


def weights_elsewhere(folder: Path) -> Path:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    return folder


def weights_link_dangles(folder: Path) -> Path:
    (folder / "model.safetensors").rename(folder / "moved")
    (folder / "model.safetensors").symlink_to("nowhere")
    return folder


def shard(folder: Path) -> dict[str, Any]:
    """Split `model.safetensors` into two shards with an index, and return the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: SHARDS[position % 2] for position, name in enumerate(names)}
    for file in SHARDS:
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return index


def sharded(spoil: Callable[[Path, dict[str, Any]], object]) -> Build:
    """Shard the folder, then `spoil(folder, weight_map)` and write the index with the changed weight map."""

    def build(folder: Path) -> Path:
        index = shard(folder)
        spoil(folder, index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))
        return folder

    return build


def duplicate_tensor(folder: Path, weight_map: dict[str, Any]) -> None:
    """The second shard gets a copy of a tensor of the first."""
    second = load_file(folder / SHARDS[1])
    second["backbone.embeddings.weight"] = load_file(folder / SHARDS[0])["backbone.embeddings.weight"]
    save_file(second, folder / SHARDS[1])


def index_and_single(folder: Path) -> Path:
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)
    return folder


def shards_without_index(folder: Path) -> Path:
    shard(folder)
    (folder / INDEX).unlink()
    return folder


def file_bytes(name: str, change: Callable[[bytes], bytes]) -> Build:
    """Rewrite a file's bytes."""

    def build(folder: Path) -> Path:
        file = folder / name
        file.write_bytes(change(file.read_bytes()))
        return folder if file.suffix != ".pth" else file

    return build


def safetensors_header(header: dict[str, Any], data: bytes = b"") -> Build:
    def build(folder: Path) -> Path:
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
        return folder

    return build


def saved(name: str, change: Change, *, zipped: bool = True) -> Build:
    """Put what `change` makes of a weight file's tensors in their place."""

    def build(folder: Path) -> Path:
        file = folder / name
        if file.suffix == ".safetensors":
            save_file(cast(Tensors, change(load_file(file))), file)
            return folder
        tensors = torch.load(file, weights_only=True)
        torch.save(change(tensors), file, _use_new_zipfile_serialization=zipped)
        return folder if file.suffix != ".pth" else file

    return build


def packed_to_four_bits(tensor: str) -> Build:
    """Of `model.safetensors`: two numbers in each byte, as some quantized repositories store them."""
    return saved("model.safetensors", lambda tensors: {**tensors, tensor: tensors[tensor][:, ::2].byte().contiguous()})


def raw_pickle(name: str, value: object) -> Build:
    def build(folder: Path) -> Path:
        file = folder / name
        file.write_bytes(pickle.dumps(value))
        return folder if file.suffix != ".pth" else file

    return build


def damaged_pickle(folder: Path) -> Path:
    """The archive stays whole; the pickle in it loses its second half."""
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content[: len(content) // 2] if name.endswith("data.pkl") else content)
    return folder


class RunsCommand:
    """Unpickled without protection, this runs a shell command that makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.trace}'",)


def only_file(name: str) -> Build:
    def build(folder: Path) -> Path:
        return folder / name

    return build


def two_pth_files(folder: Path) -> Path:
    (file,) = folder.glob("*.pth")
    (folder / "another.pth").write_bytes(file.read_bytes())
    return folder
