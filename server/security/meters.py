"""What each API key has used of its limits: requests and tokens per minute, and requests at once.

Rates are token buckets: full at first, they hold what a minute allows and fill evenly. Used on the event loop only.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable

from ostinato.server.errors import RateLimitError
from ostinato.server.security.api_keys import KeyLimits

MINUTE = 60.0
BUSY_SECONDS = 1.0  # when a request among too many ends is not known


class Bucket:
    """Holds `per_minute` at most. clock: seconds, monotonic."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.size = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def level(self) -> float:
        """What may be taken now; negative while there is more to come back than was there."""
        now = self._clock()
        self._level = min(float(self.size), self._level + (now - self._at) * self.size / MINUTE)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        """Also beyond what there is: it comes back before anybody takes again."""
        self._level = self.level - amount

    def wait(self, amount: float) -> float:
        """Seconds until `amount` is there; 0 if it is."""
        return max(0.0, amount - self.level) * MINUTE / self.size


class Meter:
    """Of one owner."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limits = KeyLimits()
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.running = 0

    def set_limits(self, limits: KeyLimits) -> None:
        """New limits start with full buckets, those that stay the same go on."""
        if limits.requests_per_minute != self._limits.requests_per_minute:
            self._requests = self._bucket(limits.requests_per_minute)
        if limits.tokens_per_minute != self._limits.tokens_per_minute:
            self._tokens = self._bucket(limits.tokens_per_minute)
        self._limits = limits

    def enter(self) -> None:
        """A request begins; `leave` is to follow. Raises RateLimitError: one too many, at once or in this minute."""
        most = self._limits.concurrency
        if most is not None and self.running >= most:
            raise RateLimitError(f"This API key may have {most} requests at once.", BUSY_SECONDS)
        if self._requests is not None:
            wait = self._requests.wait(1)
            if wait > 0:
                message = f"This API key may make {self._requests.size} requests per minute."
                raise RateLimitError(message, wait)
            self._requests.take(1)
        self.running += 1

    def leave(self) -> None:
        self.running -= 1

    def check_tokens(self, count: int) -> None:
        """Raises RateLimitError: a prompt of so many tokens is beyond what is left; nothing was taken."""
        if self._tokens is None:
            return
        size = self._tokens.size
        if count > size:
            message = f"The prompt has {count} tokens, and this API key may use {size} tokens per minute."
            raise RateLimitError(message, None)
        wait = self._tokens.wait(count)
        if wait > 0:
            message = f"This API key may use {size} tokens per minute, and {count} of them are not left for the prompt."
            raise RateLimitError(message, wait)

    def take_tokens(self, count: int) -> None:
        """Read or generated. What runs is not cut short: the next request waits instead."""
        if self._tokens is not None:
            self._tokens.take(count)

    def headers(self) -> dict[str, str]:
        """What is left, in the headers that clients of the OpenAI API know."""
        found: dict[str, str] = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                found[f"x-ratelimit-limit-{what}"] = str(bucket.size)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(bucket.level)))
                found[f"x-ratelimit-reset-{what}"] = duration(bucket.wait(bucket.size))
        return found

    def _bucket(self, per_minute: int | None) -> Bucket | None:
        return None if per_minute is None else Bucket(per_minute, self._clock)


class Meters:
    """By owner. One that was never given limits has none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._of: defaultdict[str, Meter] = defaultdict(lambda: Meter(clock))
        self._unlimited = Meter(clock)

    def limited(self, owner: str, limits: KeyLimits) -> Meter:
        """The meter of an owner, with the limits that it has now."""
        meter = self._of[owner]
        meter.set_limits(limits)
        return meter

    def of(self, owner: str) -> Meter:
        return self._of.get(owner, self._unlimited)


def duration(seconds: float) -> str:
    """As the OpenAI API writes it: `0s`, `20ms`, `7s`, `1m30s`. Rounded up."""
    if seconds < 1:
        milliseconds = math.ceil(seconds * 1000)
        return f"{milliseconds}ms" if 0 < milliseconds < 1000 else "1s" if milliseconds else "0s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
