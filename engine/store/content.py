"""The content of states as it is stored: named by its SHA-256, compressed or not, and verified whenever it is read."""

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import zstandard

from ostinato.engine.errors import StateDamagedError, StoreUnavailableError
from ostinato.engine.steady_clock import steady_time
from ostinato.engine.store.blobs import BlobInfo, Blobs, Data
from ostinato.engine.store.record import CONTENT, DAMAGED, content_keys

Compression = Literal["zstd"]

_LEVEL = 3
_CHUNK = 1 << 20
_LONGEST_HEADER = 100 << 20  # the limit of the safetensors format
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackedContent:
    """Content ready to be written: `key` and `data` as stored, `digest` and `bytes` of the uncompressed content."""

    digest: str
    key: str
    data: Data
    bytes: int

    @property
    def size(self) -> int:
        """What it takes of a budget, in bytes."""
        return memoryview(self.data).nbytes


@dataclass(frozen=True, slots=True)
class ContentSummary:
    """What a content says without its record: `metadata` is the safetensors file's own, {} if it has none."""

    digest: str
    bytes: int
    metadata: dict[str, str]


def pack(content: Data, compression: Compression | None) -> PackedContent:
    """Hashes and, if asked to, compresses a content (zstd, level 3)."""
    digest = hashlib.sha256(content).hexdigest()
    plain, compressed = content_keys(digest)
    size = memoryview(content).nbytes
    if compression is None:
        return PackedContent(digest, plain, content, size)
    return PackedContent(digest, compressed, zstandard.ZstdCompressor(level=_LEVEL).compress(content), size)


def has_content(blobs: Blobs, packed: PackedContent) -> bool:
    """Whether the content is there, whole, and will stay until its record is written.

    Without a lock, another process may delete what is older than the grace period; what is younger than half of it
    leaves the other half for writing the record.
    """
    infos = stored_infos(blobs, packed.digest)
    if not any(blobs.grace == 0 or steady_time() - info.modified < blobs.grace / 2 for info in infos):
        return False
    try:
        return load_content(blobs, packed.digest, packed.bytes) is not None
    except StateDamagedError:
        return False


def load_content(blobs: Blobs, digest: str, size: int) -> Data | None:
    """The content with this SHA-256 and size in bytes, or None if it is not there.

    Raises:
        StateDamagedError: the stored bytes are others. They now lie under `damaged/`.
    """
    for key in content_keys(digest):
        found = blobs.get_version(key)
        if found is None:
            continue
        data, version = found
        content = _unpack(key, data, size)
        if content is not None and hashlib.sha256(content).hexdigest() == digest:
            return content
        set_aside(blobs, key, data, version)
        raise StateDamagedError(f"{blobs.name}: the content {digest} is damaged")
    return None


def set_aside(blobs: Blobs, key: str, data: Data, version: str) -> None:
    """Moves damaged content to `damaged/`, for whoever wants to look into it: a whole one can take its place."""
    _log.error("%s: %s is damaged, and is moved to %s", blobs.name, key, DAMAGED)
    try:
        blobs.put(DAMAGED + key.removeprefix(CONTENT), data)
        info = blobs.stat(key)
        if info is not None and info.version == version:
            blobs.delete(key)
    except StoreUnavailableError as error:
        _log.error("it cannot be moved: %s", error)


def stored_infos(blobs: Blobs, digest: str) -> list[BlobInfo]:
    """The blobs that hold a content: one, or none, or two where the compression was changed."""
    return [info for key in content_keys(digest) if (info := blobs.stat(key)) is not None]


def delete_content(blobs: Blobs, digest: str) -> None:
    for key in content_keys(digest):
        blobs.delete(key)


def settled(blobs: Blobs, info: BlobInfo) -> bool:
    """Whether a content that no record refers to may be deleted now, inside `exclusive`."""
    return steady_time() - info.modified >= blobs.grace


def summarize(key: str, data: Data) -> ContentSummary | None:
    """Reads a stored content without its record, in little memory. None if it cannot be decompressed."""
    hashed, size, head, wanted = hashlib.sha256(), 0, bytearray(), 8
    try:
        for chunk in _chunks(key, data):
            hashed.update(chunk)
            size += len(chunk)
            if len(head) < wanted:
                head += chunk
                wanted = 8 + min(int.from_bytes(head[:8], "little"), _LONGEST_HEADER)
    except zstandard.ZstdError:
        return None
    return ContentSummary(hashed.hexdigest(), size, _metadata(bytes(head[8:wanted])))


def _unpack(key: str, data: Data, size: int) -> Data | None:
    """The uncompressed bytes, or None if they are not `size` many: never more memory than that."""
    if not key.endswith(".zst"):
        return data if memoryview(data).nbytes == size else None
    try:
        if zstandard.frame_content_size(data) != size:
            return None
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except (zstandard.ZstdError, MemoryError):  # the latter where record and frame agree on a size that cannot be
        return None


def _chunks(key: str, data: Data) -> Iterator[memoryview]:
    if key.endswith(".zst"):
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
            while chunk := reader.read(_CHUNK):
                yield memoryview(chunk)
    else:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _CHUNK):
            yield view[start : start + _CHUNK]


def _metadata(header: bytes) -> dict[str, str]:
    """`__metadata__` of a safetensors header (a JSON object after its length, huggingface.co/docs/safetensors)."""
    try:
        metadata = json.loads(header).get("__metadata__", {})
        return {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, AttributeError, RecursionError):
        return {}
