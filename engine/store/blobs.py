"""Blobs: a small store of bytes under keys, the ground that a tier of the state store stands on.

`open_blobs` makes one from a folder or a URL. Every implementation keeps these promises:

- `put` is atomic: a reader sees the old bytes or the new ones, never a part, and after a crash either is there whole.
- What one process has put, every other process finds at once.
- `replace` writes only over the version that the caller has read, so that of two concurrent changes none is lost.
- What fails because of the disk, the network or the server raises `StoreUnavailableError`, with the tier's name.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ostinato.engine.errors import StateStoreError

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")

Data = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """One blob. `modified` is in seconds since 1970; `version` differs after every write."""

    key: str
    size: int
    modified: float
    version: str


class Blobs(Protocol):
    """See the module. Keys are `folder/name` with letters, digits, `_`, `.` and `-`; a prefix ends with `/`."""

    @property
    def name(self) -> str:
        """What errors call it: the folder or the URL, without a password."""

    @property
    def grace(self) -> float:
        """Nobody may delete a blob that is younger than this, in seconds: another process may be about to refer to it.

        0 where `exclusive` reaches every process.
        """

    def put(self, key: str, data: Data) -> None: ...

    def get(self, key: str) -> Data | None:
        """The bytes, or None if there are none."""

    def get_version(self, key: str) -> tuple[Data, str] | None:
        """The bytes and their version, for `replace`."""

    def replace(self, key: str, data: Data, version: str) -> bool:
        """Writes if the blob still has this version; False if it was changed or deleted since."""

    def stat(self, key: str) -> BlobInfo | None: ...

    def delete(self, key: str) -> None:
        """Does nothing where there is none."""

    def list(self, prefix: str) -> Iterator[BlobInfo]: ...

    def exclusive(self) -> AbstractContextManager[object]:
        """Keeps out everyone else who asks for it: other threads, and other processes where `grace` is 0.

        `replace` may be called inside.
        """


def is_key(key: str) -> bool:
    """Whether this may be a blob's key. A listing leaves out everything else that somebody has put there."""
    return _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """Returns `key`.

    Raises:
        ValueError: it could leave its place: an absolute path, `..`, or characters that a file system may not take.
    """
    if not is_key(key):
        raise ValueError(f"not a blob key: {key!r}")
    return key


def open_blobs(place: str | os.PathLike[str]) -> Blobs:
    """Opens a folder (made if missing) or a URL: `redis://`, `rediss://`, `unix://`, `s3://`, `gs://` or `az://`.

    Raises:
        StateStoreError: an unknown kind of URL, or the package for it is not installed.
        StoreUnavailableError: it cannot be reached or written.
    """
    text = os.fspath(place)
    scheme = text.partition("://")[0] if "://" in text else ""
    if not scheme:
        from ostinato.engine.store.folder_blobs import FolderBlobs

        return FolderBlobs(text)
    try:
        return _open_url(scheme, text)
    except ModuleNotFoundError as error:
        extra = {"redis": "redis", "obstore": "object-store"}.get(error.name or "")
        if extra is None:
            raise
        message = f"a state store at {scheme}:// needs the package {error.name}: pip install 'ostinato[{extra}]'"
        raise StateStoreError(message) from error


def _open_url(scheme: str, url: str) -> Blobs:
    if scheme in ("redis", "rediss", "unix"):
        from ostinato.engine.store.redis_blobs import RedisBlobs

        return RedisBlobs(url)
    if scheme in ("s3", "gs", "az"):
        from ostinato.engine.store.object_blobs import ObjectBlobs

        return ObjectBlobs(url)
    known = "a folder, redis://, rediss://, unix://, s3://, gs:// or az://"
    raise StateStoreError(f"a state store is {known}, not {scheme}://")
