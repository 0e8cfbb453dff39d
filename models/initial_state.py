"""Initial states of RWKV that were tuned ("state tuning"): a `.pth` file with `blocks.N.att.time_state` of every layer.

They are a model's memory before the first token, where it is otherwise empty. The authors store each head transposed
against their own running state: the files are [heads, value, key] for RWKV-5 and RWKV-6, whose code keeps
[heads, key, value], and [heads, key, value] for RWKV-7, whose code keeps [heads, value, key], as we do.
"""

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from ostinato.models.base import Model
from ostinato.models.errors import CheckpointError, UnsupportedModelError
from ostinato.models.weight_files import WeightFile, open_weight_file

_KEY_FIRST = {"RWKV-5.2": False, "RWKV-6": False, "RWKV-7": True}
_NAME = re.compile(r"blocks\.(0|[1-9]\d{0,8})\.att\.time_state")
_TUNED = "wkv"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_initial_state(path: str | os.PathLike[str], model: Model) -> dict[str, Tensor]:
    """Reads a tuned initial state for `model`.

    Returns a whole state, by the names of `model.state_spec`: each [layers, *shape] in the spec's dtype, on the CPU.
    Token-shift vectors, which are not tuned, are zeros.

    Raises:
        CheckpointError: the file is missing, damaged, or not such a file; or it does not fit `model`: other layers,
            other shapes; or it holds numbers that are not finite.
        UnsupportedModelError: `model` is of a family that has no such files.
    """
    file = open_weight_file(Path(path))
    try:
        if model.family not in _KEY_FIRST:
            served = ", ".join(_KEY_FIRST)
            raise UnsupportedModelError(
                f"{file.path}: {model.family} takes no tuned initial state; such files exist for {served}"
            )
        return _read(file, model)
    finally:
        file.release()


def _read(file: WeightFile, model: Model) -> dict[str, Tensor]:
    state = {
        tensor.name: torch.zeros((tensor.layers, *tensor.shape), dtype=tensor.dtype)
        for tensor in model.state_spec.tensors
    }
    tuned = state[_TUNED]
    _check_layers(file, len(tuned))
    for layer, target in enumerate(tuned):
        name = f"blocks.{layer}.att.time_state"
        stored = target.mT if _KEY_FIRST[model.family] else target
        stored.copy_(_checked(file, name, tuple(stored.shape)))
    return state


def _check_layers(file: WeightFile, layers: int) -> None:
    others = [name for name in file.tensors if not _NAME.fullmatch(name)]
    if others:
        raise CheckpointError(
            f"{file.path} holds {others[0]!r}: a tuned initial state has only 'blocks.N.att.time_state'; "
            "save those tensors to a file of their own"
        )
    found = {int(match[1]) for name in file.tensors if (match := _NAME.fullmatch(name))}
    if found != set(range(layers)):
        wrong = min(found ^ set(range(layers)))
        fault = f"has one for layer {wrong}" if wrong in found else f"lacks 'blocks.{wrong}.att.time_state'"
        raise CheckpointError(
            f"{file.path} {fault}, but the model has {layers} layers; use a state that was tuned on this very model"
        )


def _checked(file: WeightFile, name: str, shape: tuple[int, ...]) -> Tensor:
    info = file.tensors[name]
    if info.shape != shape:
        raise CheckpointError(
            f"{file.path}: {name!r} has shape {info.shape}, but the model needs {shape}; "
            "use a state that was tuned on this very model"
        )
    if info.dtype not in _DTYPES:
        raise CheckpointError(f"{file.path}: {name!r} is {info.dtype}; save it as float32, bfloat16 or float16")
    tensor = file.load(name)
    if not torch.isfinite(tensor).all():
        raise CheckpointError(
            f"{file.path}: {name!r} holds numbers that are not finite, from which every text would go wrong; "
            "use an earlier checkpoint of the tuning"
        )
    return tensor
