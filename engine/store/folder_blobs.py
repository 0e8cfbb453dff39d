"""Blobs as files in a folder, whole at every moment and after every crash.

A write goes to a file in `tmp/`, is flushed to the disk, renamed into place, and the folder is flushed too. Its writer
holds a lock on that file, so a file in `tmp/` that nobody holds was left by a writer that died, and is removed when the
folder is opened. One folder may serve several processes of one machine, or of several where the file system's locks and
renames hold across machines.
"""

import errno
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ostinato.engine.errors import StoreUnavailableError
from ostinato.engine.store.blobs import BlobInfo, Data, check_key, is_key

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, or give the store a smaller budget",
    errno.EDQUOT: "the disk quota is used up: free some space, or give the store a smaller budget",
    errno.EFBIG: "the file is larger than the system allows: raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "the disk is read-only: mount it for writing, or choose another folder",
    errno.EACCES: "permission denied: let the server's user write there, or choose another folder",
    errno.EPERM: "permission denied: let the server's user write there, or choose another folder",
    errno.ENOTDIR: "a part of its path is a file: choose another folder",
    errno.EEXIST: "a file is in its place: choose another folder",
}


class FolderBlobs:
    """A blob `a/b` is the file `a/b` in `folder`; `tmp/` and `lock` beside them are the folder's own."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Makes the folder if it is missing and removes what killed writers left.

        Raises:
            StoreUnavailableError: it cannot be made or written.
        """
        self._root = Path(folder).absolute()
        self._tmp = self._root / "tmp"
        self._mine = threading.local()  # whether this thread holds the lock
        with self._errors():
            self._tmp.mkdir(parents=True, exist_ok=True)
            self._sweep_leftovers()

    @property
    def name(self) -> str:
        return f"folder {self._root}"

    @property
    def grace(self) -> float:
        return 0.0

    def put(self, key: str, data: Data) -> None:
        target = self._path(key)
        with self._errors():
            self._make_folder(target.parent)
            with self._temporary_file() as (path, descriptor):
                _write_all(descriptor, data)
                # Nanoseconds of our own clock: the kernel's time stamps are coarser than two writes are apart.
                os.utime(descriptor, ns=(time.time_ns(), time.time_ns()))
                os.fsync(descriptor)
                os.replace(path, target)
            _flush_folder(target.parent)

    def get(self, key: str) -> Data | None:
        with self._errors():
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                return None

    def get_version(self, key: str) -> tuple[Data, str] | None:
        with self._errors():
            try:
                with self._path(key).open("rb") as file:
                    return file.read(), _version(os.fstat(file.fileno()))
            except FileNotFoundError:
                return None

    def replace(self, key: str, data: Data, version: str) -> bool:
        with self.exclusive():
            info = self.stat(key)
            if info is None or info.version != version:
                return False
            self.put(key, data)
            return True

    def stat(self, key: str) -> BlobInfo | None:
        with self._errors():
            try:
                return _info(key, self._path(key).stat())
            except FileNotFoundError:
                return None

    def delete(self, key: str) -> None:
        with self._errors():
            self._path(key).unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        with self._errors():
            found = list(self._walk(prefix))
        return iter(found)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        if getattr(self._mine, "held", False):
            yield
            return
        with self._errors():
            descriptor = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with self._errors():
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._mine.held = True
            yield
        finally:
            self._mine.held = False
            os.close(descriptor)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)

    @contextmanager
    def _temporary_file(self) -> Iterator[tuple[Path, int]]:
        path = self._tmp / uuid.uuid4().hex
        descriptor = _create_locked(path)
        try:
            yield path, descriptor
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def _sweep_leftovers(self) -> None:
        for path in self._tmp.iterdir():
            with suppress(FileNotFoundError, BlockingIOError):
                descriptor = os.open(path, os.O_RDWR)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)

    def _walk(self, prefix: str) -> Iterator[BlobInfo]:
        try:
            entries = list(os.scandir(self._root / check_key(prefix.rstrip("/"))))
        except FileNotFoundError:
            return
        for entry in entries:
            key = f"{prefix}{entry.name}"
            if not is_key(key):
                continue
            if entry.is_dir():
                yield from self._walk(f"{key}/")
            else:
                with suppress(FileNotFoundError):
                    # entry.stat() would do; os.stat also sees what was renamed over the entry since.
                    yield _info(key, os.stat(entry.path))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, str(error))
            raise StoreUnavailableError(f"{self.name}: {remedy}") from error


def _create_locked(path: Path) -> int:
    """A new file that is locked. Until it is, a process that opens the folder may take it for a leftover."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _write_all(descriptor: int, data: Data) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _info(key: str, stat: os.stat_result) -> BlobInfo:
    return BlobInfo(key, stat.st_size, stat.st_mtime, _version(stat))


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns}-{stat.st_size}"
