"""Which states somebody works from, so that they are not evicted meanwhile."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Holds:
    """Ids that are held, each as often as it is. Of this process alone. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @contextmanager
    def hold(self, id: str) -> Iterator[None]:
        with self._lock:
            self._counts[id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts[id] -= 1
                if not self._counts[id]:
                    del self._counts[id]

    def ids(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._counts)
