"""What the engine has done since it was started, counted in its thread and read from any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

from ostinato.engine.events import TokenEvent
from ostinato.engine.info import EngineStats
from ostinato.engine.types import Sequence

if TYPE_CHECKING:
    from ostinato.engine.engine import Engine


class Counts:
    """Counts that only the service can keep: of accepted requests and delivered events."""

    def __init__(self) -> None:
        self._tokens = Counter[str]()
        self._finished = Counter[str]()

    def accept(self, sequences: Items[Sequence]) -> None:
        """Sequences were queued."""
        self._tokens["prompt"] += sum(len(sequence.prompt) for sequence in sequences)

    def deliver(self, events: Items[TokenEvent]) -> None:
        """Events went out."""
        self._tokens["generated"] += sum(len(event.token_ids) for event in events)
        self._finished.update(event.finish_reason for event in events if event.finish_reason is not None)

    def stats(self, engine: Engine, *, unfinished: int) -> EngineStats:
        """All counts as they stand. unfinished: sequences that run or wait."""
        scheduler, keeper = engine.scheduler, engine.keeper
        return EngineStats(
            slots=scheduler.num_slots,
            slots_used=scheduler.num_slots - scheduler.num_free,
            running=scheduler.num_running,
            waiting=max(0, unfinished - scheduler.num_running),
            max_queue=scheduler.max_queue,
            prompt_tokens_total=self._tokens["prompt"],
            generated_tokens_total=self._tokens["generated"],
            steps_total=engine.meter.num_steps,
            step_seconds_total=engine.meter.num_seconds,
            finished=dict(self._finished),
            parked=scheduler.num_parked,
            read_tokens_total=engine.tokens_read,
            reused_tokens_total=keeper.stats.reused_tokens,
            reuse=dict(keeper.stats.reuse),  # a copy in one piece: the engine goes on counting
            cache_bytes=keeper.cache.num_bytes,
            cache_budget=keeper.cache.budget,
            cache_states=keeper.cache.num_states,
            cache_evictions_total=keeper.cache.evictions,
            meter=engine.meter,
            guard=engine.guard_stats,
        )
