"""What has become of the states that requests stored or asked for, counted since the start."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ostinato.engine.errors import (
    NotFiniteError,
    OstinatoError,
    OtherDTypeError,
    OtherModelError,
    OtherTokenizerError,
    SnapshotFormatError,
    SnapshotValueError,
    StateDamagedError,
    StateIdError,
    StateNotFoundError,
    StoreFullError,
    StoreUnavailableError,
)

REASONS: dict[type[OstinatoError], str] = {
    StateIdError: "not_found",
    StateNotFoundError: "not_found",
    StateDamagedError: "damaged",
    SnapshotFormatError: "damaged",
    SnapshotValueError: "not_finite",
    NotFiniteError: "not_finite",
    OtherModelError: "other_model",
    OtherTokenizerError: "other_tokenizer",
    OtherDTypeError: "other_dtype",
    StoreFullError: "store_full",
    StoreUnavailableError: "store_unavailable",
}
"""Why a state was neither stored nor restored."""


class StateCounts:
    """stored: states; restored: by where they were found; refused: by reason. Thread-safe."""

    def __init__(self) -> None:
        self.stored = 0
        self.restored = Counter(memory=0, store=0)
        self.refused = Counter(dict.fromkeys(REASONS.values(), 0))
        self._lock = threading.Lock()

    def count_stored(self) -> None:
        with self._lock:
            self.stored += 1

    def count_restored(self, source: str) -> None:
        with self._lock:
            self.restored[source] += 1

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Counts an error that ends the block."""
        try:
            yield
        except tuple(REASONS) as error:
            with self._lock:
                self.refused[REASONS[type(error)]] += 1
            raise
