"""Running one request: its sequences on the engine, its tokens in the usage, its failures as errors."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from ostinato.engine.errors import EngineStoppedError, StepError
from ostinato.engine.types import FinishReason, SamplingParams, TokenEvent
from ostinato.server.context import Context
from ostinato.server.metrics import TokenClock
from ostinato.server.replies import FinishReason as WireReason
from ostinato.server.replies import Usage

Piece = TypeVar("Piece")


@dataclass(slots=True)
class Job:
    """One request, ready to run. `started`: its arrival, by `time.perf_counter`."""

    prefix: str  # of the id
    prompts: list[tuple[int, ...]]
    params: SamplingParams
    n: int
    priority: int
    started: float
    created: int = field(default_factory=lambda: int(time.time()))
    generated: int = 0  # tokens so far
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n

    def prompt_of(self, index: int) -> tuple[int, ...]:
        """The prompt that choice `index` continues."""
        return self.prompts[index // self.n]

    def usage(self) -> Usage:
        read = sum(map(len, self.prompts))
        return Usage(prompt_tokens=read, completion_tokens=self.generated, total_tokens=read + self.generated)


async def run(context: Context, job: Job) -> AsyncGenerator[TokenEvent, None]:
    """The events of all sequences of the job, as they come. Closing the generator aborts what has not ended.

    Raises:
        RequestError, QueueFullError, EngineStoppedError: before the first event, when the job is not accepted.
        StepError: a step failed for one of the sequences.
        EngineStoppedError: the server shut down before the end.
    """
    clock = TokenClock(context.metrics, job.started)
    stream = context.service.submit(job.id, job.prompts, job.params, n=job.n, priority=job.priority)
    async with stream:
        async for event in stream:
            _raise_if_failed(event)
            clock.tick(event)
            job.generated += len(event.token_ids)
            yield event


def _raise_if_failed(event: TokenEvent) -> None:
    if event.finish_reason is FinishReason.ERROR:
        raise StepError(f"engine step failed: {event.error}")
    if event.finish_reason is FinishReason.ABORTED:
        raise EngineStoppedError("the server shut down before the answer was complete")


def wire_reason(event: TokenEvent) -> WireReason | None:
    """As OpenAI names it; the other two reasons never reach an answer."""
    if event.finish_reason is None:
        return None
    return "stop" if event.finish_reason is FinishReason.STOP else "length"


async def collect(context: Context, job: Job, piece: Callable[[TokenEvent], Piece]) -> list[list[Piece]]:
    """Run the job to its end: the pieces that `piece` makes of the events, by choice."""
    pieces: list[list[Piece]] = [[] for _ in range(job.choices)]
    async with aclosing(run(context, job)) as events:
        async for event in events:
            pieces[event.index].append(piece(event))
    return pieces


def join_ids(pieces: Sequence[list[int] | None]) -> list[int] | None:
    """None when ids were not asked for."""
    return None if pieces[0] is None else [token_id for piece in pieces for token_id in piece or ()]
