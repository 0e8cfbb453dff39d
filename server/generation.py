"""Running one request: its sequences on the engine, its tokens in the usage, its failures as errors."""

from __future__ import annotations

import math
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from ostinato.engine.errors import EngineStoppedError, NotFiniteError, SlowReaderError, StepError
from ostinato.engine.events import Fault, FinishReason, Reuse, TokenEvent
from ostinato.engine.sampling_params import SamplingParams
from ostinato.server.context import Context
from ostinato.server.replies import CachedTokens, Usage
from ostinato.server.replies import FinishReason as WireReason
from ostinato.server.states.job_states import JobStates
from ostinato.server.telemetry.metrics import TokenClock
from ostinato.server.telemetry.request_record import RequestRecord, current_record

Piece = TypeVar("Piece")
LONGEST_PROMPT = 10_000  # characters of a prompt in the log, where it may be there at all


@dataclass(slots=True)
class Job:
    """One request, ready to run. `started`: its arrival, by `time.perf_counter`."""

    id: str
    prompts: list[tuple[int, ...]]
    params: SamplingParams
    n: int
    priority: int
    started: float
    states: JobStates
    created: int = field(default_factory=lambda: int(time.time()))
    generated: int = 0  # tokens so far
    logprobs: dict[int, tuple[float, int]] = field(default_factory=dict)  # their sum and number, by choice
    cached: int = 0  # prompt tokens that did not have to be read
    cache_reason: Reuse = Reuse.OFF  # of the first prompt

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n

    @property
    def num_states(self) -> int:
        """That it may leave behind: at its choices' ends, and at the checkpoints of its prompts."""
        keeps = self.states.storing is not None or self.states.parking is not None
        return self.choices + len(self.prompts) * len(self.states.checkpoints) if keeps else 0

    def prompt_of(self, index: int) -> tuple[int, ...]:
        """The prompt that choice `index` continues."""
        return self.prompts[index // self.n]

    def usage(self) -> Usage:
        read = sum(map(len, self.prompts)) + len(self.prompts) * self.states.tokens_before
        return Usage(
            prompt_tokens=read,
            completion_tokens=self.generated,
            total_tokens=read + self.generated,
            prompt_tokens_details=CachedTokens(cached_tokens=self.cached, cache_reason=self.cache_reason),
        )

    def best(self, n: int) -> list[int]:
        """Of the choices of each prompt the n whose tokens are likeliest on average, the likeliest first.

        All of them in their own order where no more were generated than n.
        """
        if n == self.n:
            return list(range(self.choices))
        groups = (range(start, start + self.n) for start in range(0, self.choices, self.n))
        return [index for group in groups for index in sorted(group, key=self._mean_logprob, reverse=True)[:n]]

    def _mean_logprob(self, index: int) -> float:
        total, count = self.logprobs.get(index, (0.0, 0))
        return total / count if count else -math.inf

    def count(self, event: TokenEvent) -> None:
        """Counts an event's tokens; those of a prompt with its first choice."""
        self.generated += len(event.token_ids)
        total, count = self.logprobs.get(event.index, (0.0, 0))
        found = [entry.logprob for entry in event.logprobs]
        self.logprobs[event.index] = total + sum(found), count + len(found)
        if event.finish_reason is not None and event.index % self.n == 0:
            self.cached += event.reused
            if event.index == 0:
                self.cache_reason = event.reuse


def new_id(prefix: str) -> str:
    return f"{prefix}{uuid.uuid4().hex}"


async def run(context: Context, job: Job) -> AsyncGenerator[TokenEvent, None]:
    """The events of all sequences of the job, as they come. Closing the generator aborts what has not ended.

    Raises:
        RequestError, QueueFullError, RateLimitError, EngineStoppedError: before the first event, when the job is not
            accepted.
        StepError: a step failed for one of the sequences.
        SlowReaderError: the events were not taken.
        EngineStoppedError: the server shut down before the end.
        StateStoreError: a state could not be stored.
    """
    clock = TokenClock(context.metrics, job.started)
    record = _recorded(context, job)
    meter, read = context.meters.of(job.states.owner), sum(map(len, job.prompts))
    meter.check_tokens(read)
    with job.states.hold(), context.saving.taking(job.num_states * context.service.info.bytes_per_state):
        stream = context.service.submit(
            job.id, job.prompts, job.params, n=job.n, priority=job.priority, states=job.states.continuation()
        )
        meter.take_tokens(read)
        async with stream:
            async for event in stream:
                record.note(event)
                _raise_if_failed(event)
                clock.tick(event)
                job.count(event)
                meter.take_tokens(len(event.token_ids))
                record.cached_tokens = job.cached
                await job.states.take(event)
                yield event


def _recorded(context: Context, job: Job) -> RequestRecord:
    """The record of the request that is being handled, with what is known before the first event."""
    record = current_record() or RequestRecord(job.id, "", "")
    record.submitted = time.perf_counter()
    record.prompt_tokens = job.usage().prompt_tokens
    if context.settings.log_prompts:
        tokenizer = context.service.tokenizer
        texts = (str(ids) if tokenizer is None else tokenizer.decode(ids) for ids in job.prompts)
        record.prompts = [text[:LONGEST_PROMPT] for text in texts]
    return record


def _raise_if_failed(event: TokenEvent) -> None:
    if event.fault in (Fault.LOGITS, Fault.STATE):
        raise NotFiniteError(f"{event.error}, so this request cannot go on; states that it stored are whole")
    if event.fault is Fault.SLOW_READER:
        raise SlowReaderError(f"the answer was not taken: {event.error}")
    if event.finish_reason is FinishReason.ERROR:
        raise StepError(f"engine step failed: {event.error}")
    if event.finish_reason is FinishReason.ABORTED:
        raise EngineStoppedError("the server shut down before the answer was complete")


def wire_reason(event: TokenEvent) -> WireReason | None:
    """As OpenAI names it. What was parked, or ended by the state guard, is cut short. The others never get here."""
    if event.finish_reason is None:
        return None
    return "stop" if event.finish_reason is FinishReason.STOP else "length"


def stop_reason(event: TokenEvent) -> str | int | None:
    """The stop string or token; or `state_guard`, with the finish reason `length`, which no stop string has."""
    return "state_guard" if event.finish_reason is FinishReason.STATE_GUARD else event.stop_reason


async def collect(context: Context, job: Job, piece: Callable[[TokenEvent], Piece]) -> list[list[Piece]]:
    """Run the job to its end: the pieces that `piece` makes of the events, by choice."""
    pieces: defaultdict[int, list[Piece]] = defaultdict(list)  # by choice, once the job is accepted
    async with aclosing(run(context, job)) as events:
        async for event in events:
            pieces[event.index].append(piece(event))
    return [pieces[index] for index in range(job.choices)]


def join_ids(pieces: Sequence[list[int] | None]) -> list[int] | None:
    """None when ids were not asked for."""
    return None if pieces[0] is None else [token_id for piece in pieces for token_id in piece or ()]
