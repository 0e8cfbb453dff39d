"""States by id: snapshots in the state store, and the ones used last in memory as well.

Everything here blocks, on disks or networks, and is safe to call from several threads.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace

from ostinato.engine.errors import RequestError, StateNotFoundError
from ostinato.engine.mitigation import UNTOUCHED, Mitigation
from ostinato.engine.snapshot_file import SnapshotFormat
from ostinato.engine.snapshot_header import read_header
from ostinato.engine.snapshot_memory import SnapshotMemory
from ostinato.engine.snapshots import Snapshot
from ostinato.engine.state_counts import StateCounts
from ostinato.engine.store.state_store import StateRecord, StateStore, TierUsage

MAX_ANCESTORS = 10_000  # of one state: what is deeper than that is read again
MAX_RECENT = 4096  # ids of states that are remembered as used last


@dataclass(frozen=True, slots=True)
class Storing:
    """How a state is stored. expires: seconds since 1970, None for never; see `StateRecord` for the others.

    private: without the token log, only its length and hash. lossy: int8 with a factor for each row. id: one of its
    own, where the hash of its content is not to make one.
    """

    expires: float | None = None
    labels: tuple[str, ...] = ()
    pinned: bool = False
    private: bool = False
    lossy: bool = False
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Rewind:
    """How to get to an earlier point: start from a stored state, or from nothing, and read these tokens.

    initial: the digest of the initial state that stands for nothing, if it was a tuned one. open_turn: it ends inside
    of the assistant's turn. region: how many of the first tokens were read at once (see `Snapshot`). mitigation: with
    which the state was made.
    """

    parent: StateRecord | None
    start: Snapshot | None
    tokens: tuple[int, ...]
    initial: str | None = None
    open_turn: bool = False
    region: int = 0
    mitigation: Mitigation = UNTOUCHED


class States:
    """The states of one model.

    Args:
        format: of the served model.
        store: where they are kept.
        memory: bytes of host memory for snapshots that are ready to be loaded; 0 keeps none.

    Every method raises what `StateStore` raises.
    """

    def __init__(self, format: SnapshotFormat, store: StateStore, memory: int) -> None:
        self.store = store
        self.format = format
        self.counts = StateCounts()
        self.memory_budget = memory
        self.usage: list[TierUsage] = []  # of the store, when somebody last looked
        self._memory = SnapshotMemory(memory)
        self._recent: OrderedDict[str, str] = OrderedDict()  # contents by id, the one used last at the end
        self._lock = threading.Lock()

    @property
    def memory_bytes(self) -> int:
        """Bytes of the snapshots that are ready to be loaded."""
        return self._memory.num_bytes

    def save(self, owner: str, snapshot: Snapshot, storing: Storing, *, mark: str | None = None) -> StateRecord:
        """Stores a snapshot. When this returns, it is durable. Raises StoreFullError."""
        with self.counts.refusals():
            content = self.format.encode(snapshot, lossy=storing.lossy)
            record = self._put(owner, content, snapshot, storing, mark)
        if not storing.lossy:
            self._memory.put(record.content, snapshot)
        self._note(record)
        return record

    def load(self, owner: str, state_id: str) -> Snapshot:
        """The snapshot of a state.

        Raises:
            StateNotFoundError: this owner has no such state.
            StateDamagedError: its bytes are not the ones that were stored.
            SnapshotError: it cannot be gone on from with the served model.
        """
        with self.counts.refusals():
            record = self.store.record(owner, state_id)
            known = self._memory.get(record.content)
            if known is not None:
                self.counts.count_restored("memory")
                self._note(record)
                return known
            record, content = self.store.read(owner, state_id)
            snapshot = self.format.decode(bytes(content))
        self._memory.put(record.content, snapshot)
        self.counts.count_restored("store")
        self._note(record)
        return snapshot

    def recent(self, limit: int) -> list[str]:
        """The ids of at most `limit` states that can be loaded from memory here, the ones used last first."""
        with self._lock:
            used = list(reversed(self._recent.items()))
        return [state_id for state_id, content in used if content in self._memory][:limit]

    def upload(self, owner: str, content: bytes, storing: Storing) -> StateRecord:
        """Stores a file that came from elsewhere, after it was checked as strictly as it would be when loaded.

        Raises:
            SnapshotError: it is damaged, or not of the served model.
        """
        with self.counts.refusals():
            snapshot = self.format.decode(content)
            lossy = read_header(content).lossy is not None
            return self._put(owner, content, snapshot, replace(storing, lossy=lossy), None)

    def ancestors(self, owner: str, state_id: str) -> list[StateRecord]:
        """The states that a state goes back to, nearest first, up to the first that is gone."""
        chain: list[StateRecord] = []
        parent = self.store.record(owner, state_id).parent
        while parent is not None and len(chain) < MAX_ANCESTORS:
            try:
                record = self.store.record(owner, parent)
            except StateNotFoundError:
                break
            chain.append(record)
            parent = record.parent
        return chain

    def rewind(self, owner: str, state_id: str, tokens: int) -> Rewind:
        """How to get back to where a state had read only its first `tokens` tokens.

        Raises:
            RequestError: it has not read so many, or they end inside of its encoder region, or its token log is
                private and no ancestor stands exactly there.
        """
        own = self.store.record(owner, state_id)
        if not 0 < tokens <= own.tokens:
            raise RequestError(f"the state has read {own.tokens} tokens: it can go back to 1 to {own.tokens}", "tokens")
        nearest = next((each for each in [own, *self.ancestors(owner, state_id)] if each.tokens <= tokens), None)
        start = None if nearest is None else self.load(owner, nearest.id)
        if nearest is not None and nearest.tokens == tokens:
            return Rewind(nearest, start, ())
        whole = self.load(owner, state_id)
        if tokens < whole.region:
            raise RequestError(
                f"the first {whole.region} tokens of the state were read at once (its encoder region): "
                "there was no state inside of them to go back to",
                "tokens",
            )
        log = whole.log.tokens
        if log is None:
            raise RequestError(
                "the state was stored without its tokens (private), so they cannot be read again", "state"
            )
        known = 0 if nearest is None else nearest.tokens
        inside = whole.open_turn and tokens > whole.log.length - whole.generation.tokens
        return Rewind(nearest, start, log[known:tokens], whole.initial, inside, whole.region, whole.mitigation)

    def mark(self, owner: str, state_id: str, name: str) -> StateRecord:
        """The nearest state with this mark: the state itself or an ancestor. Raises RequestError: there is none."""
        for record in [self.store.record(owner, state_id), *self.ancestors(owner, state_id)]:
            if record.mark == name:
                return record
        raise RequestError(f"no checkpoint {name!r} lies on the way to this state", "mark")

    def tree(self, owner: str, state_id: str, limit: int) -> list[StateRecord]:
        """The state's first ancestor that is still there, and all that goes back to it: parents before children.

        Of a tree of more than `limit` states the first levels.
        """
        chain = self.ancestors(owner, state_id)
        found = [chain[-1] if chain else self.store.record(owner, state_id)]
        children: defaultdict[str | None, list[StateRecord]] = defaultdict(list)
        for record in self.store.page(owner, limit=sys.maxsize):
            children[record.parent].append(record)
        for record in found:  # grows as it goes
            if len(found) >= limit:
                break
            found += children[record.id]
        return found[:limit]

    def _note(self, record: StateRecord) -> None:
        """Remembers a state as the one used last."""
        with self._lock:
            self._recent[record.id] = record.content
            self._recent.move_to_end(record.id)
            if len(self._recent) > MAX_RECENT:
                self._recent.popitem(last=False)

    def _put(self, owner: str, content: bytes, snapshot: Snapshot, storing: Storing, mark: str | None) -> StateRecord:
        record = self.store.put(
            content,
            owner=owner,
            parent=snapshot.parent,
            tokens=snapshot.log.length,
            model=self.format.fingerprint.digest,
            expires=storing.expires,
            labels=storing.labels,
            pinned=storing.pinned,
            mark=mark,
            lossy=storing.lossy,
            id=storing.id,
        )
        self.counts.count_stored()
        return record
