"""A checkpoint is read by consuming it: each tensor is taken once, with its shape, and none may be left over.

    with open_checkpoint("folder") as checkpoint:
        weight = checkpoint.take("backbone.norm_f.weight", (768,)).to(torch.float32)

Files stay mapped and are read when a tensor is used, so memory holds only what the caller keeps.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from ostinato.models.architecture import (
    describe_architecture,
    detect_folder,
    detect_pth,
    require_supported,
)
from ostinato.models.errors import CheckpointError
from ostinato.models.hub import download
from ostinato.models.sources import (
    WeightFiles,
    find_weights,
    local_path,
    locate_tensors,
    original_file,
    read_json,
    read_optional_json,
)
from ostinato.models.weight_files import TensorInfo, WeightFile, open_weight_file

Progress = Callable[[str, int, int], None]
"""Is called with a tensor's name, the bytes consumed so far and the bytes of the whole checkpoint."""
OpenFile = Callable[[Path], WeightFile]

STORED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_LISTED = 8


def open_checkpoint(
    model: str | os.PathLike[str], *, progress: Progress | None = None, open_file: OpenFile = open_weight_file
) -> Checkpoint:
    """Opens a model's files; downloads them first if `model` is a hub id.

    Args:
        model: an existing folder, a `.pth` file (RWKV's original layout), or a hub id `organisation/name`.
        progress: called whenever a tensor is taken or dropped.
        open_file: opens one weight file.

    Raises:
        CheckpointError: the files are missing, damaged or inconsistent, or the download failed.
        UnsupportedModelError: they are in order, but of an architecture or a variant that is not served.
    """
    path = local_path(os.fspath(model)) or download(os.fspath(model), read_config)
    file = original_file(path)
    return _open_folder(path, progress, open_file) if file is None else _open_pth(file, progress, open_file)


class Checkpoint:
    """The tensors of one model on disk, and its configuration.

    Leaving a `with` block closes it, which raises if tensors are left over.
    If the block itself raised, the files are released and nothing else is said.

    Attributes:
        path: the folder or `.pth` file.
        folder: where tokenizer files may lie.
        config: `config.json`, {} for a `.pth` file.
        generation_config: `generation_config.json`, {} where there is none.
        architecture: a key of `registry.ARCHITECTURES`.
        names: of all tensors on disk, consumed or not.
        dtype: of the stored weights: the one that most elements have.
        num_bytes: of all tensors on disk.
        progress: see `open_checkpoint`; may be replaced.
        attention_window: how many tokens layers of full attention hold, which have no window of their own; None leaves
            it to the model; may be replaced.
    """

    def __init__(
        self,
        path: Path,
        architecture: str,
        weights: WeightFiles,
        files: Sequence[WeightFile],
        *,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        progress: Progress | None = None,
    ) -> None:
        self.path = path
        self.folder = path.parent if path.is_file() else path
        self.architecture = architecture
        self.config = config
        self.generation_config = generation_config
        self.progress = progress
        self.attention_window: int | None = None
        self.held_window: int | None = None
        self._described_by = weights.described_by
        self._files = tuple(files)
        self._file_of = locate_tensors(weights, files)
        self._left = dict.fromkeys(self._file_of)
        self.names = tuple(self._file_of)
        self.num_bytes = sum(self._info(name).num_bytes for name in self.names)
        self.dtype = self._prevailing_dtype()
        self._done_bytes = 0

    def hold_window(self, default: int) -> int:
        """How many tokens this model's layers of full attention hold: `attention_window` or the default."""
        self.held_window = self.attention_window or default
        return self.held_window

    def has(self, name: str) -> bool:
        """Whether the tensor is on disk, consumed or not."""
        return name in self._file_of

    def shape(self, name: str, dims: int | None = None) -> tuple[int, ...]:
        """Shape on disk. Raises CheckpointError if the tensor is missing or has not `dims` dimensions above zero."""
        shape = self._info(name).shape
        if dims is not None and (len(shape) != dims or 0 in shape):
            raise CheckpointError(
                f"{self._file_of[name].path}: tensor {name!r} has shape {shape}, expected {dims} dimensions, none empty"
            )
        return shape

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Consumes a tensor: a view of the mapped file, in the dtype on disk (fp32, bf16 or fp16).

        Convert or copy what is kept: a view holds the file mapped, and must not be written to.

        Raises:
            CheckpointError: missing, taken before, of another shape, not of one of these dtypes, or closed.
        """
        info = self._info(name)
        file = self._file_of[name]
        if name not in self._left:
            raise CheckpointError(f"{file.path}: tensor {name!r} was taken before, or this is closed")
        if info.dtype not in STORED_DTYPES:
            allowed = ", ".join(_dtype_name(dtype) for dtype in STORED_DTYPES)
            raise CheckpointError(
                f"{file.path}: tensor {name!r} has dtype {_dtype_name(info.dtype)}, expected one of {allowed}"
                + "; quantized weights are not read" * (info.dtype.itemsize == 1)
            )
        if info.shape != tuple(shape):
            raise CheckpointError(
                f"{file.path}: tensor {name!r} has shape {info.shape}, but {tuple(shape)} is expected"
            )
        tensor = file.load(name)
        self._consume(name)
        return tensor

    def peek(self, name: str) -> torch.Tensor:
        """A tensor as `take` gives it, of whatever dtype and shape, without consuming it. Raises CheckpointError."""
        self._info(name)
        return self._file_of[name].load(name)

    def drop(self, *names: str) -> None:
        """Consumes tensors unread, for those that a format declares obsolete. Absent ones are fine."""
        for name in names:
            if name in self._left:
                self._consume(name)

    def close(self) -> None:
        """Releases the files. Raises CheckpointError if tensors are left that nothing consumed."""
        left = list(self._left)
        self.release()
        if left:
            listed = ", ".join(repr(name) for name in left[:_MAX_LISTED])
            more = f" and {len(left) - _MAX_LISTED} more" if len(left) > _MAX_LISTED else ""
            raise CheckpointError(
                f"{self._described_by} holds tensors that {describe_architecture(self.architecture)} "
                f"has no place for ({len(left)}): {listed}{more}"
            )

    def release(self) -> None:
        """Releases the files, whatever was consumed. For those who only look."""
        for file in self._files:
            file.release()
        self._left = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.release()

    def _info(self, name: str) -> TensorInfo:
        file = self._file_of.get(name)
        if file is None:
            close = difflib.get_close_matches(name, self._file_of, n=3)
            hint = f"; names like it: {', '.join(repr(each) for each in close)}" if close else ""
            raise CheckpointError(f"{self._described_by}: tensor {name!r} is missing{hint}")
        return file.tensors[name]

    def _consume(self, name: str) -> None:
        del self._left[name]
        self._done_bytes += self._info(name).num_bytes
        if self.progress is not None:
            self.progress(name, self._done_bytes, self.num_bytes)

    def _prevailing_dtype(self) -> torch.dtype:
        elements: Counter[torch.dtype] = Counter()
        for name in self.names:
            info = self._info(name)
            elements[info.dtype] += info.num_elements
        return elements.most_common(1)[0][0]


def _open_folder(folder: Path, progress: Progress | None, open_file: OpenFile) -> Checkpoint:
    config, architecture = read_config(folder)
    weights = find_weights(folder)
    return Checkpoint(
        folder,
        architecture,
        weights,
        [open_file(path) for path in weights.paths],
        config=config,
        generation_config=read_optional_json(folder / "generation_config.json"),
        progress=progress,
    )


def _open_pth(path: Path, progress: Progress | None, open_file: OpenFile) -> Checkpoint:
    file = open_file(path)
    architecture = detect_pth({name: info.shape for name, info in file.tensors.items()}, path)
    _require_served(architecture, {}, path)
    return Checkpoint(
        path, architecture, WeightFiles((path,)), [file], config={}, generation_config={}, progress=progress
    )


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """`config.json`, and the architecture that it declares, which is one that is served.

    Raises CheckpointError, UnsupportedModelError: as `open_checkpoint`.
    """
    config_file = folder / "config.json"
    config = read_json(config_file)
    architecture = detect_folder(config, config_file)
    _require_served(architecture, config, config_file)
    return config, architecture


def _require_served(architecture: str, config: dict[str, Any], origin: Path) -> None:
    from ostinato.models.registry import ARCHITECTURES  # here, since the registry itself takes a Checkpoint

    require_supported(architecture, config, origin, ARCHITECTURES)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
