"""The async face of the engine: requests come from an event loop, the engine runs in a thread of its own.

The two meet at two points only: commands go to the thread through a queue that it empties before every step, events
come back in one `call_soon_threadsafe` per step. So an abort takes effect before the next step, and a slow reader
holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from math import ceil
from typing import TYPE_CHECKING

from ostinato.engine.admission import make_sequences
from ostinato.engine.continuation import FRESH, Continuation, with_defaults
from ostinato.engine.counts import Counts
from ostinato.engine.errors import EngineStoppedError, QueueFullError, RequestError
from ostinato.engine.event_stream import EventStream, OpenStreams
from ostinato.engine.events import TokenEvent
from ostinato.engine.guard import REPORTING, GuardOptions
from ostinato.engine.info import EngineStats, ModelInfo
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.types import Sequence

if TYPE_CHECKING:
    from ostinato.engine.engine import Engine
    from ostinato.engine.initial_states import InitialState
    from ostinato.engine.snapshot_file import SnapshotFormat
    from ostinato.engine.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

NONE: Mapping[str, InitialState] = {}
STUCK_SECONDS = 10.0  # beyond every limit: for a step to end in which everything was already given up


class Service:
    """Owns the engine and its thread.

    Args:
        engine: belongs to the service from now on.
        info: what is served.
        tokenizer: None serves token ids only.
        snapshots: reads and writes the model's snapshots; None stores no states.
        initial_states: by name, that requests may start from.
        guard: how sequences are guarded whose requests say nothing.
    """

    def __init__(
        self,
        engine: Engine,
        info: ModelInfo,
        tokenizer: Tokenizer | None,
        snapshots: SnapshotFormat | None = None,
        initial_states: Mapping[str, InitialState] = NONE,
        guard: GuardOptions = REPORTING,
    ) -> None:
        self.guard = guard
        self.info = info
        self.tokenizer = tokenizer
        self.snapshots = snapshots
        self.initial_states = initial_states
        self._engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams = OpenStreams()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._warm = threading.Event()
        self._draining = self._stopping = self._dead = False
        self._counts = Counts()

    @property
    def model_name(self) -> str:
        return self.info.model

    @property
    def healthy(self) -> bool:
        """Whether the engine's thread is alive."""
        return self._thread.is_alive() and not self._dead

    @property
    def ready(self) -> bool:
        """Whether a completion would be served now: a first step has run, and the service is not draining."""
        return self.healthy and self._warm.is_set() and not self._draining

    @property
    def step_age(self) -> float:
        """Seconds that the step in progress has taken so far; 0 between steps."""
        return self._engine.meter.age

    def start(self) -> None:
        """Starts the engine's thread, which runs a few steps by itself before the service is ready."""
        self._thread.start()

    def submit(
        self,
        request_id: str,
        prompts: Items[Items[int]],
        params: SamplingParams,
        *,
        n: int = 1,
        priority: int = 0,
        states: Continuation = FRESH,
    ) -> EventStream:
        """Queues n sequences for every prompt; must be called on an event loop.

        In the events, `index` is prompt number * n + choice number.

        Raises:
            RequestError: the request cannot be served as it stands; `field` names what is wrong.
            QueueFullError: there is no room for all of it; nothing was queued.
            EngineStoppedError: the service is draining or its engine is gone.
            ValueError: a request of this id is still in progress.
        """
        if self._draining or not self.healthy:
            raise EngineStoppedError("the server is shutting down")
        self._loop = asyncio.get_running_loop()
        self.check_count(n * len(prompts))  # before there are so many
        states = with_defaults(states, self.info, self.guard)
        sequences = make_sequences(
            request_id,
            prompts,
            params,
            n=n,
            priority=priority,
            vocab_size=self.info.vocab_size,
            tokenizer=self.tokenizer,
            states=states,
            encoder_length=self.info.encoder_length,
        )
        if any(sequence.id in self._streams for sequence in sequences):
            raise ValueError(f"a request with the id {request_id!r} is still in progress")
        self._reserve(len(sequences))
        stream = EventStream(sequences, self._abort)
        self._streams.add(sequences, stream)
        self._commands.put(lambda: self._add(sequences))
        if self._dead:  # since the check above: nobody takes the command any more
            self._fail_all()
        return stream

    async def drain(self, timeout: float, park_seconds: float = 0.0) -> bool:
        """Takes no new requests and waits for the others, at most `timeout` seconds; then aborts them.

        park_seconds: how long those that may be parked then have to read their last token. Returns whether all ended
        by themselves.
        """
        self._draining = True
        done = await self._streams.ended(timeout)
        if not done and park_seconds > 0:
            self._commands.put(self._park_all)
            await self._streams.ended(park_seconds)
        for stream in self._streams:
            await stream.aclose()
        if not await self._streams.ended(STUCK_SECONDS):
            logger.error("a step has not ended for %.0f seconds: its sequences are given up", self.step_age)
            self._streams.fail("the server is shutting down, and the step does not end")
        return done

    async def stop(self) -> None:
        """Aborts whatever still runs and ends the thread."""
        await self.drain(0)
        self._stopping = True
        self._commands.put(lambda: None)
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, STUCK_SECONDS)

    def stats(self) -> EngineStats:
        """The counters as they stand."""
        return self._counts.stats(self._engine, unfinished=len(self._streams))

    # On the event loop

    @property
    def _most_sequences(self) -> int:
        """That can run and wait at once."""
        return self.info.slots + self._engine.scheduler.max_queue

    def check_count(self, count: int, field: str = "n") -> None:
        """Raises RequestError, naming the field: so many sequences can never be queued here."""
        if count > self._most_sequences:
            raise RequestError(f"{count} sequences in one request can never be queued here", field)

    def _reserve(self, count: int) -> None:
        """Refuses what has no room. Only the event loop counts, so the engine's thread cannot come in between."""
        slots, bound = self.info.slots, self._most_sequences
        unfinished = len(self._streams)
        if unfinished + count > bound:
            wait = self._streams.sequence_seconds * (unfinished + count - bound) / slots
            raise QueueFullError(
                f"the queue is full: {unfinished} sequences run or wait", retry_after=max(1, ceil(wait))
            )

    def _abort(self, sequence: Sequence) -> None:
        self._commands.put(lambda: self._abort_now(sequence))

    def _fail_all(self) -> None:
        """The engine is dead: whatever it had, or was about to get, ends here."""
        self._streams.fail("the engine has stopped")

    # In the engine's thread

    def _run(self) -> None:
        try:
            self._engine.warm_up()
            self._warm.set()
            while not self._stopping:
                self._run_commands()
                if self._engine.has_work:
                    self._step()
        except BaseException:
            logger.critical("the engine's thread ends", exc_info=True)
            self._dead = True
            self._call_loop(self._fail_all)

    def _run_commands(self) -> None:
        """All commands that wait; while there is nothing else to do, waits for one."""
        try:
            self._commands.get(block=not self._engine.has_work)()
            while True:
                self._commands.get_nowait()()
        except queue.Empty:
            return

    def _step(self) -> None:
        self._post([event for event in self._engine.step() if event.says_something])

    def _add(self, sequences: list[Sequence]) -> None:
        self._engine.add(sequences)
        self._counts.accept(sequences)

    def _abort_now(self, sequence: Sequence) -> None:
        if sequence.finish_reason is None:
            self._post([self._engine.abort(sequence)])

    def _park_all(self) -> None:
        for sequence in self._engine.scheduler.unfinished():
            self._post(self._engine.park(sequence))

    def _post(self, events: list[TokenEvent]) -> None:
        self._counts.deliver(events)
        if events and not self._call_loop(self._streams.deliver, events):
            for sequence in self._engine.scheduler.unfinished():  # nobody is left to hear of them
                self._engine.abort(sequence)
            self._streams.forget()

    def _call_loop(self, function: Callable[..., None], *arguments: object) -> bool:
        """Has the event loop call a function. Returns whether there is a loop that will."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, *arguments)
                return True
        return False
