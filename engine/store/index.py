"""The records of a tier, and the catalogue that joins them to the contents they refer to.

The records are the only index. What is kept here in memory is a copy of them, each read again once its version differs.
"""

import logging
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from ostinato.engine.errors import StateDamagedError, StoreUnavailableError
from ostinato.engine.store.blobs import BlobInfo, Blobs, Data
from ostinato.engine.store.record import (
    CONTENT,
    RECORDS,
    StateRecord,
    content_digest,
    owner_prefix,
    parse_record,
    record_json,
    record_key,
)

USED_GRAIN = 60.0
"""How far `used` on disk may lag behind, in seconds: so that a read seldom writes."""

_READERS = 16
_log = logging.getLogger(__name__)


class RecordTable:
    """The records in one `Blobs`. Thread-safe."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._cache: dict[str, tuple[str, StateRecord]] = {}
        self._used: dict[str, float] = {}

    def get(self, owner: str, id: str) -> tuple[StateRecord, str] | None:
        """The record and its version, or None.

        Raises:
            StateDamagedError: the record is not readable; the store's `repair` makes it anew from the content.
        """
        key = record_key(owner, id)
        found = self._blobs.get_version(key)
        if found is None:
            return None
        record = _parse(key, found[0])
        if record is None:
            raise StateDamagedError(f"{self._blobs.name}: the record of {id} is damaged")
        return self._with_use(record), found[1]

    def put(self, record: StateRecord) -> None:
        self._blobs.put(record.key, record_json(record))

    def replace(self, record: StateRecord, version: str) -> bool:
        return self._blobs.replace(record.key, record_json(record), version)

    def delete(self, record: StateRecord) -> None:
        self._blobs.delete(record.key)
        with self._lock:
            self._cache.pop(record.key, None)
            self._used.pop(record.key, None)

    def touch(self, record: StateRecord, now: float) -> StateRecord:
        """Notes that a state was used. A store that cannot be written keeps it in memory alone."""
        with self._lock:
            self._used[record.key] = now
        try:
            found = self._blobs.get_version(record.key)
            stored = None if found is None else _parse(record.key, found[0])
            if found is not None and stored is not None and now - stored.used >= USED_GRAIN:
                self.replace(replace(stored, used=now), found[1])
        except StoreUnavailableError as error:
            _log.debug("the use of %s is not written: %s", record.id, error)
        return replace(record, used=now)

    def all(self, owner: str | None = None) -> list[StateRecord]:
        """The readable records of one owner, or of all."""
        prefix = RECORDS if owner is None else owner_prefix(owner)
        infos = list(self._blobs.list(prefix))
        with self._lock:
            cached = {info.key: self._cache.get(info.key) for info in infos}
        fresh = {info.key: entry for info in infos if (entry := cached[info.key]) and entry[0] == info.version}
        fresh.update(self._read([info for info in infos if info.key not in fresh]))
        with self._lock:
            if owner is None:
                self._cache = dict(fresh)
                self._used = {key: used for key, used in self._used.items() if key in fresh}
            else:
                self._cache.update(fresh)
        return [self._with_use(record) for _, record in fresh.values()]

    def _read(self, infos: list[BlobInfo]) -> dict[str, tuple[str, StateRecord]]:
        if not infos:
            return {}
        with ThreadPoolExecutor(min(_READERS, len(infos))) as pool:
            found = zip(infos, pool.map(lambda info: self._blobs.get_version(info.key), infos), strict=True)
            read: dict[str, tuple[str, StateRecord]] = {}
            for info, blob in found:
                record = None if blob is None else _parse(info.key, blob[0])
                if blob is not None and record is not None:
                    read[info.key] = (blob[1], record)
            return read

    def _with_use(self, record: StateRecord) -> StateRecord:
        with self._lock:
            used = self._used.get(record.key, 0.0)
        return replace(record, used=used) if used > record.used else record


@dataclass
class StoredContent:
    """One content of a tier: `size` in bytes as stored, `modified` in seconds since 1970, and who refers to it."""

    digest: str
    size: int = 0
    modified: float = 0.0
    records: list[StateRecord] = field(default_factory=list)

    @property
    def used(self) -> float:
        """When any of its states was last used; when it was written, if no record refers to it."""
        return max((record.used for record in self.records), default=self.modified)


@dataclass
class Catalogue:
    """All contents of a tier by digest, and `dangling`: the records whose content is gone."""

    contents: dict[str, StoredContent]
    dangling: list[StateRecord]

    @property
    def sizes(self) -> dict[str, int]:
        return {digest: content.size for digest, content in self.contents.items()}


def list_contents(blobs: Blobs) -> dict[str, StoredContent]:
    """The contents of a tier, without records."""
    contents: dict[str, StoredContent] = {}
    for info in blobs.list(CONTENT):
        digest = content_digest(info.key)
        if digest is not None:
            content = contents.setdefault(digest, StoredContent(digest))
            content.size += info.size
            content.modified = max(content.modified, info.modified)
    return contents


def take_catalogue(blobs: Blobs, table: RecordTable) -> Catalogue:
    """Lists a tier. Records come first: what they refer to was written before them."""
    records = table.all()
    contents = list_contents(blobs)
    dangling: list[StateRecord] = []
    for record in records:
        content = contents.get(record.content)
        (dangling if content is None else content.records).append(record)
    return Catalogue(contents, dangling)


def choose_victims(
    contents: Collection[StoredContent],
    excess: int,
    protected: Callable[[StoredContent], bool],
    used: Callable[[StoredContent], float] = lambda content: content.used,
) -> list[StoredContent]:
    """The least recently used contents that are not protected, until `excess` bytes are found.

    Fewer bytes if there are no more; none for an excess of 0 or less.
    """
    victims: list[StoredContent] = []
    for content in sorted(contents, key=lambda content: (used(content), content.digest)):
        if excess <= 0:
            break
        if not protected(content):
            victims.append(content)
            excess -= content.size
    return victims


def _parse(key: str, data: Data) -> StateRecord | None:
    try:
        return parse_record(key, data)
    except ValueError as error:
        _log.error("the record %s is damaged: %s", key, error)
        return None
