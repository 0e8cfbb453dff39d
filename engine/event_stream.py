"""What a caller holds of a request in progress."""

import asyncio
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from typing import Self

from ostinato.engine.events import Fault, FinishReason, TokenEvent
from ostinato.engine.stopping import failure
from ostinato.engine.types import Sequence

MOST_WAITING = 1 << 14
"""Tokens and log-probabilities that may wait for one caller: some megabytes. A caller so far behind is gone."""


class EventStream:
    """The events of one request, from all of its sequences, until each has had its final one.

    Belongs to the event loop. `abort` gives up a sequence; its final event still comes. A caller that leaves more than
    `most` waiting loses the request, and what waits.
    """

    def __init__(self, sequences: Items[Sequence], abort: Callable[[Sequence], None], most: int = MOST_WAITING) -> None:
        self._abort = abort
        self._open = {sequence.id: sequence for sequence in sequences}
        self._events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._begun = time.monotonic()
        self._most = most
        self._waiting = 0
        self._left_behind = False

    @property
    def age(self) -> float:
        """Seconds since the request was accepted."""
        return time.monotonic() - self._begun

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        if not self._open and self._events.empty():
            raise StopAsyncIteration
        event = await self._events.get()
        self._waiting -= _weight(event)
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Aborts what has not ended. May be called more than once."""
        self._abort_all()

    def fail(self, error: str) -> None:
        """Ends every open sequence with an error."""
        for sequence in list(self._open.values()):
            self.deliver(failure(sequence, error))

    def deliver(self, event: TokenEvent) -> None:
        """Called by the service with each event."""
        if event.finish_reason is None and self._left_behind:
            return
        if event.finish_reason is not None:
            sequence = self._open.pop(event.sequence_id, None)
            if event.finish_reason is FinishReason.ABORTED and self._left_behind and sequence is not None:
                event = failure(sequence, f"over {self._most} tokens waited to be taken", Fault.SLOW_READER)
        self._waiting += _weight(event)
        self._events.put_nowait(event)
        if self._waiting > self._most and not self._left_behind:
            self._left_behind = True
            while not self._events.empty():
                self._events.get_nowait()
            self._waiting = 0
            self._abort_all()

    def _abort_all(self) -> None:
        for sequence in self._open.values():
            self._abort(sequence)


def _weight(event: TokenEvent) -> int:
    """What it keeps in memory, in entries of some hundred bytes."""
    scored = sum(1 + len(entry.top) for entry in (*event.logprobs, *event.prompt_logprobs) if entry is not None)
    return 1 + scored


class OpenStreams:
    """The requests in progress, by the ids of their sequences that have not ended. Belongs to the event loop."""

    def __init__(self) -> None:
        self._streams: dict[str, EventStream] = {}
        self.sequence_seconds = 1.0  # moving average, for the estimate of when a full queue has room

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._streams

    def __iter__(self) -> Iterator[EventStream]:
        return iter(set(self._streams.values()))

    def add(self, sequences: Items[Sequence], stream: EventStream) -> None:
        self._streams.update((sequence.id, stream) for sequence in sequences)

    def deliver(self, events: Items[TokenEvent]) -> None:
        """To those who wait for them. Some may have been failed meanwhile."""
        for event in events:
            final = event.finish_reason is not None
            stream = self._streams.pop(event.sequence_id, None) if final else self._streams.get(event.sequence_id)
            if stream is not None:
                stream.deliver(event)
                if final:
                    self.sequence_seconds += 0.1 * (stream.age - self.sequence_seconds)

    def fail(self, error: str) -> None:
        """Ends all of them with an error."""
        for stream in self:
            stream.fail(error)
        self._streams.clear()

    def forget(self) -> None:
        """Nobody is left to hear of them."""
        self._streams.clear()

    async def ended(self, timeout: float) -> bool:
        """Waits until all have, at most `timeout` seconds. Returns whether they have."""
        deadline = time.monotonic() + timeout
        while self._streams and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return not self._streams
