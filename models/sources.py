"""From what the user calls MODEL to files: which configuration, which weight files, and whether they agree.

A folder is in the layout of transformers: `config.json` beside `model.safetensors`, `pytorch_model.bin`, or
either one sharded with an index. Where both formats lie there, safetensors is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.models.errors import CheckpointError
from ostinato.models.weight_files import WeightFile

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that hold the tensors of one model. `shard_of` is the index's map, None without an index."""

    paths: tuple[Path, ...]
    index: Path | None = None
    shard_of: dict[str, Path] | None = None

    @property
    def described_by(self) -> Path:
        """The file to name when a tensor is nowhere."""
        return self.index or self.paths[0]


def local_path(model: str) -> Path | None:
    """The existing file or folder that `model` names, or None if it has the form of a hub id instead.

    Raises:
        CheckpointError: it is neither; says what was looked for.
    """
    if not model:
        raise CheckpointError(
            "the model is an empty string; give a folder, a .pth file or a hub id 'organisation/name'"
        )
    path = Path(os.path.expanduser(model))
    if os.path.exists(path):
        return path
    if _HUB_ID.fullmatch(model) and path.suffix not in _WEIGHT_SUFFIXES:
        return None
    raise CheckpointError(
        f"model {model!r}: there is no such file or folder ({path.absolute()}), "
        "and it is not a hub id of the form 'organisation/name'"
    )


def original_file(path: Path) -> Path | None:
    """The RWKV file to open at `path`: itself, or the only `.pth` file of a folder without `config.json`.

    Raises:
        CheckpointError: a file of another kind, or a folder with several `.pth` files to choose from.
    """
    if path.is_file():
        if path.suffix != ".pth":
            raise CheckpointError(f"{path} is no .pth file (RWKV's original layout); give the folder with config.json")
        return path
    if (path / "config.json").exists():
        return None
    candidates = sorted(path.glob("*.pth"))
    if len(candidates) > 1:
        names = ", ".join(candidate.name for candidate in candidates)
        raise CheckpointError(f"{path} has no config.json and several .pth files: give the path of one of {names}")
    return candidates[0] if candidates else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. `Infinity` and `NaN`, bare or as {"__float__": "Infinity"}, are read as floats: real
    configurations contain them, and transformers writes the second form.

    Raises:
        CheckpointError: missing, not UTF-8 text, not JSON (names line and column), nested too deeply, with an
            integer of thousands of digits, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_hook=_unmarked)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: byte {error.start} is wrong") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    except ValueError as error:  # what Python says of an integer that is too long to convert
        raise CheckpointError(f"{path} cannot be read: {str(error).partition(';')[0]}") from error
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found a {type(value).__name__}")
    return value


def _unmarked(value: dict[str, Any]) -> dict[str, Any] | float:
    mark = value.get("__float__")
    return float(mark) if len(value) == 1 and mark in ("Infinity", "-Infinity", "NaN") else value


def read_optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`, but an absent file is an empty object."""
    return read_json(path) if os.path.lexists(path) else {}


def find_weights(folder: Path) -> WeightFiles:
    """The weight files of a folder in the layout of transformers.

    Raises:
        CheckpointError: there are none, they are ambiguous, or the index and the files disagree.
    """
    for name in SINGLE_FILES:
        single, index = folder / name, folder / f"{name}.index.json"
        if os.path.lexists(single) and os.path.lexists(index):
            raise CheckpointError(
                f"{folder} holds both {single.name} and {index.name}, which may differ; remove one of them"
            )
        if os.path.lexists(single):
            return WeightFiles((single,))
        if os.path.lexists(index):
            return _read_index(index)
        if shards := _shards(single):
            raise CheckpointError(f"{folder} holds {shards[0].name}, but the index {index.name} is missing")
    found = sorted(path.name for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    raise CheckpointError(
        f"{folder} holds no weights: expected {' or '.join(SINGLE_FILES)}, or their shards with an index"
        f"{'; found ' + ', '.join(found) if found else ''}"
    )


def locate_tensors(weights: WeightFiles, files: Sequence[WeightFile]) -> dict[str, WeightFile]:
    """Which of the open `files` each tensor is in.

    Raises:
        CheckpointError: a tensor is in two files, or the index and the files disagree.
    """
    file_of: dict[str, WeightFile] = {}
    for file in files:
        for name in file.tensors:
            if name in file_of:
                raise CheckpointError(f"tensor {name!r} is in both {file_of[name].path} and {file.path}")
            file_of[name] = file
    if weights.shard_of is None:
        return file_of
    for name, file in file_of.items():
        if name not in weights.shard_of:
            raise CheckpointError(f"{file.path} holds tensor {name!r}, which {weights.described_by} does not list")
    for name, path in weights.shard_of.items():
        if name not in file_of or file_of[name].path != path:
            raise CheckpointError(f"{path} lacks tensor {name!r}, which {weights.described_by} says it holds")
    return file_of


def _read_index(index: Path) -> WeightFiles:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: 'weight_map' must be an object that gives each tensor's file")
    shard_of: dict[str, Path] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: tensor {name!r} must lie in a file of the same folder, found {file!r}")
        shard_of[name] = index.parent / file
    paths = tuple(sorted(set(shard_of.values())))
    for path in paths:
        if not os.path.exists(path):  # unlike Path.exists, also of names that no file can have
            raise CheckpointError(f"{path} is missing, but {index.name} names it")
    for path in _shards(index.with_name(index.name.removesuffix(".index.json"))):
        if path not in paths:
            raise CheckpointError(f"{path} is a shard that {index.name} does not name; remove it or mend the index")
    return WeightFiles(paths, index, shard_of)


def _shards(single: Path) -> list[Path]:
    """Files named like shards of `single`: model-00001-of-00002.safetensors beside model.safetensors."""
    return sorted(single.parent.glob(f"{single.stem}-*-of-*{single.suffix}"))
