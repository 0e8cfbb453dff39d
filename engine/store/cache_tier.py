"""The tiers before the last one: caches of contents, without records. What lies there lies in the last tier too."""

import logging
import threading
from collections.abc import Callable, Sequence

from ostinato.engine.errors import StateDamagedError, StoreFullError, StoreUnavailableError
from ostinato.engine.store.blobs import Data
from ostinato.engine.store.content import Compression, PackedContent, delete_content, has_content, load_content, pack
from ostinato.engine.store.index import choose_victims, list_contents
from ostinato.engine.store.record import StateRecord
from ostinato.engine.store.tier_budget import Budget, Tier, TierUsage

_log = logging.getLogger(__name__)


class CacheTier:
    """Contents near at hand. A fault here costs time, never a state: it is logged, and the next tier serves."""

    def __init__(self, tier: Tier, clock: Callable[[], float]) -> None:
        self._tier = tier
        self._clock = clock
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}
        self.budget = Budget(tier, self._clear, clock)

    def load(self, record: StateRecord) -> Data | None:
        try:
            content = load_content(self._tier.blobs, record.content, record.bytes)
        except (StateDamagedError, StoreUnavailableError) as error:
            _log.warning("a cache tier is passed over: %s", error)
            return None
        if content is not None:
            self._note_use(record.content)
        return content

    def save(self, packed: PackedContent) -> None:
        blobs = self._tier.blobs
        try:
            with self.budget.room(packed.digest, packed.size):
                if not has_content(blobs, packed):
                    blobs.put(packed.key, packed.data)
            self._note_use(packed.digest)
        except (StoreFullError, StoreUnavailableError) as error:
            _log.warning("a cache tier is passed over: %s", error)

    def remove(self, digest: str) -> None:
        """Raises:
        StoreUnavailableError: it cannot be removed, and may still be there.
        """
        delete_content(self._tier.blobs, digest)
        self.budget.forget(digest)

    def sweep(self) -> None:
        """Evicts what was used least recently until the budget holds."""
        self.budget.renew()

    def usage(self) -> TierUsage:
        sizes = [content.size for content in list_contents(self._tier.blobs).values()]
        return TierUsage(self._tier.blobs.name, sum(sizes), self._tier.budget_bytes, len(sizes), 0)

    def _note_use(self, digest: str) -> None:
        with self._lock:
            self._used[digest] = self._clock()

    def _clear(self, pending: dict[str, int], partly: bool) -> dict[str, int]:
        blobs, limit = self._tier.blobs, self._tier.budget_bytes
        contents = list_contents(blobs)
        sizes = {digest: content.size for digest, content in contents.items()}
        excess = 0 if limit is None else sum({**sizes, **pending}.values()) - limit
        with self._lock:
            recent = {digest: used for digest, used in self._used.items() if digest in contents}
            self._used = dict(recent)
        victims = choose_victims(
            contents.values(),
            excess,
            protected=lambda content: content.digest in pending,
            used=lambda content: recent.get(content.digest, content.modified),
        )
        if partly or sum(victim.size for victim in victims) >= excess:
            for victim in victims:
                delete_content(blobs, victim.digest)
                del sizes[victim.digest]
        return sizes


class Caches:
    """All caches of a store, the nearest first."""

    def __init__(self, tiers: Sequence[Tier], clock: Callable[[], float]) -> None:
        self._tiers = [CacheTier(tier, clock) for tier in tiers]

    def load(self, record: StateRecord) -> Data | None:
        """The verified content, or None if no cache has it."""
        for tier in self._tiers:
            content = tier.load(record)
            if content is not None:
                return content
        return None

    def save(self, packed: PackedContent) -> None:
        for tier in self._tiers:
            tier.save(packed)

    def fill(self, content: Data, compression: Compression | None) -> None:
        """Keeps a content that was read from the last tier."""
        if self._tiers:
            self.save(pack(content, compression))

    def remove(self, digest: str) -> None:
        """Raises:
        StoreUnavailableError: it cannot be removed, and may still be there.
        """
        for tier in self._tiers:
            tier.remove(digest)

    def sweep(self) -> None:
        for tier in self._tiers:
            tier.sweep()

    def usage(self) -> list[TierUsage]:
        return [tier.usage() for tier in self._tiers]
