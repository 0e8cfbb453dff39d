"""Memory for states on their way to the store: what a slow one may leave waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ostinato.engine.errors import QueueFullError, RequestError

LEAST_ROOM = 2**30  # bytes


class SaveRoom:
    """Counts, in bytes, the states that requests in progress may leave behind. Belongs to the event loop."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.taken = 0

    @contextmanager
    def taking(self, num_bytes: int) -> Iterator[None]:
        """For a request, until it has ended.

        Raises:
            RequestError: it is more than all that there is.
            QueueFullError: it is more than others leave.
        """
        if num_bytes > self.budget:
            raise RequestError(
                f"checkpoints: the states that the request would keep take {num_bytes} bytes, and there is room for "
                f"{self.budget}: send fewer checkpoints, or fewer choices",
                "checkpoints",
            )
        if self.taken + num_bytes > self.budget:
            raise QueueFullError(f"{self.taken} bytes of states wait to be stored", retry_after=1.0)
        self.taken += num_bytes
        try:
            yield
        finally:
            self.taken -= num_bytes
