"""The byte budget of one tier: who is writing what, and what is known to be there."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ostinato.engine.errors import StoreFullError
from ostinato.engine.store.blobs import Blobs

LISTING_SECONDS = 5.0
"""How long the listing of a tier is trusted while the budget is not reached: other processes write there too."""

Clear = Callable[[dict[str, int], bool], dict[str, int]]


@dataclass(frozen=True)
class Tier:
    """Where states lie, and how many bytes of content may lie there, as stored; None for no bound."""

    blobs: Blobs
    budget_bytes: int | None = None


@dataclass(frozen=True)
class TierUsage:
    """What a tier holds: `bytes` of content as stored, in `contents` blobs; `states` counts records, 0 in a cache."""

    name: str
    bytes: int
    budget_bytes: int | None
    contents: int
    states: int


class Budget:
    """Room for contents that are about to be written. Thread-safe.

    `clear(pending, partly)` lists the tier, evicts until what is there and what is pending (digest -> bytes) fit
    together, and returns what is there then. If they cannot fit it evicts nothing, or, if `partly`, what it may.
    """

    def __init__(self, tier: Tier, clear: Clear, clock: Callable[[], float]) -> None:
        self._name = tier.blobs.name
        self._limit = tier.budget_bytes
        self._clear = clear
        self._clock = clock
        self._lock = threading.Lock()
        self._writers: Counter[str] = Counter()
        self._pending: dict[str, int] = {}
        self._present: dict[str, int] = {}
        self._listed_at: float | None = None

    @contextmanager
    def room(self, digest: str, size: int) -> Iterator[None]:
        """Keeps `size` bytes for a content while the block writes it.

        Raises:
            StoreFullError: there is no room, and none can be made.
        """
        with self._lock:
            pending = {**self._pending, digest: size}
            if not self._is_known_to_fit(pending):
                self._renew(pending, partly=False)
                self._check(pending)
            self._pending = pending
            self._writers[digest] += 1
        written = False
        try:
            yield
            written = True
        finally:
            self._finish(digest, size, written)

    def renew(self) -> None:
        """Lists the tier and brings it within its budget, as far as that is possible."""
        with self._lock:
            self._renew(self._pending, partly=True)

    def forget(self, digest: str) -> None:
        """A content was deleted."""
        with self._lock:
            self._present.pop(digest, None)

    def _is_known_to_fit(self, pending: dict[str, int]) -> bool:
        if self._limit is None:
            return True
        if self._listed_at is None or abs(self._clock() - self._listed_at) > LISTING_SECONDS:
            return False
        return self._total(pending) <= self._limit

    def _renew(self, pending: dict[str, int], partly: bool) -> None:
        self._present = self._clear(pending, partly)
        self._listed_at = self._clock()

    def _check(self, pending: dict[str, int]) -> None:
        if self._limit is not None and self._total(pending) > self._limit:
            message = (
                f"{self._name}: a state does not fit into the budget of {self._limit} bytes, "
                f"of which {self._total({})} cannot be evicted now: delete or unpin states, or raise the budget"
            )
            raise StoreFullError(message)

    def _total(self, pending: dict[str, int]) -> int:
        return sum({**self._present, **pending}.values())

    def _finish(self, digest: str, size: int, written: bool) -> None:
        with self._lock:
            self._writers[digest] -= 1
            if not self._writers[digest]:
                del self._writers[digest], self._pending[digest]
            if written:
                self._present[digest] = size
