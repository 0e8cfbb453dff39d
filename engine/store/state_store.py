"""The state store: states on disk, in Redis or in an object store, by id and owner.

    store = StateStore([Tier(open_blobs("states"), budget_bytes=10 << 30)])
    record = store.put(content, owner="", parent=None, tokens=12, model=fingerprint)
    record, content = store.read("", record.id)

The store deals in bytes: what is in a content is the snapshot's affair (`engine/snapshots.py`). Contents are named by
their SHA-256, verified at every read, and kept once, however many states share one. The last tier holds all records and
contents; tiers before it are caches of contents, filled by `put` and `read`. `main_tier.py` says what is written and
deleted in which order, and how processes share a store.

**What is evicted.** Only for room, when a tier's budget of stored bytes would be exceeded; what has expired goes first.
Then the contents go that were used least recently, each with all states that share it, but never one that is pinned,
held or being written. Every state is complete in itself, so a child does not need its parent, and a parent is not kept
for its children: in a conversation that stores a state after every turn the oldest turns go first, and the turn to go
on from goes last. Whoever works from a state and has not stored what it becomes holds it (`hold`). If all of this does
not make enough room, nothing is evicted, and the put fails.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from ostinato.engine.errors import StateNotFoundError
from ostinato.engine.steady_clock import steady_time
from ostinato.engine.store.blobs import Data
from ostinato.engine.store.cache_tier import Caches
from ostinato.engine.store.content import Compression, pack
from ostinato.engine.store.holds import Holds
from ostinato.engine.store.main_tier import MainTier, is_expired
from ostinato.engine.store.owner_budget import LimitOf, no_limit
from ostinato.engine.store.record import UNCHANGED, StateRecord, Unchanged, check_id, check_owner, fork_id
from ostinato.engine.store.repair import RepairReport, repair_tier
from ostinato.engine.store.tier_budget import Tier, TierUsage

__all__ = ["UNCHANGED", "RepairReport", "StateRecord", "StateStore", "Tier", "TierUsage", "Unchanged"]


class StateStore:
    """States in one or more tiers. Blocking and thread-safe; several processes may share the last tier.

    Every method raises StoreUnavailableError if a tier that it needs cannot be read or written, StateIdError for an id
    that is none, and ValueError for an owner that is neither "" nor a hexadecimal hash.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        compression: Compression | None = None,
        clock: Callable[[], float] = steady_time,
        owner_limit: LimitOf = no_limit,
    ) -> None:
        """`clock` gives seconds since 1970. Contents are compressed from now on; what is stored is read either way.
        `owner_limit` gives the bytes that an owner may hold in the last tier.
        """
        if not tiers:
            raise ValueError("a state store needs a tier")
        self._compression = compression
        self._clock = clock
        self._holds = Holds()
        self._main = MainTier(tiers[-1], clock, self._holds, owner_limit)
        self._caches = Caches(tiers[:-1], clock)

    def put(
        self,
        content: Data,
        *,
        owner: str,
        parent: str | None,
        tokens: int,
        model: str,
        expires: float | None = None,
        labels: Sequence[str] = (),
        pinned: bool = False,
        mark: str | None = None,
        lossy: bool = False,
        id: str | None = None,
    ) -> StateRecord:
        """Stores a state; when this returns, it is durable in the last tier. The fields are those of `StateRecord`.

        Where no `id` of its own is given, the hash of its content makes one. A state that this owner has already keeps
        its record, with the labels of both, the later expiry, and pinned if either is.

        Raises:
            StoreFullError: it does not fit, and nothing was evicted for it.
            StateQuotaError: its owner may not hold so much.
        """
        packed = pack(content, self._compression)
        now = self._clock()
        record = StateRecord(
            id=f"st_{packed.digest}" if id is None else check_id(id),
            content=packed.digest,
            owner=check_owner(owner),
            parent=parent if parent is None else check_id(parent),
            tokens=tokens,
            bytes=packed.bytes,
            created=now,
            used=now,
            expires=expires,
            labels=tuple(labels),
            pinned=pinned,
            model=model,
            mark=mark,
            lossy=lossy,
        )
        stored = self._main.put(packed, record)
        self._caches.save(packed)
        return stored

    def fork(self, owner: str, id: str, count: int, labels: Sequence[str] = ()) -> list[StateRecord]:
        """`count` new states with the same content as `id`, their parent. No content is copied.

        They expire when the parent does, carry `labels`, and are not pinned.

        Raises:
            StateNotFoundError: no such state of this owner.
            StateQuotaError: the owner may not hold so many.
        """
        if count < 1:
            raise ValueError("a fork has at least one child")
        now = self._clock()
        parent = self._main.table.touch(self.record(owner, id), now)
        common = replace(parent, parent=id, created=now, used=now, labels=tuple(labels), pinned=False, mark=None)
        forks = [replace(common, id=fork_id(id, branch)) for branch in range(count)]
        self._main.add_forks(parent, forks)
        return forks

    def record(self, owner: str, id: str) -> StateRecord:
        """Raises StateNotFoundError: no such state of this owner."""
        return self._versioned(owner, id)[0]

    def read(self, owner: str, id: str) -> tuple[StateRecord, Data]:
        """A state's record and its content, verified; it counts as used now.

        Raises:
            StateNotFoundError: no such state of this owner.
            StateDamagedError: its content is not what was stored, in any tier.
        """
        record = self.record(owner, id)
        content = self._caches.load(record)
        if content is None:
            content = self._main.load(record)
            self._caches.fill(content, self._compression)
        return self._main.table.touch(record, self._clock()), content

    def update(
        self,
        owner: str,
        id: str,
        *,
        labels: Sequence[str] | None = None,
        pinned: bool | None = None,
        expires: float | Unchanged | None = UNCHANGED,
    ) -> StateRecord:
        """Changes what is given. `expires=None` means never.

        Raises:
            StateNotFoundError: no such state of this owner.
        """
        while True:
            old, version = self._versioned(owner, id)
            record = replace(
                old,
                labels=old.labels if labels is None else tuple(labels),
                pinned=old.pinned if pinned is None else pinned,
                expires=old.expires if isinstance(expires, Unchanged) else expires,
            )
            if self._main.replace(record, version):
                return record

    def delete(self, owner: str, id: str) -> None:
        """Deletes a state, pinned or not. Its content goes with the last state that has it; its children stay.

        Raises:
            StateNotFoundError: no such state of this owner.
        """
        record = self.record(owner, id)
        if self._main.delete(record):
            self._caches.remove(record.content)

    def page(
        self,
        owner: str,
        *,
        label: str | None = None,
        parent: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> list[StateRecord]:
        """An owner's states, newest first; those after the state `after`, the last one of the page before.

        States that come or go meanwhile move no other state to another page.

        Raises:
            StateNotFoundError: `after` is gone: start again from the first page.
        """
        last = None if after is None else self.record(owner, after)
        found = [
            record
            for record in self._living(owner)
            if (label is None or label in record.labels)
            and (parent is None or record.parent == parent)
            and (last is None or _newest_first(record) > _newest_first(last))
        ]
        return sorted(found, key=_newest_first)[:limit]

    def children(self, owner: str, id: str) -> list[StateRecord]:
        """The states that go on from a state, newest first, also if that state is gone."""
        parent = check_id(id)
        found = [record for record in self._living(owner) if record.parent == parent]
        return sorted(found, key=_newest_first)

    def check_room(self, owner: str, num_bytes: int) -> None:
        """Raises StateQuotaError: the owner may not hold a further state of so many bytes."""
        self._main.owners.check(owner, num_bytes)

    def hold(self, id: str) -> AbstractContextManager[None]:
        """This process evicts no state of this id inside the `with`. Its owner may delete it all the same."""
        return self._holds.hold(check_id(id))

    def sweep(self) -> None:
        """Deletes what has expired, then the least recently used until every tier is within its budget.

        Nothing that is pinned or held is evicted even if a budget is exceeded. To be called now and then.
        """
        self._main.sweep()
        self._caches.sweep()

    def repair(self) -> RepairReport:
        """Gives contents without a record a new one, and looks for damaged contents. Reads everything."""
        return repair_tier(self._main, self._clock())

    def usage(self) -> list[TierUsage]:
        """What every tier holds, in the order of the tiers."""
        return [*self._caches.usage(), self._main.usage()]

    def _versioned(self, owner: str, id: str) -> tuple[StateRecord, str]:
        found = self._main.table.get(owner, id)
        if found is None or is_expired(found[0], self._clock()):
            raise StateNotFoundError(f"no state {id}")
        return found

    def _living(self, owner: str) -> list[StateRecord]:
        now = self._clock()
        return [record for record in self._main.listed(owner) if not is_expired(record, now)]


def _newest_first(record: StateRecord) -> tuple[float, str]:
    return (-record.created, record.id)
