"""The last tier: it holds every record, and the content of every record.

Records and contents change in an order that leaves nothing half there after a crash: content is written before the
first record that refers to it, and deleted before the last one. A record whose content is gone is not listed.

Another process may delete a content as unused just when this one finds it there and refers to it. So whoever deletes
holds the tier's lock from looking for records to deleting, and whoever writes a record holds it too, and writes the
content again if it is gone. An object store has no such lock: there nobody deletes a content younger than its grace
period, and whoever finds an old one writes it again, which makes it young. A deletion that has to wait is noted under
`deleted/`, and a later sweep carries it out.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import replace

from ostinato.engine.errors import StateDamagedError, StateNotFoundError
from ostinato.engine.store.blobs import Data
from ostinato.engine.store.content import (
    PackedContent,
    delete_content,
    has_content,
    load_content,
    settled,
    stored_infos,
)
from ostinato.engine.store.holds import Holds
from ostinato.engine.store.index import Catalogue, RecordTable, StoredContent, choose_victims, take_catalogue
from ostinato.engine.store.owner_budget import LimitOf, OwnerBudgets, no_limit
from ostinato.engine.store.record import CONTENT, DAMAGED, DELETED, SUFFIXES, StateRecord
from ostinato.engine.store.tier_budget import Budget, Tier, TierUsage

_log = logging.getLogger(__name__)


class MainTier:
    """Records and contents of one tier, and its eviction. Thread-safe; what `holds` names is not evicted."""

    def __init__(self, tier: Tier, clock: Callable[[], float], holds: Holds, owner_limit: LimitOf = no_limit) -> None:
        self.blobs = tier.blobs
        self.table = RecordTable(tier.blobs)
        self._limit = tier.budget_bytes
        self._clock = clock
        self._holds = holds
        self.budget = Budget(tier, self._clear, clock)
        self.owners = OwnerBudgets(self.table, owner_limit, clock)

    def put(self, packed: PackedContent, record: StateRecord) -> StateRecord:
        """Writes a content and its record, or adds to the record that is there already.

        Raises:
            StateQuotaError, StoreFullError: there is no room; nothing was written.
        """
        with self.owners.room([record]), self.budget.room(packed.digest, packed.size):
            if not has_content(self.blobs, packed):
                self.blobs.put(packed.key, packed.data)
            with self.blobs.exclusive():
                if not stored_infos(self.blobs, packed.digest):
                    self.blobs.put(packed.key, packed.data)
                return self._write_record(record)

    def add_forks(self, parent: StateRecord, forks: list[StateRecord]) -> None:
        """Writes records that share a content which is there.

        Raises:
            StateNotFoundError: it was evicted or deleted meanwhile.
            StateQuotaError: there is no room.
        """
        with self.owners.room(forks), self.blobs.exclusive():
            for fork in forks:
                self.table.put(fork)
            if not stored_infos(self.blobs, parent.content):
                for fork in forks:
                    self.table.delete(fork)
                raise StateNotFoundError(f"no state {parent.id}")

    def replace(self, record: StateRecord, version: str) -> bool:
        """Changes a record, unless it is not of this version any more. Nobody evicts a state while it is pinned."""
        with self.blobs.exclusive():
            return self.table.replace(record, version)

    def load(self, record: StateRecord) -> Data:
        """The verified content.

        Raises:
            StateDamagedError: it is damaged, now or when it was last read.
            StateNotFoundError: it was evicted or deleted meanwhile.
        """
        content = load_content(self.blobs, record.content, record.bytes)
        if content is not None:
            return content
        if any(self.blobs.stat(f"{DAMAGED}{record.content}{suffix}") for suffix in SUFFIXES):
            raise StateDamagedError(f"{self.blobs.name}: the content of {record.id} is damaged")
        raise StateNotFoundError(f"no state {record.id}")

    def listed(self, owner: str) -> list[StateRecord]:
        """An owner's records whose content is there."""
        records = self.table.all(owner)
        present = {info.key.removeprefix(CONTENT).partition(".")[0] for info in self.blobs.list(CONTENT)}
        return [record for record in records if record.content in present]

    def delete(self, record: StateRecord) -> bool:
        """Deletes a record, and its content if no other refers to it. Returns whether it was the last one."""
        with self.blobs.exclusive():
            last = not any(other.content == record.content and other.key != record.key for other in self.table.all())
            gone = last and self._delete_content(record.content)
            self.table.delete(record)
        if gone:
            # Outside: whoever makes room waits for the tier's lock while it keeps the budget's.
            self.budget.forget(record.content)
        return last

    def sweep(self) -> None:
        """Deletes what has expired, then the least recently used until the budget holds, as far as that is possible."""
        self.budget.renew()

    def usage(self) -> TierUsage:
        catalogue = take_catalogue(self.blobs, self.table)
        states = sum(len(content.records) for content in catalogue.contents.values())
        sizes = catalogue.sizes
        return TierUsage(self.blobs.name, sum(sizes.values()), self._limit, len(sizes), states)

    def _write_record(self, new: StateRecord) -> StateRecord:
        while True:
            try:
                found = self.table.get(new.owner, new.id)
            except StateDamagedError:
                found = None
            if found is None:
                self.table.put(new)
                return new
            record = new if is_expired(found[0], self._clock()) else _merge(found[0], new)
            if self.table.replace(record, found[1]):
                return record

    def _delete_content(self, digest: str) -> bool:
        """Deletes a content now, or notes that it is to be deleted once it may be. Returns which."""
        if all(settled(self.blobs, info) for info in stored_infos(self.blobs, digest)):
            delete_content(self.blobs, digest)
            return True
        self.blobs.put(f"{DELETED}{digest}", b"")
        return False

    def _clear(self, pending: dict[str, int], partly: bool) -> dict[str, int]:
        with self.blobs.exclusive():
            catalogue = take_catalogue(self.blobs, self.table)
            self._drop_dangling(catalogue)
            self._drop_deleted(catalogue, pending)
            self._drop_expired(catalogue, pending)
            self._evict(catalogue, pending, partly)
        return catalogue.sizes

    def _drop_dangling(self, catalogue: Catalogue) -> None:
        for record in catalogue.dangling:
            _log.warning("%s: the content of %s is gone, and its record with it", self.blobs.name, record.id)
            self.table.delete(record)

    def _drop_deleted(self, catalogue: Catalogue, pending: Collection[str]) -> None:
        """Carries out the deletions that had to wait, unless somebody has stored the same content since."""
        for note in list(self.blobs.list(DELETED)):
            content = catalogue.contents.get(note.key.removeprefix(DELETED))
            if content is not None and not content.records and content.digest not in pending:
                if not self._may_go(content):
                    continue
                self._drop(catalogue, content)
            self.blobs.delete(note.key)

    def _drop_expired(self, catalogue: Catalogue, pending: Collection[str]) -> None:
        now, held = self._clock(), self._holds.ids()
        for content in list(catalogue.contents.values()):
            over = [record for record in content.records if is_expired(record, now) and record.id not in held]
            if not over:
                continue
            content.records = [record for record in content.records if record not in over]
            unused = not content.records and content.digest not in pending
            if unused and self._delete_content(content.digest):
                del catalogue.contents[content.digest]
            for record in over:
                self.table.delete(record)

    def _evict(self, catalogue: Catalogue, pending: dict[str, int], partly: bool) -> None:
        excess = 0 if self._limit is None else sum({**catalogue.sizes, **pending}.values()) - self._limit
        held = self._holds.ids()

        def protected(content: StoredContent) -> bool:
            kept = any(record.pinned or record.id in held for record in content.records)
            return kept or content.digest in pending or not self._may_go(content)

        victims = choose_victims(catalogue.contents.values(), excess, protected)
        if partly or sum(victim.size for victim in victims) >= excess:
            for victim in victims:
                self._drop(catalogue, victim)

    def _may_go(self, content: StoredContent) -> bool:
        return all(settled(self.blobs, info) for info in stored_infos(self.blobs, content.digest))

    def _drop(self, catalogue: Catalogue, content: StoredContent) -> None:
        delete_content(self.blobs, content.digest)
        for record in content.records:
            self.table.delete(record)
        del catalogue.contents[content.digest]


def is_expired(record: StateRecord, now: float) -> bool:
    return record.expires is not None and record.expires <= now


def _merge(old: StateRecord, new: StateRecord) -> StateRecord:
    """The record of a state that is stored once more: what was promised for either of the two holds for it."""
    never = old.expires is None or new.expires is None
    return replace(
        old,
        used=max(old.used, new.used),
        expires=None if never else max(old.expires or 0.0, new.expires or 0.0),
        labels=tuple(dict.fromkeys(old.labels + new.labels)),
        pinned=old.pinned or new.pinned,
        mark=old.mark if new.mark is None else new.mark,
    )
