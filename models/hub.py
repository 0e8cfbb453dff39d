"""Downloading a model from the hub, or finding it in the hub's cache. No code is ever downloaded.

Order: the small files first, so that a model that is not served is refused before its weights are fetched;
then safetensors; `.bin` or `.pth` only where there is none. Progress bars are those of the hub's library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from ostinato.models.errors import CheckpointError

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
# Not "*.safetensors": some repositories hold the same weights a second time under another name.
_SAFETENSORS = ["model.safetensors", "model-*.safetensors"]
_TORCH_FILES = ["pytorch_model.bin", "pytorch_model-*.bin"]


def download_config(repository: str) -> Path:
    """Downloads all but the weights. Returns the folder in the hub's cache. Raises CheckpointError: see `download`."""
    return _fetch(repository, _SMALL_FILES)


def download(repository: str, check_config: Callable[[Path], object]) -> Path:
    """Downloads what is needed to serve a model and returns its folder in the hub's cache.

    Args:
        repository: a hub id, `organisation/name`.
        check_config: is given the folder with `config.json` before weights are downloaded; raises to stop.

    Raises:
        CheckpointError: no such repository, no access, or no connection and not in the cache.
    """
    folder = download_config(repository)
    if not (folder / "config.json").exists():
        return _download_original(repository, folder)
    check_config(folder)
    folder = _fetch(repository, _SAFETENSORS)
    if not any(any(folder.glob(pattern)) for pattern in _SAFETENSORS):
        folder = _fetch(repository, _TORCH_FILES)
    return folder


def _download_original(repository: str, folder: Path) -> Path:
    names = _original_files(repository, folder)
    if not names:
        raise CheckpointError(f"hub repository {repository!r} has neither a config.json nor a .pth file")
    if len(names) > 1:
        raise CheckpointError(
            f"hub repository {repository!r} has no config.json and several .pth files ({', '.join(names)}); "
            "download one of them and give its path"
        )
    return _fetch(repository, names)


def _original_files(repository: str, folder: Path) -> list[str]:
    try:
        # Asked once: list_repo_files would try for half a minute, though the cache may have the file.
        names = [file.rfilename for file in HfApi().model_info(repository).siblings or ()]
    except Exception:  # without a connection the hub's cache answers, as it does for the files themselves
        names = [path.name for path in folder.glob("*.pth")]
    return sorted(name for name in names if name.endswith(".pth"))


def _fetch(repository: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except GatedRepoError as error:
        raise _failure(
            repository, "access is restricted; accept its terms on the hub and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise _failure(repository, "not found, or private and you are not logged in (`hf auth login`)") from error
    except LocalEntryNotFoundError as error:
        reason = "the hub cannot be reached (or HF_HUB_OFFLINE is set), and the files are not in its cache"
        raise _failure(repository, reason) from error
    except Exception as error:  # the library documents no closed set: HTTP, disk and validation errors
        raise _failure(repository, f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _failure(repository: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"model {repository!r} is no local path, and downloading it from the hub failed: {reason}. "
        "A local folder with config.json and the weights can be given instead."
    )
