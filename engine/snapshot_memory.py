"""Snapshots that are ready to be loaded, in the host's memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ostinato.engine.snapshots import Snapshot


class SnapshotMemory:
    """Snapshots by the hash of their content, as many as fit; the least recently used one goes first."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Snapshot] = OrderedDict()
        self.num_bytes = 0

    def __contains__(self, content: str) -> bool:
        with self._lock:
            return content in self._kept

    def get(self, content: str) -> Snapshot | None:
        with self._lock:
            if content in self._kept:
                self._kept.move_to_end(content)
            return self._kept.get(content)

    def put(self, content: str, snapshot: Snapshot) -> None:
        with self._lock:
            if content in self._kept or _size(snapshot) > self._budget:
                return
            self._kept[content] = snapshot
            self.num_bytes += _size(snapshot)
            while self.num_bytes > self._budget:
                _, oldest = self._kept.popitem(last=False)
                self.num_bytes -= _size(oldest)


def _size(snapshot: Snapshot) -> int:
    """Bytes: eight for each token as well."""
    return snapshot.state.num_bytes + 8 * len(snapshot.log.tokens or ())
