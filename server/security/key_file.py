"""The file of API keys: JSON, readable by its owner alone, replaced as a whole, and read again when it has changed."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from ostinato.engine.errors import OstinatoError
from ostinato.server.security.api_keys import ApiKey, KeyList, KeyRing

logger = logging.getLogger(__name__)

MODE = 0o600
LOCK_SECONDS = 10.0
MAX_BYTES = 1 << 26  # a file of keys that is larger is none

Signature = tuple[int, ...]


class KeyFileError(OstinatoError):
    """The file of API keys cannot be read or written, or is none."""


def read_keys(path: Path) -> KeyList:
    """Raises:
    KeyFileError: there is no such file, it cannot be read, or it is not a list of keys.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise KeyFileError(f"{path}: larger than a file of API keys can be")
        return KeyList.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise KeyFileError(f"{path}: there is no such file; make one with `ostinato keys create NAME`") from None
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise KeyFileError(f"{path}: not a file of API keys: {where or 'the file'}: {first['msg']}") from None


def write_keys(path: Path, keys: KeyList) -> None:
    """Replaces the file in one step, mode 0600, durably. A link stays one.

    Raises:
        KeyFileError: it cannot be written.
    """
    path = path.resolve()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # its mode is 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(keys.model_dump_json(indent=1).encode() + b"\n")
                file.flush()
                os.fchmod(file.fileno(), MODE)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def changing(path: Path) -> Iterator[list[ApiKey]]:
    """The keys, to be changed in place; written when the block ends without an error. No file: none so far.

    Only one process changes a file at a time; the lock beside it stays.

    Raises:
        KeyFileError: it cannot be read or written, or the change makes no valid list.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock", timeout=LOCK_SECONDS, mode=MODE)
        with lock:
            keys = list(read_keys(path).keys) if path.exists() else []
            yield keys
            try:
                changed = KeyList(keys=tuple(keys))
            except ValidationError as error:
                raise KeyFileError(f"{path}: {error.errors()[0]['msg']}") from None
            write_keys(path, changed)
    except OSError as error:  # filelock's Timeout is one
        raise KeyFileError(f"{path}: {error.strerror or error}") from None


class Keys:
    """The keys of a running server: those of a file, as it is now, and perhaps a single one.

    `current` looks at the file's status at every call, which takes microseconds, so that a key is revoked the moment
    the file is replaced. A file that cannot be read leaves the keys as they were, and is logged once.

    Args:
        clock: seconds since 1970, for the expiry of keys.

    Raises:
        KeyFileError: the file cannot be read at the start.
    """

    def __init__(self, path: Path | None, single: ApiKey | None = None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._single = () if single is None else (single,)
        self.clock = clock
        self._seen = None if path is None else _signature(path)
        self._ring = self._read()
        if path is not None:
            _warn_of_writers(path)

    def current(self) -> KeyRing:
        if self._path is not None and (found := _signature(self._path)) != self._seen:
            self._seen = found
            try:
                self._ring = self._read()
                logger.info("%s was read again: %d keys", self._path, len(self._ring.by_owner))
            except KeyFileError as error:
                logger.error("the API keys stay as they were: %s", error)
        return self._ring

    def state_bytes(self, owner: str) -> int | None:
        """That an owner may hold in the state store; None for no bound. From any thread."""
        key = self._ring.by_owner.get(owner)
        return None if key is None else key.limits.state_bytes

    def _read(self) -> KeyRing:
        return KeyRing([*self._single, *(() if self._path is None else read_keys(self._path).keys)])


def _signature(path: Path) -> Signature | None:
    """What changes with a file, whether it is written in place or replaced; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _warn_of_writers(path: Path) -> None:
    if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        logger.warning("%s can be written by other users: whoever writes it makes keys; use mode 0600", path)
