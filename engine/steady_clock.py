"""The time of day, for what is to last so many seconds although somebody may set the machine's clock.

Times to live are kept as seconds since 1970, since other processes have to understand them. A clock that jumps by hours
would end them early, or keep them for hours longer. So a jump is believed only once it has lasted.
"""

import threading
import time
from collections.abc import Callable

JUMP_SECONDS = 5.0  # a smaller difference is the usual correction of a clock, and followed at once
PATIENCE_SECONDS = 900.0


class SteadyClock:
    """Callable: seconds since 1970. Thread-safe.

    It goes with `steady`, which nobody can set, at a distance that follows `wall`: at once where the two differ by no
    more than JUMP_SECONDS, after PATIENCE_SECONDS where they differ by more and go on to.
    """

    def __init__(self, wall: Callable[[], float] | None = None, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall or (lambda: time.time())  # looked up at each call, so that tests can set it
        self._steady = steady
        self._lock = threading.Lock()
        self._offset = self._wall() - steady()
        self._jumped: float | None = None  # when the wall clock was first seen elsewhere

    def __call__(self) -> float:
        with self._lock:
            now = self._steady()
            offset = self._wall() - now
            if abs(offset - self._offset) <= JUMP_SECONDS:
                self._offset, self._jumped = offset, None
            elif self._jumped is None:
                self._jumped = now
            elif now - self._jumped >= PATIENCE_SECONDS:
                self._offset, self._jumped = offset, None
            return now + self._offset


steady_time = SteadyClock()
"""Of this process."""
