"""What a model takes, found without reading its weights: from their headers, or from the configuration alone.

The model is built as for serving, but on PyTorch's meta device, whose tensors have shapes and no values. So its figures
come from the same code, and whatever would be refused at loading is refused here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostinato.models.base import StateSpec
from ostinato.models.checkpoint import STORED_DTYPES, Checkpoint, open_checkpoint, read_config
from ostinato.models.errors import CheckpointError
from ostinato.models.hub import download_config
from ostinato.models.registry import load_model
from ostinato.models.sources import WeightFiles, local_path, original_file
from ostinato.models.weight_files import TensorInfo, WeightFile, open_weight_file

META = "meta"
MOST_ELEMENTS = 10**14
MOST_TENSORS = 300_000
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class Outline:
    """What is known of a model before it is loaded.

    parameters: elements of all tensors that are used. dtype: of the projections. weight_bytes: loaded in that dtype.
    """

    family: str
    architecture: str
    parameters: int
    dtype: torch.dtype
    weight_bytes: int
    state_spec: StateSpec

    @property
    def window(self) -> int | None:
        """Tokens that attention layers see, the current one included; None where there are no such layers."""
        rings = [tensor.shape[0] for tensor in self.state_spec.tensors if tensor.name == "window_keys"]
        return max(rings, default=None)


def read_outline(model: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Outline:
    """Looks at a folder, a `.pth` file or a hub id, of which only the small files are downloaded.

    dtype: of the projections; None takes the stored one, or where there are no weights the one that the configuration
    names. Raises CheckpointError, UnsupportedModelError: as `open_checkpoint` and `load_model`; without weights also if
    the configuration does not say all shapes.
    """
    counted = _Counter()
    checkpoint = _open(os.fspath(model), counted)
    loaded = load_model(checkpoint, META, dtype)
    return Outline(
        family=loaded.family,
        architecture=loaded.architecture,
        parameters=counted.elements,
        dtype=loaded.dtype,
        weight_bytes=loaded.weight_bytes,
        state_spec=loaded.state_spec,
    )


@dataclass(slots=True)
class _Counter:
    elements: int = 0
    tensors: int = 0

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor without values, which is counted. Raises CheckpointError: there are too many."""
        self.elements += math.prod(shape)
        self.tensors += 1
        if self.elements > MOST_ELEMENTS or self.tensors > MOST_TENSORS:
            most = f"{MOST_ELEMENTS} parameters or {MOST_TENSORS} tensors"
            raise CheckpointError(f"the configuration asks for more than {most}, which no model has")
        return torch.empty(shape, dtype=dtype, device=META)


def _open(model: str, counted: _Counter) -> Checkpoint:
    path = local_path(model) or download_config(model)
    if original_file(path) is None and not any(any(path.glob(pattern)) for pattern in _WEIGHTS):
        return _Unweighted(path, counted)
    return open_checkpoint(path, open_file=lambda file: _Header(open_weight_file(file), counted))


class _Header:
    """A weight file whose values are never read."""

    def __init__(self, file: WeightFile, counted: _Counter) -> None:
        self.path = file.path
        self.tensors: Mapping[str, TensorInfo] = file.tensors
        self._file, self._counted = file, counted

    def load(self, name: str) -> Tensor:
        """The stored tensor's shape and dtype."""
        info = self.tensors[name]
        return self._counted.tensor(info.shape, info.dtype)

    def release(self) -> None:
        """See `WeightFile.release`."""
        self._file.release()


class _Unweighted(Checkpoint):
    """A folder with a configuration and no weights: every tensor that is asked for is there, in the right shape."""

    def __init__(self, folder: Path, counted: _Counter) -> None:
        self._counted = counted
        config, architecture = read_config(folder)
        described_by = WeightFiles((folder / "config.json",))
        super().__init__(folder, architecture, described_by, [], config=config, generation_config={})

    def shape(self, name: str, dims: int | None = None) -> tuple[int, ...]:
        """Unknown. Raises CheckpointError."""
        del dims
        raise CheckpointError(
            f"{self.path} holds no weights, and without them the shape of {name!r} is unknown: "
            "give a folder that has them, or a .pth file"
        )

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor of that shape, without values."""
        del name
        return self._counted.tensor(shape, self.dtype)

    def _prevailing_dtype(self) -> torch.dtype:
        return _named_dtype(self.config)


def _named_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """What transformers writes of the weights' dtype; float32 where nothing is said."""
    name = config.get("dtype", config.get("torch_dtype"))
    return next((dtype for dtype in STORED_DTYPES if str(dtype) == f"torch.{name}"), torch.float32)
