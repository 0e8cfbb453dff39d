"""What is known about one request when it has ended: for its line in the log and its span."""

from __future__ import annotations

import time
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ostinato.engine.events import TokenEvent


@dataclass(slots=True)
class RequestRecord:
    """Moments are those of `time.perf_counter`.

    epoch: seconds since 1970 at its zero. submitted: to the engine; waited: seconds until its first sequence had a
    slot, None while that is not known; first, last: tokens.
    """

    id: str
    method: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    epoch: float = field(default_factory=lambda: time.time() - time.perf_counter())
    ended: float = 0.0
    route: str = "other"
    status: int = 0
    outcome: str = ""
    submitted: float | None = None
    waited: float | None = None
    first: float | None = None
    last: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    prompts: list[str] = field(default_factory=list)  # only where they may be logged

    def note(self, event: TokenEvent) -> None:
        """An event of the engine has come."""
        if event.token_ids:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.generated_tokens += len(event.token_ids)
        if event.finish_reason is not None:
            self.reasons[str(event.finish_reason)] += 1
            self.waited = event.waited if self.waited is None else min(self.waited, event.waited)

    def fields(self) -> dict[str, object]:
        """For the log: what concerns this request."""
        facts: dict[str, object] = {
            "request_id": self.id,
            "method": self.method,
            "path": self.path,
            "route": self.route,
            "status": self.status,
            "outcome": self.outcome,
            "seconds": round(self.ended - self.started, 6),
        }
        if self.submitted is not None:
            facts |= {
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "generated_tokens": self.generated_tokens,
                "finish_reasons": dict(self.reasons),
            }
        if self.waited is not None:
            facts["queue_seconds"] = round(self.waited, 6)
        if self.first is not None:
            facts["first_token_seconds"] = round(self.first - self.started, 6)
        if self.prompts:
            facts["prompts"] = self.prompts
        return facts

    def phases(self) -> list[tuple[str, float, float]]:
        """Name, beginning and end of what the engine did, as far as it is known."""
        if self.submitted is None:
            return []
        begun = None if self.waited is None else self.submitted + self.waited
        found = [("queued", self.submitted, begun), ("prefill", begun, self.first), ("decode", self.first, self.last)]
        return [(name, start, end) for name, start, end in found if start is not None and end is not None]


_current: ContextVar[RequestRecord | None] = ContextVar("request", default=None)


def current_record() -> RequestRecord | None:
    """Of the request that is being handled; None outside of the application."""
    return _current.get()


def begin_record(record: RequestRecord) -> None:
    """From now on, `current_record` gives this one, here and in the tasks that are begun here."""
    _current.set(record)
