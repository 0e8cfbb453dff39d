"""One weight file, mapped into memory: its tensors' shapes and dtypes at once, their values on demand.

Formats: safetensors, and the zip archives that `torch.save` writes (`.bin`, `.pth`). The latter hold a
pickle, which is only ever read with `weights_only=True`: it builds tensors and containers, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from ostinato.models.errors import CheckpointError

_ZIP_MAGIC = b"PK\x03\x04"
_GIT_LFS_MAGIC = b"version https://git-lfs"
_AGAIN = "Copy or download it again."
# Names as in the format's header. A type that is not here is refused when the file is opened.
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a stored tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        """1 for a scalar."""
        return torch.Size(self.shape).numel()

    @property
    def num_bytes(self) -> int:
        """As stored."""
        return self.num_elements * self.dtype.itemsize


class WeightFile(Protocol):
    """An open weight file."""

    path: Path
    tensors: Mapping[str, TensorInfo]

    def load(self, name: str) -> torch.Tensor:
        """The stored tensor, a view of the mapped file. Raises CheckpointError if it cannot be read."""

    def release(self) -> None:
        """Lets go of the file. Tensors that were loaded stay valid."""


def open_weight_file(path: Path) -> WeightFile:
    """Opens a `.safetensors`, `.bin` or `.pth` file.

    Raises:
        CheckpointError: missing, empty, truncated, damaged, of another format, or holding other than tensors.
    """
    _check_readable(path)
    file: WeightFile = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
    if not file.tensors:
        raise CheckpointError(f"{path} holds no tensors")
    return file


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...


class _SafeOpen(Protocol):
    """What is used of `safetensors.safe_open`, whose own signatures are untyped."""

    def keys(self) -> list[str]: ...

    def get_slice(self, name: str) -> _Slice: ...

    def get_tensor(self, name: str) -> torch.Tensor: ...

    def __exit__(self, kind: None, error: None, trace: None) -> None: ...


class SafetensorsFile:
    """A file in the safetensors format: 8 bytes of header length, a JSON header, the data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = _map_safetensors(path)
            names = self._file.keys()
            self.tensors: Mapping[str, TensorInfo] = {name: self._info(name) for name in names}
        except (SafetensorError, OSError, RuntimeError) as error:
            raise self._damaged(error) from error

    def load(self, name: str) -> torch.Tensor:
        """See `WeightFile.load`."""
        try:
            return self._file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise self._damaged(error) from error

    def release(self) -> None:
        """See `WeightFile.release`."""
        self._file.__exit__(None, None, None)

    def _info(self, name: str) -> TensorInfo:
        view = self._file.get_slice(name)
        dtype = _SAFETENSORS_DTYPES.get(view.get_dtype())
        if dtype is None:
            raise CheckpointError(f"{self.path}: tensor {name!r} has the unsupported type {view.get_dtype()}")
        return TensorInfo(tuple(view.get_shape()), dtype)

    def _damaged(self, error: Exception) -> CheckpointError:
        size = self.path.stat().st_size
        return CheckpointError(f"{self.path} ({size} bytes) is truncated or not a safetensors file: {error}. {_AGAIN}")


class TorchFile:
    """A zip archive written by `torch.save`: one flat dictionary of names and tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = _tensors_only(path, _unpickle(path))
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in self._entries.items()
        }

    def load(self, name: str) -> torch.Tensor:
        """See `WeightFile.load`."""
        return self._entries[name]

    def release(self) -> None:
        """See `WeightFile.release`."""
        self._entries = {}


def _map_safetensors(path: Path) -> _SafeOpen:
    return safe_open(str(path), framework="pt", device="cpu")


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_GIT_LFS_MAGIC))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes). {_AGAIN}")
    if start == _GIT_LFS_MAGIC:
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder")


def _unpickle(path: Path) -> object:
    with path.open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            raise CheckpointError(
                f"{path} is damaged, or not in the zip format that torch.save has written since version 1.6; "
                "load it where you trust it and save it again, best as safetensors"
            )
    try:
        value: object = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise any type
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path} is truncated, damaged, or holds objects other than tensors, which are never loaded: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error
    return value


def _tensors_only(path: Path, value: object) -> dict[str, torch.Tensor]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a dictionary of named tensors")
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in value.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path} has the entry {name!r}, whose name is not a string")
        if isinstance(entry, dict):
            raise CheckpointError(
                f"{path} is a training checkpoint: its entry {name!r} is a dictionary; "
                "save the model's tensors alone, as a flat dictionary"
            )
        if not isinstance(entry, torch.Tensor) or not _is_plain(entry):
            raise CheckpointError(f"{path}: entry {name!r} is a {type(entry).__name__}, not a plain tensor")
        if entry.nbytes > entry.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: entry {name!r} of shape {tuple(entry.shape)} repeats the numbers it holds")
        tensors[name] = entry.detach()
    return tensors


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
