"""What a caller holds of a request in progress."""

import asyncio
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Self

from ostinato.engine.stopping import failure
from ostinato.engine.types import Sequence, TokenEvent


class EventStream:
    """The events of one request, from all of its sequences, until each has had its final one.

    Belongs to the event loop. `abort` gives up a sequence; its final event still comes.
    """

    def __init__(self, sequences: Items[Sequence], abort: Callable[[Sequence], None]) -> None:
        self._abort = abort
        self._open = {sequence.id: sequence for sequence in sequences}
        self._events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._begun = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the request was accepted."""
        return time.monotonic() - self._begun

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        if not self._open and self._events.empty():
            raise StopAsyncIteration
        return await self._events.get()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Aborts what has not ended. May be called more than once."""
        for sequence in self._open.values():
            self._abort(sequence)

    def fail(self, error: str) -> None:
        """Ends every open sequence with an error."""
        for sequence in list(self._open.values()):
            self.deliver(failure(sequence, error))

    def deliver(self, event: TokenEvent) -> None:
        """Called by the service with each event."""
        if event.finish_reason is not None:
            self._open.pop(event.sequence_id, None)
        self._events.put_nowait(event)
